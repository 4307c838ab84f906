"""Describes what is wrong with a build file in its own terms: the key, its line, and the nearest valid key.

pydantic gives a place as a path, ("task", 1, "prompt"), and TOML's parser keeps no line numbers. So statements are
found by trying: a line begins one if everything before it is a complete TOML document. Each statement is a header or an
assignment, and both tell their path:

    line 5   [[task]]                      ("task", 0)
    line 6   name = "intents"              ("task", 0, "name")
    line 8   [task.training]               ("task", 0, "training")
    line 9   steps = 70                    ("task", 0, "training", "steps")

A path without a line of its own (a key inside an inline table) gets the line of the longest path that is a prefix of it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from qia3.parse import given, parse_toml

Path = tuple[str | int, ...]
KEY = "[key]"  # how pydantic marks an error in a table's key
# type of a pydantic error: what is expected there, in TOML's terms
EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a table",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt:,}",
    "greater_than_equal": "{ge:,} or more",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_type": "a whole number",
    "less_than": "less than {lt:,}",
    "less_than_equal": "{le:,} or less",
    "literal_error": "{expected}",
    "model_type": "a table",
    "path_type": "the name of a file, in quotes,",
    "string_type": "a text in quotes",
    "too_short": "a list of at least {min_length}",
    "tuple_type": "a list",
}
TASKS = ("task",)
HEADER = re.compile(r"^\s*(\[\[?)(.+?)\]\]?\s*(#.*)?$")


def complaints(errors: Sequence[Mapping[str, Any]], text: str, known: Mapping[str, Sequence[str]]) -> list[str]:
    """One clause per error of pydantic. `known` are the keys of each table by its name, "" for the file itself.

    A list that is too short only because its items are wrong is not reported again.
    """
    lines = dict(statements(text))
    places = [tuple(e["loc"]) for e in errors]
    follows = [e["type"] == "too_short" and any(_goes_on(p, tuple(e["loc"])) for p in places) for e in errors]
    return [_complaint(e, lines, known) for e, second in zip(errors, follows, strict=True) if not second]


def worded(error: Mapping[str, Any]) -> str:
    """A pydantic error in the build file's terms."""
    expected = EXPECTED.get(error["type"])
    if expected is None:
        return str(error["msg"]).removeprefix("Value error, ")
    if tuple(error["loc"]) == TASKS:
        expected = "one [[task]] or more"
    return f"{expected.format_map(error.get('ctx', {}))} is expected, not {given(error['input'])}"


def nearest(key: str, known: Sequence[str]) -> str:
    """The nearest of `known`, or all of them, as the end of a message."""
    if not known:
        return "; no such names are defined"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def statements(text: str) -> Iterator[tuple[Path, int]]:
    """The path and the line, counted from one, of each table and key of a valid TOML document."""
    rows = text.splitlines(keepends=True)
    starts = [i for i, row in enumerate(rows) if row.strip() and not row.lstrip().startswith("#") and _whole(rows[:i])]
    table: Path = ()
    count: dict[Path, int] = {}
    for start, end in pairwise([*starts, len(rows)]):
        header = HEADER.match(rows[start].rstrip("\r\n"))
        if header:
            table = _table(_keys(f"{header[2]} = 0"), header[1] == "[[", count)
            if table[-1] == 0:
                yield table[:-1], start + 1  # the array as a whole is where its first table is
            yield table, start + 1
        else:
            for path in _paths(parse_toml("".join(rows[start:end]))):
                yield (*table, *path), start + 1


def _table(keys: Path, several: bool, count: dict[Path, int]) -> Path:
    """The path of a header's table: parts that are arrays of tables mean their last table so far."""
    path: Path = ()
    for i, key in enumerate(keys, 1):
        path = (*path, key)
        if several and i == len(keys):
            count[path] = count.get(path, -1) + 1
        if path in count:
            path = (*path, count[path])
    return path


def _whole(rows: Sequence[str]) -> bool:
    try:
        parse_toml("".join(rows))
    except ValueError:
        return False
    return True


def _keys(assignment: str) -> Path:
    """("a", "b") of `a.b = 0`."""
    return max(_paths(parse_toml(assignment)), key=len)


def _paths(value: Any) -> Iterator[Path]:
    """Every path to a key of nested tables."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (key,)
            yield from ((key, *path) for path in _paths(inner))


def _complaint(error: Mapping[str, Any], lines: Mapping[Path, int], known: Mapping[str, Sequence[str]]) -> str:
    path = tuple(part for part in error["loc"] if part != KEY)
    named = [part for part in path if isinstance(part, str)]
    dotted, key = ".".join(map(str, path)), named[-1] if named else ""
    place = next((path[:n] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    where = "" if place is None else f" (line {lines[place]})"
    if error["type"] == "extra_forbidden":
        beside = known.get(named[-2] if len(named) > 1 else "", known[""])
        return f"unknown key {dotted!r}{where}{nearest(key, beside)}"
    if error["type"] == "missing":
        return f"{dotted!r} is missing" + (f" in the table of line {lines[place]}" if place else "")
    return f"{dotted}{where}: {worded(error)}" if dotted else worded(error)


def _goes_on(path: Path, start: Path) -> bool:
    return len(path) > len(start) and path[: len(start)] == start
