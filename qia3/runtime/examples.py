r"""Files of examples: JSON Lines, one object a line, read the same way for training and for scoring.

    classify   {"text": "it's freezing in here", "label": "temperature"}
    generate   {"text": "kill the lights upstairs", "target": "lights | upstairs | off"}

A question whose answers are its own brings them along; a line without them is asked with the task's:

    classify   {"text": "What melts at 0 °C?", "label": "ice", "choices": ["iron", "ice", "salt"]}

Lines end at \n (or \r\n) and nowhere else: U+2028 and its kin, at which str.splitlines cuts too, are legal inside a
JSON string.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qia3.errors import DataError

ANSWER = {"classify": "label", "generate": "target"}
SHOWN = 5  # complaints in one message


@dataclass(frozen=True)
class Example:
    """What is said and what should come back; `choices` are the answers to this one alone, None where the task's hold."""

    text: str
    answer: str
    choices: tuple[str, ...] | None = None


def read_examples(path: Path, kind: str, choices: Collection[str] | None = None) -> list[Example]:
    """Raises DataError with the file and each bad line: not JSON, a missing key, a label that is not one of the
    choices; or no example.

    `choices` hold for lines without their own. None: not known yet, any label will do. An empty one: the task has none,
    each line needs its own.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    read = [
        _example(line, f"{path}, line {i}", ANSWER[kind], choices) for i, line in enumerate(lines, 1) if line.strip()
    ]
    found = [row for row in read if isinstance(row, Example)]
    if bad := [row for row in read if isinstance(row, str)]:
        more = f"; and {len(bad) - SHOWN} more lines" if len(bad) > SHOWN else ""
        raise DataError("; ".join(bad[:SHOWN]) + more)
    if not found:
        raise DataError(f"{path} holds no examples: one JSON object a line, with 'text' and {ANSWER[kind]!r}")
    return found


def _example(line: str, where: str, key: str, choices: Collection[str] | None) -> Example | str:
    """The example, or what is wrong with the line."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return f"{where}: not JSON ({error.msg}, column {error.colno})"
    except RecursionError:
        return f"{where}: not JSON that can be read (nested too deeply)"
    if not isinstance(row, dict):
        return f"{where}: a JSON object is expected, with 'text' and {key!r}"
    for name in ("text", key):
        if not isinstance(row.get(name), str) or not row[name].strip():
            return (
                f"{where}: {name!r} is missing, empty or no text; the line has {', '.join(map(repr, row)) or 'no keys'}"
            )
        if not _encodes(row[name]):
            return f"{where}: {name!r} holds half of a surrogate pair, which is no character"
    own = _own_choices(row.get("choices")) if key == "label" else None
    if isinstance(own, str):
        return f"{where}: {own}"
    allowed = choices if own is None else own
    if key == "label" and allowed is not None and row[key] not in allowed:
        if not allowed:
            return f"{where}: 'choices' is missing: this task has none, so each line brings its own"
        return f"{where}: label {row[key]!r} is not one of {', '.join(allowed)}"
    return Example(row["text"], row[key], own)


def _own_choices(given: Any) -> tuple[str, ...] | str | None:
    """A line's own choices, what is wrong with them, or None."""
    if given is None:
        return None
    if not isinstance(given, list) or not all(isinstance(c, str) and c.strip() and _encodes(c) for c in given):
        return "'choices' is a list of texts, none of them empty"
    if len(set(given)) < 2 or len(set(given)) < len(given):
        return f"'choices' needs two answers or more, all different; it has {', '.join(map(repr, given)) or 'none'}"
    return tuple(given)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
