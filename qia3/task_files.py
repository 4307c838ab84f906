"""One [[task]] table for many tasks: one task per file that its `train` matches.

    [[task]]
    name = "*"                       # the part of each path that the star matches is the task's name
    kind = "classify"
    train = "tasks/*.train.jsonl"    # tasks/bikes.train.jsonl, tasks/films.train.jsonl: the tasks bikes and films
    test = "tasks/*.test.jsonl"

The star occurs once in `train`, for a part of one file or folder name, and may occur in the same way in `test` and in
`validation` and `init_adapter` of [task.training]. A task that also has a table of its own uses only that table. Tasks
are in alphabetical order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qia3.errors import ConfigError

STAR = "*"
FILES, TRAINING_FILES = ("train", "test"), ("validation", "init_adapter")


def task_files(document: dict[str, Any], here: Path) -> list[int]:
    """Replaces each such table in `document` by the tasks that it matches. Returns, for each task, the number of the
    table that it came from.

    Raises ConfigError for an invalid pattern, or one that matches nothing.
    """
    tables = document.get("task")
    if not isinstance(tables, list):
        return []
    named = {table["name"] for table in tables if isinstance(table, dict) and isinstance(table.get("name"), str)}
    found = [(i, made) for i, table in enumerate(tables) for made in _of(table, here, named)]
    document["task"] = [table for _, table in found]
    return [i for i, _ in found]


def _of(table: Any, here: Path, named: set[str]) -> list[Any]:
    if not isinstance(table, dict) or table.get("name") != STAR:
        return [table]
    pattern = table.get("train")
    if not isinstance(pattern, str) or pattern.count(STAR) != 1 or set(pattern) & set("?["):
        raise ConfigError(
            f'a task called "{STAR}" needs exactly one star in `train`, such as "tasks/{STAR}.jsonl", for one '
            "task per file"
        )
    names = sorted(set(_names(pattern, here)) - named)
    if not names:
        raise ConfigError(f"no file in {here} matches train = {pattern!r}")
    return [_filled(table, name) for name in names]


def _names(pattern: str, here: Path) -> list[str]:
    """The parts of the paths that the star matches."""
    path = Path(pattern)
    start = Path(path.anchor) if path.is_absolute() else here
    inner = path.relative_to(path.anchor).as_posix() if path.is_absolute() else path.as_posix()
    before, after = map(re.escape, inner.split(STAR))
    shape = re.compile(f"{before}([^/]+){after}")
    there = (file.relative_to(start).as_posix() for file in start.glob(inner) if file.is_file())
    return [match[1] for file in there if (match := shape.fullmatch(file))]


def _filled(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The table with the star replaced by `name`."""
    made = dict(table) | {"name": name} | {key: _put(table[key], name) for key in FILES if key in table}
    training = table.get("training")
    if isinstance(training, dict):
        made["training"] = training | {k: _put(training[k], name) for k in TRAINING_FILES if k in training}
    return made


def _put(value: Any, name: str) -> Any:
    return value.replace(STAR, name) if isinstance(value, str) else value
