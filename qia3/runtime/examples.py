"""Files of examples: JSON Lines, one object a line, read the same way for training and for scoring.

    classify   {"text": "it's freezing in here", "label": "temperature"}
    generate   {"text": "kill the lights upstairs", "target": "lights | upstairs | off"}
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from qia3.errors import DataError

ANSWER = {"classify": "label", "generate": "target"}


@dataclass(frozen=True)
class Example:
    """What is said and what should come back."""

    text: str
    answer: str


def read_examples(path: Path, kind: str, choices: Collection[str] | None = None) -> list[Example]:
    """Raises DataError with the file and the line: not JSON, a missing key, a label that is not one of `choices`, no example at all."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    found = [_example(line, f"{path}, line {i}", ANSWER[kind], choices) for i, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"{path} holds no examples: one JSON object a line, with 'text' and {ANSWER[kind]!r}")
    return found


def _example(line: str, where: str, key: str, choices: Collection[str] | None) -> Example:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg}, column {error.colno})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON object is expected, with 'text' and {key!r}")
    for name in ("text", key):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise DataError(f"{where}: {name!r} is missing, empty or no text; the line has {', '.join(map(repr, row)) or 'no keys'}")
    if key == "label" and choices and row[key] not in choices:
        raise DataError(f"{where}: label {row[key]!r} is not one of {', '.join(choices)}")
    return Example(row["text"], row[key])
