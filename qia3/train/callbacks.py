"""What happens beside the steps of a run: a line in the log, progress on the screen, stopping when asked, stopping when
it gets no better.

log.jsonl has one line a step. `loss` and its parts are means over the step's whole batch, `seconds` is the step's own
time:

    {"step": 12, "loss": 3.1, "lm": 1.2, "unlikelihood": 0.8, "length-normalised": 1.1, "learning_rate": 0.0006, "seconds": 1.7,
     "examples_per_second": 4.7}

A run that goes on from a checkpoint first cuts the lines after it, so the file reads as if nothing had happened.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from qia3.progress import is_main, say
from qia3.train import processes

Entry = dict[str, float]


class Log(TrainerCallback):  # type: ignore[misc]
    """Writes log.jsonl and tells how far the run is.

    `parts` is filled by the trainer, one tensor for each part of the step's batch.
    """

    def __init__(self, path: Path, names: Sequence[str], batch: int, tell: Callable[[int, str], None]) -> None:
        self.path, self.names, self.batch, self.tell = path, names, batch, tell
        self.entries: list[Entry] = []
        self.parts: list[Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.entries = [entry for entry in read_log(self.path) if entry["step"] <= state.global_step]
        if is_main():
            self.path.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries))

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self.parts.clear()
        self.started, self.rate = time.perf_counter(), float(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        parts = processes.mean(torch.stack(self.parts).mean(0)).tolist()
        seconds = time.perf_counter() - self.started
        entry = {"step": state.global_step, "loss": sum(parts), **dict(zip(self.names, parts, strict=True))}
        entry |= {
            "learning_rate": self.rate,
            "seconds": round(seconds, 4),
            "examples_per_second": round(self.batch / seconds, 2),
        }
        self.entries.append(entry)
        if is_main():
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        self.tell(state.global_step, f"loss {self.recent(5):.3g}")

    def recent(self, steps: int) -> float:
        """Mean loss of the last steps."""
        last = [entry["loss"] for entry in self.entries[-steps:]]
        return sum(last) / len(last)


def read_log(path: Path) -> list[Entry]:
    """The lines of a log; a last one that was cut short is left out."""
    entries = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


class Patience(TrainerCallback):  # type: ignore[misc]
    """Ends the run after so many evaluations without a better loss.

    It reads the trainer's own history, which is in every checkpoint.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True  # the last state is a candidate too

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        if len(losses) - 1 - losses.index(min(losses)) >= self.patience:
            control.should_training_stop = control.should_save = True


class Interruption(TrainerCallback):  # type: ignore[misc]
    """Turns the first SIGINT or SIGTERM into a checkpoint and a stop; the second one acts as usual."""

    def __init__(self) -> None:
        self.raised = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        previous: dict[signal.Signals, Any] = {}

        def note(number: int, _: Any) -> None:
            self.raised = True
            say("\nstopping after this step, with a checkpoint (once more to stop at once)")
            for name, handler in previous.items():
                signal.signal(name, handler)

        try:
            for name in (signal.SIGINT, signal.SIGTERM):
                previous[name] = signal.signal(name, note)
        except ValueError:  # not the main thread: nothing to listen to
            previous = {}
        try:
            yield
        finally:
            for name, handler in previous.items():
                signal.signal(name, handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if processes.any_of(self.raised, args.device):
            self.raised = True  # never set back: a signal that comes while they are asked counts at the next step
            control.should_save = control.should_training_stop = True
