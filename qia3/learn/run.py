"""One run on a device: steps, the log, checkpoints, and the best state where examples are held back.

FOLDER/log.jsonl          a line per step (qia3.batching.log)
FOLDER/state.safetensors  offsets and moments float32 by name, and in its header the step, what the optimiser has done
                          and the history of validation; written whole beside its place and moved there
FOLDER/best.safetensors   the offsets of the least validation loss so far

Steps are those of `qia3 train` (qia3.batching.schedule): step 70 is the same whether the run began at 0 or at 60.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
from safetensors.numpy import load_file, save_file

from qia3.batching.examples import Examples
from qia3.batching.log import append_log, cut_log, entry_of, recent_loss
from qia3.batching.rows import count
from qia3.batching.schedule import Schedule
from qia3.batching.tables import NAMES
from qia3.bundle.records import Record
from qia3.bundle.sites import Vectors
from qia3.errors import Interrupted, StorageError, first_line
from qia3.learn.gradients import Gradients
from qia3.learn.optimiser import AdamW, Floats, Offsets, rate_at
from qia3.learn.places import Places
from qia3.recipe import Train
from qia3.stopping import Stop, no_better

STATE, BEST, LOG = "state.safetensors", "best.safetensors", "log.jsonl"
Tell = Callable[[int, str], None]


@dataclass
class Progress:
    """Where a run is: its optimiser, and (step, loss) of each validation."""

    optimiser: AdamW
    history: list[tuple[int, float]] = field(default_factory=list)

    @property
    def best(self) -> tuple[int, float] | None:
        return min(self.history, key=lambda entry: entry[1], default=None)

    def hopeless(self, patience: int) -> bool:
        """Whether the last `patience` validations brought nothing better."""
        return no_better([loss for _, loss in self.history], patience)


class Run:
    """Of one task's vectors on one bundle. `validation` may be empty."""

    def __init__(
        self, folder: Path, places: Places, gradients: Gradients, examples: Examples, validation: Examples, plan: Train
    ) -> None:
        self.folder, self.places, self.gradients, self.plan = folder, places, gradients, plan
        self.examples, self.validation = examples, validation
        self.stop = Stop()

    def train(self, seed: int, start: Vectors | None, tell: Tell) -> tuple[Vectors, Record]:
        """From `start` (None: ones), or from the state in the folder. Raises Interrupted."""
        progress = self._resumed(start)
        optimiser, plan = progress.optimiser, self.plan
        entries = cut_log(self.folder / LOG, optimiser.step)
        schedule = Schedule(self.examples, plan.steps, plan.batch_size, seed)
        warmup = min(plan.warmup_steps, plan.steps // 2)
        names = [name for name in NAMES if name in plan.losses]
        with self.stop.listening():
            while optimiser.step < plan.steps and not progress.hopeless(plan.patience):
                began, step = time.perf_counter(), optimiser.step
                slots = [schedule[step * plan.batch_size + i] for i in range(plan.batch_size)]
                parts, found = self.gradients.step(
                    [s.tree for s in slots], self.places.vectors(optimiser.offsets), slots[0].totals
                )
                rate = rate_at(step, plan.steps, warmup, plan.learning_rate)
                optimiser.update(self.places.gradients(found), rate)
                self.places.hold(optimiser.offsets)
                told = [float(p) for name, p in zip(NAMES, parts, strict=True) if name in names]
                entries.append(entry_of(step + 1, names, told, rate, time.perf_counter() - began, plan.batch_size))
                append_log(self.folder / LOG, entries[-1])
                tell(step + 1, f"loss {recent_loss(entries, 5):.3g}")
                ends = step + 1 == plan.steps
                if ends or (step + 1) % plan.checkpoint_every == 0:
                    self._validate(progress)
                if ends or self.stop.raised or (step + 1) % plan.checkpoint_every == 0:
                    self._save(progress)
                if self.stop.raised and not ends:
                    raise Interrupted(f"stopped at step {step + 1} of {plan.steps}; run the same command to go on")
        offsets = optimiser.offsets
        if progress.best is not None:
            offsets = self._read(self.folder / BEST)[0]
        parameters = self.places.parameters
        best = progress.best or (None, None)
        return self.places.vectors(offsets), Record(
            parameters=parameters,
            steps=optimiser.step,
            seconds=round(sum(entry["seconds"] for entry in entries), 1),
            final_loss=recent_loss(entries, max(1, min(10, plan.steps // 4))),
            examples=len(self.examples),
            compute="float32",
            state_bytes={"master": 4 * parameters, "gradients": 4 * parameters, "optimizer": 8 * parameters},
            packed=self.gradients.packs,
            best_step=best[0],
            validation_loss=best[1],
        )

    def _validate(self, progress: Progress) -> None:
        if not len(self.validation):
            return
        trees = [self.validation.tree(i) for i in range(len(self.validation))]
        vectors, totals, size = self.places.vectors(progress.optimiser.offsets), count(trees), self.plan.batch_size
        loss = sum(
            float(self.gradients.step(trees[i : i + size], vectors, totals)[0].sum())
            for i in range(0, len(trees), size)
        )
        if progress.best is None or loss < progress.best[1]:
            _write(self.folder / BEST, progress.optimiser.offsets, {})
        progress.history.append((progress.optimiser.step, loss))

    def _save(self, progress: Progress) -> None:
        optimiser = progress.optimiser
        tensors = {
            f"{part}/{name}": tensor
            for part in ("offsets", "first", "second")
            for name, tensor in getattr(optimiser, part).items()
        }
        _write(self.folder / STATE, tensors, {"step": optimiser.step, "history": progress.history})

    def _resumed(self, start: Vectors | None) -> Progress:
        file = self.folder / STATE
        if not file.is_file():
            return Progress(AdamW.of(self.places.offsets(start)))
        tensors, told = self._read(file)
        offsets, first, second = (
            {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{part}/")}
            for part in ("offsets", "first", "second")
        )
        optimiser = AdamW(offsets, first, second, told["step"])
        return Progress(optimiser, [(step, loss) for step, loss in told["history"]])

    def _read(self, file: Path) -> tuple[Offsets, dict[str, Any]]:
        try:
            with safetensors.safe_open(file, "np") as opened:
                told = json.loads((opened.metadata() or {}).get("qia3", "{}"))
            return load_file(file), told
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise StorageError(
                f"{file} cannot be read: {first_line(error)}; delete {self.folder} to begin anew"
            ) from error


def _write(file: Path, tensors: dict[str, Floats], told: dict[str, Any]) -> None:
    """Whole or not at all."""
    scratch = file.with_name(f"{file.name}.part")
    save_file(tensors, scratch, metadata={"qia3": json.dumps(told)})
    scratch.replace(file)
