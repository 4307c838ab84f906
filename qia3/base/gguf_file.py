"""A GGUF file's index, walked with every length checked against the file before anybody allocates by it.

    "GGUF", u32 version (2 or 3), u64 number of tensors T, u64 number of entries E
    E entries     name, u32 type, value: a number of that type; a string; or u32 type, u64 count and as many of them
    T tensors     name, u32 number of dimensions, u64 each, u32 type, u64 offset
    padding to a multiple of general.alignment (32), and then the tensors' bytes, offsets counted from there

A string is u64 length and its bytes; numbers have the low byte first. Worked example, the entry "a" = 5 as u32 (type 4), 17 bytes:
01 00 00 00 00 00 00 00  61  04 00 00 00  05 00 00 00.

The reader that loads the file afterwards makes several Python objects for each element of an array, so their number is
bounded, too. And a model is built by the sizes that entries name: one with a changed block_count would have billions of
layers. So there are no more layers than tensors, and nothing is wider than the widest of them.

Source: docs/gguf.md of github.com/ggml-org/ggml.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

from qia3.errors import BaseModelError

VERSIONS = (2, 3)
ALIGNMENT = 32
STRING, ARRAY = 8, 9
WHOLE = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 10: "Q", 11: "q"}  # whole numbers, by struct's letters
FIXED = {
    kind: struct.calcsize(f"<{letter}") for kind, letter in (WHOLE | {6: "f", 7: "?", 12: "d"}).items()
}  # bytes by type
LAYERS = b".block_count"
WIDTHS = (
    ".embedding_length",
    ".feed_forward_length",
    ".vocab_size",
    "head_count",
    ".head_count_kv",
    ".key_length",
    ".value_length",
)
MOST_DIMENSIONS = 4
LONGEST_NAME = 1 << 16  # bytes
MOST_ELEMENTS = 1 << 22  # of all arrays together: three times the largest vocabularies with their merges


def check_gguf(path: Path) -> None:
    """Compares every extent that the index names with the file's length.

    Raises BaseModelError on a broken or cut file, with one line.
    """
    try:
        size = path.stat().st_size
        if size < 24:
            raise ValueError(f"it has {size} bytes")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Walk(data).check()
    except OSError as error:
        raise BaseModelError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BaseModelError(f"{path} is not a whole GGUF file ({error}); fetch it again") from error


class _Walk:
    """A position in the file that moves forward. Every method raises ValueError where the file ends too early."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.size, self.at, self.elements, self.widest = data, len(data), 0, 0, 0

    def check(self) -> None:
        if self.take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version, tensors, entries = self.u32(), self.u64(), self.u64()
        if version not in VERSIONS:
            raise ValueError(f"version {version} is not one of {VERSIONS}")
        numbers: dict[bytes, int] = {}
        for _ in range(entries):
            name, kind = self.string(), self.u32()
            start = self.at
            self.skip(kind)
            if kind in WHOLE:
                numbers[name] = struct.unpack_from(f"<{WHOLE[kind]}", self.data, start)[0]
        alignment = numbers.get(b"general.alignment", ALIGNMENT)
        if alignment <= 0 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {alignment}")
        extents = [self.tensor() for _ in range(tensors)]
        _check_sizes(numbers, len(extents), self.widest)
        self.lay_out(extents, self.at + -self.at % alignment)

    def lay_out(self, extents: list[tuple[int, int, bytes]], start: int) -> None:
        """Tensors (offset, bytes, name) lie within the file, and no two in the same place."""
        end = start
        for offset, nbytes, name in sorted(extents):
            if start + offset < end:
                raise ValueError(f"tensor {_text(name)} lies in another one's place")
            end = start + offset + nbytes
        if end > self.size:
            raise ValueError(f"it is cut short: its index needs {end} bytes, the file has {self.size}")
        if len({name for _, _, name in extents}) != len(extents):
            raise ValueError("two of its tensors have one name")

    def tensor(self) -> tuple[int, int, bytes]:
        """Offset, bytes and name of the next tensor."""
        name, dimensions = self.string(), self.u32()
        if dimensions > MOST_DIMENSIONS:
            raise ValueError(f"tensor {_text(name)} has {dimensions} dimensions")
        shape = [self.u64() for _ in range(dimensions)]
        self.widest = max(self.widest, *shape, 0)
        nbytes = _bytes(name, shape, self.u32())
        return self.u64(), nbytes, name

    def skip(self, kind: int) -> None:
        """A value of this type."""
        if kind == STRING:
            self.pass_over(self.u64())
        elif kind == ARRAY:
            inner, count = self.u32(), self.u64()
            self.elements += count
            if self.elements > MOST_ELEMENTS:
                raise ValueError(f"its lists have more than {MOST_ELEMENTS} elements")
            if inner in FIXED:
                self.pass_over(count * FIXED[inner])
            elif inner == STRING:
                for _ in range(count):
                    self.pass_over(self.u64())
            else:
                raise ValueError(f"a list of type {inner}")
        elif kind in FIXED:
            self.pass_over(FIXED[kind])
        else:
            raise ValueError(f"an entry of type {kind}")

    def string(self) -> bytes:
        """A name: longer ones are no names."""
        count = self.u64()
        if count > LONGEST_NAME:
            raise ValueError(f"a name of {count} bytes")
        return self.take(count)

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def take(self, count: int) -> bytes:
        self.pass_over(count)
        return self.data[self.at - count : self.at]

    def pass_over(self, count: int) -> None:
        if count > self.size - self.at:
            raise ValueError(f"it is cut short: {count} bytes at byte {self.at}, the file has {self.size}")
        self.at += count


def _check_sizes(numbers: dict[bytes, int], tensors: int, widest: int) -> None:
    """Raises ValueError where an entry names a size that the tensors cannot have."""
    for name, value in numbers.items():
        most = (
            tensors if name.endswith(LAYERS) else widest if name.decode("utf-8", "replace").endswith(WIDTHS) else None
        )
        if most is not None and not 0 <= value <= most:
            raise ValueError(f"{_text(name)} is {value}, and its tensors allow {most}")


def _bytes(name: bytes, shape: list[int], kind: int) -> int:
    """Bytes of a tensor of this type. Raises ValueError."""
    import gguf

    try:
        block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise ValueError(f"tensor {_text(name)} has an unknown type, {kind}") from None
    if shape and shape[0] % block:
        raise ValueError(f"tensor {_text(name)} has rows of {shape[0]}, which are no blocks of {block}")
    return math.prod(shape) // int(block) * int(nbytes)


def _text(name: bytes) -> str:
    """On one line, whatever it holds."""
    return repr(name[:60])[1:]
