r"""Files of examples: JSON Lines, one object per line, read the same way for training and for scoring.

    classify   {"text": "it's freezing in here", "label": "temperature"}
    generate   {"text": "kill the lights upstairs", "target": "lights | upstairs | off"}
    token-classification   {"tokens": ["Anna", "lives", "in", "Rome"], "tags": ["B-PER", "O", "O", "B-LOC"]}

A question with its own answers lists them; a line without `choices` is asked with the task's:

    classify   {"text": "What melts at 0 °C?", "label": "ice", "choices": ["iron", "ice", "salt"]}

A question with several right answers has `labels`, as tasks of BIG-bench do. Any of them counts as right. The first is
trained as the right one; the others are never trained as wrong:

    classify   {"text": "Name a noble gas.", "labels": ["neon", "argon"], "choices": ["neon", "iron", "argon"]}

Lines end at \n (or \r\n) and nowhere else: U+2028 and similar characters, where str.splitlines also splits, are legal
inside a JSON string.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from qia3.errors import QUOTED, DataError, quoted
from qia3.parse import kind_of, parse_json, read_text
from qia3.tagged import wrong_tags

ANSWER = {"classify": "label", "generate": "target", "token-classification": "tags"}
READ = ("text", "label", "labels", "target", "choices", "tokens", "tags")
SHOWN = 5  # complaints in one message
NAMED = 20  # labels, choices or keys named in one complaint


@dataclass(frozen=True)
class Place:
    """The file and line of an example."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


@dataclass(frozen=True)
class Example:
    """A text and its right answer.

    `choices` are this example's own answers, or None if the task's apply; `also` are other right answers. `words` are
    the words with a label each; text and answer are then words and labels joined by spaces.
    """

    text: str
    answer: str
    choices: tuple[str, ...] | None = None
    also: tuple[str, ...] = ()
    place: Place | None = field(default=None, compare=False, repr=False)
    words: tuple[str, ...] = ()

    @property
    def tags(self) -> tuple[str, ...]:
        """One label per word."""
        return tuple(self.answer.split(" ")) if self.words else ()

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels that the example uses for a text, or for words."""
        return self.tags or self.right

    @property
    def right(self) -> tuple[str, ...]:
        """Every right answer, the trained one first."""
        return (self.answer, *self.also)

    def content(self) -> list[Any]:
        """Its content, without its place in a file."""
        return [self.text, self.answer, self.choices, self.also, *([self.words] if self.words else [])]


def read_examples(path: Path, kind: str, choices: Collection[str] | None = None) -> list[Example]:
    """Raises DataError with the file and each bad line (not JSON, a missing key, a label that is not one of the
    choices), or if there are no examples.

    `choices` apply to lines without their own. None: not known yet, any label is accepted. Empty: the task has none, so
    each line needs its own.
    """
    lines = read_text(path, DataError).split("\n")
    read = [
        _example(line, Place(str(path), i), ANSWER[kind], choices) for i, line in enumerate(lines, 1) if line.strip()
    ]
    found = [row for row in read if isinstance(row, Example)]
    if bad := [row for row in read if isinstance(row, str)]:
        raise DataError(listed(bad))
    if not found:
        raise DataError(
            f"{path} holds no examples; write one JSON object per line, with {_texts(ANSWER[kind])!r} and "
            f"{ANSWER[kind]!r}"
        )
    return found


def listed(complaints: Sequence[str]) -> str:
    """The first few complaints, and how many more there are."""
    more = f"; and {len(complaints) - SHOWN} more lines" if len(complaints) > SHOWN else ""
    return "; ".join(complaints[:SHOWN]) + more


def contradiction(examples: Iterable[Example]) -> str | None:
    """One line about texts that occur twice with disjoint answers; None if there are none."""
    seen: dict[tuple[str, tuple[str, ...] | None], Example] = {}
    pairs = []
    for example in examples:
        first = seen.setdefault((example.text, example.choices), example)
        if not set(first.right) & set(example.right):
            pairs.append((first, example))
    if not pairs:
        return None
    one, other = pairs[0]
    count = f"{len(pairs)} lines repeat a text" if len(pairs) > 1 else "a line repeats a text"
    return (
        f"{count} with different answers: {one.text[:40]!r} is {quoted(one.answer)} ({one.place}) and "
        f"{quoted(other.answer)} ({other.place})"
    )


def _example(line: str, place: Place, key: str, choices: Collection[str] | None) -> Example | str:
    """The example, or what is wrong with the line."""
    doubled: list[str] = []
    try:
        row = parse_json(line, lambda pairs: _row(pairs, doubled))
    except ValueError as error:
        cause = error.__cause__
        reason = f"{cause.msg}, column {cause.colno}" if isinstance(cause, json.JSONDecodeError) else error
        return f"{place}: not JSON ({reason})"
    if not isinstance(row, dict):
        return f"{place}: a JSON object is expected, with {_texts(key)!r} and {key!r}"
    wrong = f"{quoted(doubled[0])} occurs twice" if doubled else _wrong(row, key, choices)
    if wrong:
        return f"{place}: {wrong}"
    if key == "tags":
        return Example(" ".join(row["tokens"]), " ".join(row["tags"]), place=place, words=tuple(row["tokens"]))
    right = row["labels"] if "labels" in row and key == "label" else [row[key]]
    own = row.get("choices") if key == "label" else None
    return Example(row["text"], right[0], None if own is None else tuple(own), tuple(right[1:]), place)


def _texts(key: str) -> str:
    """The key of what is asked, beside that of what is answered."""
    return "tokens" if key == "tags" else "text"


def _row(pairs: list[tuple[str, Any]], doubled: list[str]) -> dict[str, Any]:
    """An object's keys and values; collects keys that occur twice."""
    names = [name for name, _ in pairs]
    doubled += [name for name in READ if names.count(name) > 1]
    return dict(pairs)


def _wrong(row: dict[str, Any], key: str, choices: Collection[str] | None) -> str | None:
    """What is wrong with a line's values, or None."""
    if key == "tags":
        return wrong_tags(row, choices)
    several = "labels" if key == "label" and "labels" in row else None
    if several and key in row:
        return f"it has both {key!r} and 'labels'; use one of them"
    for name in ("text", *(() if several else (key,))):
        if wrong := _wrong_text(row, name):
            return wrong
    if several and (wrong := _wrong_list(row["labels"], "labels", 1)):
        return wrong
    if key != "label":
        return None
    own = row.get("choices")
    if own is not None and (wrong := _wrong_list(own, "choices", 2)):
        return wrong
    allowed = choices if own is None else own
    if allowed is None:
        return None
    if not allowed:
        return "'choices' is missing: this task has none, so each line needs its own"
    strange = [label for label in row.get("labels", [row.get("label")]) if label not in allowed]
    return f"label {quoted(strange[0])} is not one of {_named(allowed, _bare)}" if strange else None


def _bare(text: str) -> str:
    """A short text without quotes."""
    return text if len(text) <= QUOTED and text.isprintable() else quoted(text)


def _named(texts: Collection[str], form: Callable[[str], str] = quoted) -> str:
    """The first few texts."""
    first = [form(text) for text in islice(texts, NAMED)]
    return ", ".join([*first, f"... ({len(texts)} in all)"] if len(texts) > len(first) else first)


def _wrong_text(row: dict[str, Any], name: str) -> str | None:
    has = _named(row) or "no keys"
    if name not in row:
        return f"{name!r} is missing; the line has {has}"
    value = row[name]
    if not isinstance(value, str):
        return f"{name!r} is {kind_of(value)}, not a string; put it in quotes"
    if not value.strip():
        return f"{name!r} is empty"
    return None if _encodes(value) else f"{name!r} holds half of a surrogate pair, which is not a character"


def _wrong_list(given: Any, name: str, least: int) -> str | None:
    if not isinstance(given, list) or not all(isinstance(c, str) and c.strip() and _encodes(c) for c in given):
        return f"{name!r} must be a list of non-empty strings"
    if len(set(given)) < least or len(set(given)) < len(given):
        needed = "two or more answers" if least == 2 else "one or more answers"
        return f"{name!r} needs {needed}, all different; it has {_named(given) or 'none'}"
    return None


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
