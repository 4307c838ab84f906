"""A task's examples, read and checked before anything is loaded, so that a bad line costs no time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qia3.bundle.task import LABELLED
from qia3.config import Task
from qia3.errors import ConfigError, DataError, quoted
from qia3.examples import Example, contradiction, read_examples
from qia3.progress import say
from qia3.recipe import Train


@dataclass(frozen=True)
class Data:
    """Examples of one task.

    `choices` apply to examples without their own; None if every example has its own, and for generation.

    `validation` is held out from training, to keep the best state.
    """

    train: tuple[Example, ...]
    test: tuple[Example, ...]
    choices: tuple[str, ...] | None
    validation: tuple[Example, ...] = ()

    def first(self, count: int) -> tuple[Example, ...]:
        """The first `count` examples of each part."""
        return (*self.train[:count], *self.test[:count], *self.validation[:count])


def read_task(task: Task, settings: Train | None = None) -> Data:
    """Reads and checks the files of a task.

    Raises DataError with file and line, and ConfigError if nothing is left to train or validate on.
    """
    return read_files(task.name, task.kind, task.train_files, task.test, task.choices, settings)


def read_files(
    name: str,
    kind: str,
    files: Sequence[Path],
    test_file: Path | None,
    asked: Sequence[str] | None,
    settings: Train | None,
    remedy: str = "list all answers (choices) in the [[task]]",
) -> Data:
    """The same for files that no build file names. `asked`: all answers there are; `remedy`: how to give them."""
    read = [example for file in files for example in read_examples(file, kind, asked)]
    choices = tuple(asked or sorted({label for e in read if e.choices is None for label in e.labels}))
    if kind in LABELLED and len(choices) == 1:
        raise DataError(
            f"task {name!r}: every example has the same answer {quoted(choices[0])} ({', '.join(map(str, files))}); "
            f"add examples with other answers, or {remedy}"
        )
    test = [] if test_file is None else read_examples(test_file, kind, choices)
    for part in (read, test):
        if remark := contradiction(part):
            say(f"warning: task {name!r}: {remark}")
    held_back: Sequence[Example] = ()
    match settings.validation if settings else None:
        case float(fraction) if files:  # a mixture validates on what its tasks hold out
            read, held_back = split(read, fraction, name)
        case Path() as file:
            held_back = read_examples(file, kind, choices)
    return Data(tuple(read), tuple(test), choices or None if kind in LABELLED else None, tuple(held_back))


def split(examples: Sequence[Example], fraction: float, name: str) -> tuple[list[Example], list[Example]]:
    """Splits examples into those to train on and those to validate on.

    The text's hash decides: a text stays on its side whatever is added to the file.
    """
    kept: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        draw = int.from_bytes(hashlib.sha256(example.text.encode()).digest()[:8], "big") / 2**64
        kept[draw < fraction].append(example)
    if not kept[0] or not kept[1]:
        raise ConfigError(
            f"validation = {fraction:g} splits the {len(examples)} examples of task {name!r} into "
            f"{len(kept[0])} to train on and {len(kept[1])} "
            f"to validate on; change the fraction or name a file"
        )
    return kept
