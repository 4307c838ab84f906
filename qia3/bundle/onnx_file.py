"""Finds the other files that an .onnx reads, by walking its protobuf without the onnx package.

A message is a sequence of fields, each a tag (number * 8 + wire type, a varint) and a value: for wire type 0 a varint,
1 eight bytes, 2 a varint length and as many bytes, 5 four bytes. TensorProto's field 13, external_data, holds entries
of key (1) and value (2); the entry "location" names a file beside the .onnx. These fields of onnx.proto lead to
tensors:

    ModelProto      graph 7, training_info 20, functions 25        GraphProto       node 1, initializer 5, sparse 15
    NodeProto       attribute 5                                    AttributeProto   t 5, g 6, tensors 10, graphs 11, sparse 22 and 23
    FunctionProto   node 7, attribute_proto 11                     SparseTensor     values 1, indices 2
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qia3.errors import BundleError
from qia3.parse import read_bytes

LARGEST = 2**31 - 1  # protobuf's own limit
DEEPEST = 64
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
LEADS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def external_files(path: Path) -> set[str]:
    """Locations of external tensors, relative to the .onnx's folder. Raises BundleError if it is not an ONNX graph."""
    data = memoryview(read_bytes(path, BundleError, "copy the bundle again", LARGEST))
    try:
        return set(_locations(data, "model", 0))
    except (ValueError, IndexError) as error:
        raise BundleError(f"{path} is not an ONNX graph ({error}); build the bundle again") from error


def _locations(data: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > DEEPEST:
        raise ValueError("its graphs are nested too deeply")
    leads = LEADS[kind]
    for number, content in _fields(data):
        if number not in leads:
            continue
        if kind != "tensor":
            yield from _locations(content, leads[number], depth + 1)
        else:
            entry = {key: str(text, "utf-8") for key, text in _fields(content) if key in (1, 2)}
            if entry.get(1) == "location":
                yield entry.get(2, "")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and bytes of each length-delimited field."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == BYTES:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("it is truncated")
            yield tag >> 3, data[at : at + length]
            at += length
        elif tag & 7 == VARINT:
            _, at = _varint(data, at)
        elif tag & 7 in (FIXED64, FIXED32):
            at += 8 if tag & 7 == FIXED64 else 4
        else:
            raise ValueError(f"a field has wire type {tag & 7}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number, and the position after it."""
    value = 0
    for i in range(10):
        byte = data[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError("a number is too long")
