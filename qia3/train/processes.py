"""One run in several processes, started by `accelerate launch` or torchrun: which one prints, and what they exchange.

Each process has the whole base and computes its share of every step; gradients are averaged (torch's
DistributedDataParallel), so all of them hold the same vectors afterwards. Only the first process writes files and
prints. On CPUs they communicate through gloo, on GPUs through NCCL; several machines are joined by the launcher's own
options, and nothing here depends on their number.
"""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from qia3.errors import ConfigError

M = TypeVar("M", bound=nn.Module)
NEIGHBOURS = "QIA3_NEIGHBOURS"


def count() -> int:
    """How many processes share this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def neighbours() -> int:
    """How many processes of this machine hold their own copy of a base (qia3.many.pool), including this one."""
    return int(os.environ.get(NEIGHBOURS, "1"))


def check_shares(batch_size: int, accumulate: int) -> None:
    """Raises ConfigError if a step's batch cannot be split evenly."""
    shares = accumulate * count()
    if batch_size % shares:
        raise ConfigError(
            f"a batch of {batch_size} cannot be split over {count()} processes in {accumulate} parts each; "
            f"make batch_size a multiple of {shares}"
        )


def wait() -> None:
    """Waits until every process gets here."""
    if count() > 1:
        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


def sharing(module: M) -> M:
    """Marks the module's parameters and buffers as identical everywhere, so that DDP does not send the frozen base."""
    if count() > 1:
        names = [name for name, _ in module.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)  # type: ignore[no-untyped-call]
    return module


def mean(values: Tensor) -> Tensor:
    """The mean over processes."""
    if count() > 1:
        values = values / count()
        torch.distributed.all_reduce(values)
    return values


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process."""
    return bool(mean(torch.tensor(float(flag), device=device)) > 0)
