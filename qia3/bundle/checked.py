"""JSON into frozen dataclasses and back, checked on the way in.

The annotations of a dataclass define everything: bool, int, float, str, Literal, T | None, tuple[T, ...], tuple[A, B],
Mapping[str, T] and other dataclasses. `Annotated` adds a Rule that the value must pass, or a Codec that reads and
writes it. Nothing is converted, except a whole number where a float is expected. Every float must be finite, every
string valid UTF-8, and true or false is not accepted as a whole number.

A key without a field was written by a later version: it is kept in `later` and written back. A field with its default
value is not written.

    decode(Region, {"name": "cos", "bytes": -4})    ValueError: bytes is not a whole number from 0 to ...; offset is missing

pydantic would do this too, and takes 150 ms and 10 MB to import, too much for a single file on a device.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from qia3.errors import shown
from qia3.parse import kind_of

T = TypeVar("T")
Reader = Callable[[Any, str, list[str]], Any]  # reads a value at a place in the JSON; appends problems to the list
SHOWN = 5  # problems of one document that are reported
LATER = "later"
WORDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a string of UTF-8 text"}


@dataclass(frozen=True)
class Rule:
    """A condition on a value beside its type, as a test and in words."""

    fits: Callable[[Any], bool]
    words: str


@dataclass(frozen=True)
class Codec:
    """How a value is read (raising ValueError of one line) and written where its annotation does not say."""

    read: Callable[[Any], Any]
    write: Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A JSON object. `later` holds the keys that a later version wrote."""

    later: Mapping[str, Any] = field(default_factory=dict)


def decode(kind: type[T], value: Any) -> T:
    """Raises ValueError of one line that names what is wrong, and where."""
    bad: list[str] = []
    found: T = _reader(cast(Hashable, kind))(value, "", bad)
    if bad:
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise ValueError("; ".join(bad[:SHOWN]) + more)
    return found


def encode(value: Any) -> Any:
    """The value as JSON types."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _written(value, f) for f in fields(value) if f.name != LATER and _has_news(value, f)} | dict(
            getattr(value, LATER, {})
        )
    if isinstance(value, Mapping):
        return {key: encode(entry) for key, entry in value.items()}
    return [encode(entry) for entry in value] if isinstance(value, list | tuple) else value


def plain(value: Any) -> Any:
    """`value` unchanged. Raises ValueError if it is not standard JSON."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except ValueError as error:
        raise ValueError("holds a number that is not finite, or half a surrogate pair") from error
    return value


def _written(value: Any, of: Field[Any]) -> Any:
    content, codec = getattr(value, of.name), _codec(_hints(cast(Hashable, type(value)))[of.name])
    return encode(content) if codec is None else codec.write(content)


def _has_news(value: Any, of: Field[Any]) -> bool:
    default = of.default if of.default_factory is MISSING else of.default_factory()
    return default is MISSING or getattr(value, of.name) != default


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _codec(kind: Any) -> Codec | None:
    notes = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    return next((note for note in notes if isinstance(note, Codec)), None)


@cache
def _reader(kind: Any) -> Reader:
    """The reader for this annotation. If it appends a problem to the list, what it returns is not used."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        codec = _codec(kind)
        rules = [note for note in arguments[1:] if isinstance(note, Rule)]
        return _ruled(_reader(arguments[0]), rules) if codec is None else _coded(codec)
    if origin in (Union, UnionType):
        inner = _reader(next(argument for argument in arguments if argument is not NoneType))
        return lambda value, at, bad: None if value is None else inner(value, at, bad)
    if origin is Literal:
        return _ruled(_scalar(str), [Rule(arguments.__contains__, " or ".join(map(repr, arguments)))])
    if origin is tuple:
        return _tuple(arguments)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(_reader(arguments[1]))
    return _object(kind) if is_dataclass(kind) else _scalar(kind)


def _ruled(inner: Reader, rules: Sequence[Rule]) -> Reader:
    def read(value: Any, at: str, bad: list[str]) -> Any:
        before = len(bad)
        found = inner(value, at, bad)
        if len(bad) == before:
            bad += [f"{_place(at)} is not {rule.words}" for rule in rules if not rule.fits(found)]
        return found

    return read


def _coded(codec: Codec) -> Reader:
    def read(value: Any, at: str, bad: list[str]) -> Any:
        try:
            return codec.read(value)
        except ValueError as error:
            bad.append(f"{_place(at)} {error}")

    return read


def _tuple(arguments: tuple[Any, ...]) -> Reader:
    alike = arguments[-1] is Ellipsis
    readers = [_reader(kind) for kind in arguments if kind is not Ellipsis]
    words = "a list" if alike else f"a list of {len(arguments)}"

    def read(value: Any, at: str, bad: list[str]) -> Any:
        if not isinstance(value, list) or not (alike or len(value) == len(readers)):
            bad.append(f"{_place(at)} is not {words}")
            return ()
        each = readers * len(value) if alike else readers
        return tuple(reads(v, f"{at}[{i}]", bad) for i, (reads, v) in enumerate(zip(each, value, strict=True)))

    return read


def _mapping(inner: Reader) -> Reader:
    key_of = _scalar(str)

    def read(value: Any, at: str, bad: list[str]) -> Any:
        if not isinstance(value, dict):
            bad.append(f"{_place(at)} is {kind_of(value)} instead of an object")
            return {}
        return {key_of(key, at, bad): inner(entry, _below(at, key), bad) for key, entry in value.items()}

    return read


def _object(kind: Any) -> Reader:
    hints, own = _hints(kind), [f for f in fields(kind) if f.name != LATER]
    readers = {f.name: _reader(hints[f.name]) for f in own}
    required = [f.name for f in own if f.default is MISSING and f.default_factory is MISSING]

    def read(value: Any, at: str, bad: list[str]) -> Any:
        if not isinstance(value, dict):
            bad.append(f"{_place(at)} is {kind_of(value)} instead of an object")
            return None
        before, below = len(bad), f"{at}." if at else ""
        found = {key: readers[key](entry, f"{below}{key}", bad) for key, entry in value.items() if key in readers}
        bad += [f"{below}{key} is missing" for key in required if key not in value]
        if len(found) < len(value):
            try:
                found[LATER] = plain({key: entry for key, entry in value.items() if key not in readers})
            except ValueError as error:
                bad.append(f"{_place(at)} {error}")
        return kind(**found) if len(bad) == before else None

    return read


def _scalar(kind: Any) -> Reader:
    """bool, int, float or str, and not one of the other three."""
    words = WORDS[kind]

    def read(value: Any, at: str, bad: list[str]) -> Any:
        if kind is float and type(value) is int and abs(value) < 2**1000:
            value = float(value)
        fits = type(value) is kind
        if kind is float:
            fits = fits and math.isfinite(value)
        if kind is str:
            fits = fits and (value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value))
        if not fits:
            bad.append(f"{_place(at)} is not {words}")
        return value

    return read


def _below(at: str, key: str) -> str:
    name = shown(key) if len(key) <= 80 else f"{shown(key[:80])}…"
    return f"{at}.{name}" if at else name


def _place(at: str) -> str:
    return at or "the content"
