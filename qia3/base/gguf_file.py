"""A GGUF file's index, read with every length checked against the file size before anything is allocated.

    "GGUF", u32 version (2 or 3), u64 number of tensors T, u64 number of entries E
    E entries     name, u32 type, value: a number of that type; a string; or u32 type, u64 count and as many of them
    T tensors     name, u32 number of dimensions, u64 each, u32 type, u64 offset
    padding to a multiple of general.alignment (32), and then the tensors' bytes, offsets counted from there

A string is u64 length and its bytes; numbers are little-endian. Worked example, the entry "a" = 5 as u32 (type 4), 17 bytes:
01 00 00 00 00 00 00 00  61  04 00 00 00  05 00 00 00.

transformers' reader of the vocabulary makes several Python objects per array element, so the number of elements is
limited, too. Of long lists and of lists of strings only the length is kept. A big-endian file is recognised and refused
with advice to convert it.
Source: docs/gguf.md of github.com/ggml-org/ggml.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from qia3.errors import BaseModelError

VERSIONS = (2, 3)
ALIGNMENT = 32
STRING, ARRAY = 8, 9
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}  # struct's letters
SIZES = {kind: struct.calcsize(f"<{letter}") for kind, letter in NUMBERS.items()}  # bytes by type
MOST_DIMENSIONS = 4
LONGEST_NAME = 1 << 16  # bytes
MOST_ELEMENTS = 1 << 22  # of all arrays together: three times the largest vocabularies with their merges
MOST_KEPT = 1 << 12  # elements of a list of numbers; lists per layer or per frequency are shorter


@dataclass(frozen=True)
class Array:
    """A list in the index: its length, and its elements if they are few and numbers."""

    count: int
    elements: tuple[int | float | bool, ...] | None = None


Value = int | float | bool | str | Array


@dataclass(frozen=True)
class Extent:
    """Where a tensor lies: `start` counts from the beginning of the file, `shape` is in torch's order, rows first."""

    file: Path
    start: int
    nbytes: int
    shape: tuple[int, ...]
    kind: int


@dataclass(frozen=True)
class Index:
    """What one file says: its entries by name, and where its tensors are."""

    values: dict[str, Value]
    tensors: dict[str, Extent]


def read_index(path: Path) -> Index:
    """Checks every extent that the index names against the file's length.

    Raises BaseModelError, in one line, for a broken or truncated file.
    """
    try:
        size = path.stat().st_size
        if size < 24:
            raise ValueError(f"it has {size} bytes")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(data, path).index()
    except OSError as error:
        raise BaseModelError(f"cannot read {path}: {error.strerror}") from error
    except _Foreign as error:
        raise BaseModelError(f"{path} {error}") from error
    except ValueError as error:
        raise BaseModelError(f"{path} is not a complete GGUF file ({error}); fetch it again") from error


class _Foreign(Exception):
    """An intact file of a kind that is not supported; the text says which, and what to do."""


class _Walk:
    """A position in the file that moves forward. Every method raises ValueError if the file ends too early."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.size, self.at, self.elements = data, path, len(data), 0, 0

    def index(self) -> Index:
        if self.take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self.u32()
        if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
            raise _Foreign(
                "is a big-endian GGUF file; "
                "take the little-endian one, or convert it: python -m gguf.scripts.gguf_convert_endian FILE little"
            )
        if version == 1:
            raise _Foreign("is a GGUF file of version 1, from 2023; convert the model again with a current llama.cpp")
        if version not in VERSIONS:
            raise ValueError(f"version {version} is not one of {VERSIONS}")
        tensors, entries = self.u64(), self.u64()
        values: dict[str, Value] = {}
        for _ in range(entries):
            name = self.name()
            if name in values:
                raise ValueError(f"it has the entry {_text(name)} twice")
            values[name] = self.value(self.u32())
        alignment = values.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise ValueError(f"its alignment {alignment} is invalid")
        listed = [self.tensor() for _ in range(tensors)]
        start = self.at + -self.at % alignment
        found = {
            name: Extent(self.path, start + offset, nbytes, shape, kind) for name, shape, kind, offset, nbytes in listed
        }
        if len(found) != len(listed):
            raise ValueError("two of its tensors have the same name")
        self.check_places(found, start)
        return Index(values, found)

    def check_places(self, found: dict[str, Extent], start: int) -> None:
        """Checks that tensors lie within the file and do not overlap."""
        end = start
        for name, extent in sorted(found.items(), key=lambda item: (item[1].start, item[1].nbytes)):
            if extent.start < end:
                raise ValueError(f"tensor {_text(name)} overlaps another tensor")
            end = extent.start + extent.nbytes
        if end > self.size:
            raise ValueError(f"it is truncated: its index needs {end} bytes, the file has {self.size}")

    def tensor(self) -> tuple[str, tuple[int, ...], int, int, int]:
        """Name, shape, type, offset and bytes of the next tensor. GGUF stores the fastest dimension first."""
        name, dimensions = self.name(), self.u32()
        if dimensions > MOST_DIMENSIONS:
            raise ValueError(f"tensor {_text(name)} has {dimensions} dimensions")
        shape = [self.u64() for _ in range(dimensions)]
        kind = self.u32()
        return name, tuple(reversed(shape)), kind, self.u64(), _bytes(name, shape, kind)

    def value(self, kind: int) -> Value:
        """A value of this type."""
        if kind == STRING:
            return self.take(self.u64()).decode("utf-8", "replace")
        if kind == ARRAY:
            return self.array()
        if kind not in NUMBERS:
            raise ValueError(f"an entry has the unknown type {kind}")
        number: int | float | bool = struct.unpack(f"<{NUMBERS[kind]}", self.take(SIZES[kind]))[0]
        return number

    def array(self) -> Array:
        inner, count = self.u32(), self.u64()
        self.elements += count
        if self.elements > MOST_ELEMENTS:
            raise ValueError(f"its lists have more than {MOST_ELEMENTS} elements")
        if inner == STRING:
            for _ in range(count):
                self.pass_over(self.u64())
            return Array(count)
        if inner not in NUMBERS:
            raise ValueError(f"a list has the unknown type {inner}")
        if count > MOST_KEPT:
            self.pass_over(count * SIZES[inner])
            return Array(count)
        return Array(count, struct.unpack(f"<{count}{NUMBERS[inner]}", self.take(count * SIZES[inner])))

    def name(self) -> str:
        """Reads a name. Raises ValueError if it is too long."""
        count = self.u64()
        if count > LONGEST_NAME:
            raise ValueError(f"a name has {count} bytes")
        return self.take(count).decode("utf-8", "replace")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def take(self, count: int) -> bytes:
        self.pass_over(count)
        return self.data[self.at - count : self.at]

    def pass_over(self, count: int) -> None:
        if count > self.size - self.at:
            raise ValueError(f"it is truncated: {count} bytes expected at byte {self.at}, the file has {self.size}")
        self.at += count


def _bytes(name: str, shape: list[int], kind: int) -> int:
    """Bytes of a tensor of this type. Raises ValueError."""
    import gguf

    try:
        block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise ValueError(f"tensor {_text(name)} has an unknown type, {kind}") from None
    if shape and shape[0] % block:
        raise ValueError(f"tensor {_text(name)} has rows of {shape[0]}, not a multiple of the block {block}")
    return math.prod(shape) // int(block) * int(nbytes)


def _text(name: str) -> str:
    """The name on one line, with control characters escaped."""
    return repr(name[:60])
