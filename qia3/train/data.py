"""A task's examples, read and checked before anything is loaded, so that a bad line costs no time."""

from __future__ import annotations

from dataclasses import dataclass

from qia3.config import Task
from qia3.runtime.examples import Example, read_examples


@dataclass(frozen=True)
class Data:
    """Examples of one task. `choices` hold for those without their own; None where every example brings its own, and for generation."""

    train: tuple[Example, ...]
    test: tuple[Example, ...]
    choices: tuple[str, ...] | None


def read_task(task: Task) -> Data:
    """Reads and checks both files of a task. Raises DataError with the file and the line."""
    train = read_examples(task.train, task.kind, task.choices)
    choices = task.choices or tuple(sorted({e.answer for e in train if e.choices is None}))
    test = read_examples(task.test, task.kind, choices)
    return Data(tuple(train), tuple(test), choices or None if task.kind == "classify" else None)
