"""The one place where JSON and TOML are read: a value, or one line of an error of ours. Nothing else gets out.

The standard parsers raise more than their own error: a plain ValueError for an integer of more than 4,300 digits,
RecursionError for deep nesting, UnicodeDecodeError for bytes that are not text. A file may be an endless pipe, or
larger than memory. Each caller names its own error class and remedy; the rest is here.
"""

from __future__ import annotations

import json
import stat
import tomllib
from collections.abc import Callable
from datetime import date, time
from functools import partial
from pathlib import Path
from typing import Any

from qia3.errors import QIA3Error, first_line

Pairs = Callable[[list[tuple[str, Any]]], Any]  # makes an object from its keys and values

SHORT = 40  # characters of a value in a message
LARGEST = 1 << 28  # bytes of one document: far more than any manifest, tokenizer or table of examples here


def read_bytes(path: Path, error: type[QIA3Error], remedy: str = "", largest: int = LARGEST) -> bytes:
    """A regular file's bytes. Raises `error` if it is missing, not a regular file (a pipe, a device, a folder), or too
    large.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise error(f"{path} is not a regular file{_then(remedy)}")
        if facts.st_size > largest:
            raise error(f"{path} has {facts.st_size:,} bytes, more than the limit of {largest:,}{_then(remedy)}")
        return path.read_bytes()
    except OSError as reason:
        raise error(f"cannot read {path}: {reason.strerror or first_line(reason)}{_then(remedy)}") from reason
    except ValueError as reason:  # a name with a zero byte
        raise error(f"cannot read {str(path)!r}: {first_line(reason)}{_then(remedy)}") from reason


def read_text(path: Path, error: type[QIA3Error], remedy: str = "", largest: int = LARGEST) -> str:
    """A text file in UTF-8, with or without a byte order mark. Raises `error`."""
    try:
        return read_bytes(path, error, remedy, largest).decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(f"{path} is not UTF-8 text (byte {reason.start}){_then(remedy)}") from reason


def read_json(
    path: Path, error: type[QIA3Error], remedy: str = "", largest: int = LARGEST, pairs: Pairs | None = None
) -> Any:
    """The value of a JSON file. Raises `error`.

    `pairs` is `each_once` for files in our own formats, where a duplicate key would lose a value; elsewhere the last
    one counts, as usual.
    """
    text = read_text(path, error, remedy, largest)
    try:
        return parse_json(text, pairs)
    except ValueError as reason:
        raise error(f"{path} is not valid JSON: {reason}{_then(remedy)}") from reason


def read_json_table(
    path: Path, error: type[QIA3Error], remedy: str = "", largest: int = LARGEST, pairs: Pairs | None = None
) -> dict[str, Any]:
    """The same, for a file that must hold an object. Raises `error`."""
    value = read_json(path, error, remedy, largest, pairs)
    if not isinstance(value, dict):
        raise error(f"{path} holds {kind_of(value)}, but a JSON object is expected{_then(remedy)}")
    return value


def parse_json(text: str | bytes, pairs: Pairs | None = None) -> Any:
    """The value of a JSON text. Raises ValueError, in one line, and nothing else, whatever the text is.

    `pairs` makes an object from its keys and values, for callers that must notice duplicate keys.
    """
    return _parse(partial(json.loads, object_pairs_hook=pairs), text)


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's keys and values. Raises ValueError for a key that occurs twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name[:80]!r} occurs twice")
        found[name] = value
    return found


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text. Raises ValueError, in one line, and nothing else, whatever the text is."""
    found: dict[str, Any] = _parse(tomllib.loads, text)
    return found


def _parse(parser: Callable[[Any], Any], text: str | bytes) -> Any:
    try:
        return parser(text)
    except json.JSONDecodeError as reason:
        raise ValueError(f"{reason.msg} (line {reason.lineno}, column {reason.colno})") from reason
    except RecursionError as reason:
        raise ValueError("it is nested too deeply") from reason
    except UnicodeDecodeError as reason:
        raise ValueError(f"it is not UTF-8 text (byte {reason.start})") from reason
    except ValueError as reason:
        long_number = str(reason).startswith("Exceeds the limit")  # sys.set_int_max_str_digits
        raise ValueError("a number has too many digits" if long_number else first_line(reason)) from reason


def kind_of(value: Any) -> str:
    """The type of a JSON value, in JSON's terms."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "null")


def given(value: Any) -> str:
    """A value of a TOML document, in a few words."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float() | str():
            text = repr(value)
            return text if len(text) <= SHORT else f"{text[:SHORT]}..."
        case list() | tuple():
            return "a list" if value else "an empty list"
        case dict():
            return "a table"
        case date() | time():
            return "a date or a time"
    return "that"


def _then(remedy: str) -> str:
    return f"; {remedy}" if remedy else ""
