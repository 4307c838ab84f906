"""One run in several processes, started by `accelerate launch` or torchrun: who speaks, and what they settle together.

Each process has the whole base and computes its share of every step; gradients are averaged (torch's
DistributedDataParallel), so all hold the same vectors after it. The first process alone writes files and prints. On
CPUs they talk through gloo, on GPUs through NCCL; machines are joined by the launcher's own options, and nothing here
knows how many there are.
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
    """How many processes of this machine hold a base of their own beside one another (qia3.many.pool), this one too."""
    return int(os.environ.get(NEIGHBOURS, "1"))


def check_shares(batch_size: int, accumulate: int) -> None:
    """Raises ConfigError where a step's batch cannot be shared out evenly."""
    shares = accumulate * count()
    if batch_size % shares:
        raise ConfigError(
            f"a batch of {batch_size} cannot be shared by {count()} processes in {accumulate} parts each; "
            f"make batch_size a multiple of {shares}"
        )


def wait() -> None:
    """Until every process is here."""
    if count() > 1:
        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


def sharing(module: M) -> M:
    """The module, whose buffers are the same everywhere: nothing of the frozen base is sent between processes."""
    if count() > 1:
        names = [name for name, _ in module.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)  # type: ignore[no-untyped-call]
    return module


def mean(values: Tensor) -> Tensor:
    """Over processes."""
    if count() > 1:
        values = values / count()
        torch.distributed.all_reduce(values)
    return values


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether it is raised in one of the processes."""
    return bool(mean(torch.tensor(float(flag), device=device)) > 0)
