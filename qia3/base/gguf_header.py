"""Reads a GGUF file's header with every size held to the file's length, before libraries that trust it read the file.

    "GGUF"  version uint32  tensors uint64  keys uint64
    a key:     name, type uint32, value        a name or text: length uint64, UTF-8        a list: type uint32, count uint64, values
    a tensor:  name, dimensions uint32, each uint64, format uint32, offset uint64 in what follows the header

A changed length or count would have the gguf library loop over entries that are not there, and a changed `block_count` would have a model of
billions of layers built: neither ends in an error, but in all the memory there is. Here each is a ValueError at once.

Source: docs/gguf.md of ggml.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

SIZES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}  # value types of one length
TEXT, LIST = 8, 9
COUNTED = ("embedding_length", "feed_forward_length", "vocab_size", "head_count", "head_count_kv", "key_length", "value_length")
MOST_DIMENSIONS = 4


def check_header(path: Path) -> None:
    """Raises ValueError where the header is cut, or names sizes that the file or its tensors do not have."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        walk = _Walk(data)
        walk.at = 8  # past the version
        tensors, keys = walk.number("Q"), walk.number("Q")
        found = {walk.text(): walk.value(walk.number("I")) for _ in range(walk.at_most(keys, 12))}
        shapes = {walk.text(): walk.shape() for _ in range(walk.at_most(tensors, 24))}
    _check_sizes(found, shapes)


def _check_sizes(found: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """No more layers than tensors, nothing wider than the widest of them."""
    architecture, widest = found.get("general.architecture"), max((max(s, default=0) for s in shapes.values()), default=0)
    limits = {f"{architecture}.block_count": len(shapes)} | {f"{architecture}.{name}": widest for name in COUNTED}
    for name, most in limits.items():
        value = found.get(name, 0)
        if isinstance(value, int) and not 0 <= value <= most:
            raise ValueError(f"{name} is {value}, and its tensors allow {most}")


class _Walk:
    """A place in the header that moves on as it is read."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def number(self, kind: str) -> Any:
        start, self.at = self.at, self.at + struct.calcsize(kind)
        if self.at > len(self.data):
            raise ValueError("its header is cut short")
        return struct.unpack_from(f"<{kind}", self.data, start)[0]

    def at_most(self, count: int, least_bytes: int) -> int:
        """`count` things of at least so many bytes: there has to be room for them."""
        if count * least_bytes > len(self.data) - self.at:
            raise ValueError(f"its header counts {count} entries where {len(self.data) - self.at} bytes are left")
        return count

    def text(self) -> str:
        start = self.at + 8
        self.at = start + self.at_most(self.number("Q"), 1)
        return self.data[start : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        """A number or a text; of a list its length, and its values are passed over."""
        if kind == TEXT:
            return self.text()
        if kind in SIZES:
            return self.number(SIZES[kind])
        if kind != LIST:
            raise ValueError(f"its header has a value of type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner == TEXT:
            for _ in range(self.at_most(count, 8)):
                self.text()
        elif inner in SIZES:
            self.at += self.at_most(count, width := struct.calcsize(SIZES[inner])) * width
        else:
            raise ValueError(f"its header has a list of type {inner}")
        return None

    def shape(self) -> tuple[int, ...]:
        dimensions = self.number("I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        self.number("I"), self.number("Q")  # format and offset, which the library holds to the file
        return shape
