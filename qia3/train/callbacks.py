"""What happens beside the steps of a run: log lines (qia3.batching.log), progress output, stopping on request, early
stopping.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from qia3.batching.log import Entry, append_log, cut_log, entry_of, recent_loss
from qia3.progress import is_main
from qia3.stopping import Stop, no_better
from qia3.train import processes


class Log(TrainerCallback):  # type: ignore[misc]
    """Writes log.jsonl and reports progress.

    `parts` is filled by the trainer, with one tensor per part of the step's batch.
    """

    def __init__(self, path: Path, names: Sequence[str], batch: int, tell: Callable[[int, str], None]) -> None:
        self.path, self.names, self.batch, self.tell = path, names, batch, tell
        self.entries: list[Entry] = []
        self.parts: list[Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.entries = cut_log(self.path, state.global_step, is_main())

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self.parts.clear()
        self.started, self.rate = time.perf_counter(), float(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        parts = processes.mean(torch.stack(self.parts).mean(0)).tolist()
        seconds = time.perf_counter() - self.started
        entry = entry_of(state.global_step, self.names, parts, self.rate, seconds, self.batch)
        self.entries.append(entry)
        if is_main():
            append_log(self.path, entry)
        self.tell(state.global_step, f"loss {self.recent(5):.3g}")

    def recent(self, steps: int) -> float:
        """Mean loss of the last steps."""
        return recent_loss(self.entries, steps)


class Patience(TrainerCallback):  # type: ignore[misc]
    """Ends the run after `patience` evaluations without a better loss.

    It reads the trainer's own history, which is in every checkpoint.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True  # the last state is a candidate too

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        if no_better(losses, self.patience):
            control.should_training_stop = control.should_save = True


class Interruption(Stop, TrainerCallback):  # type: ignore[misc]
    """Turns the first SIGINT or SIGTERM into a checkpoint and a stop."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if processes.any_of(self.raised, args.device):
            self.raised = True  # never reset: a signal during the exchange between processes counts at the next step
            control.should_save = control.should_training_stop = True
