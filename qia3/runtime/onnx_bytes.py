"""Writes a graph in ONNX's bytes with numpy only, so that calibration can make its graphs on the device.

ONNX is protobuf (onnx.proto3). A message is its fields one after another, each a key and a value:

    key = number << 3 | wire type          wire type 0: a varint, seven bits per byte, the lowest first, 0x80 set while more follow
                                           wire type 2: a varint with the length, then that many bytes (text, messages, data)
                                           wire type 5: four bytes (a float)

So NodeProto{op_type (4): "Add"} is 22 03 41 64 64. The numbers beside the names below are those of onnx.proto3.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

IR_VERSION, OPSET = 10, 21
TYPES = {
    np.dtype(kind): number
    for kind, number in ((np.float32, 1), (np.uint8, 2), (np.int8, 3), (np.int32, 6), (np.int64, 7))
}
FLOAT, INT = 1, 2  # AttributeProto.AttributeType
Array = NDArray[np.generic]
Shape = Sequence[int | str]


def model(
    nodes: Sequence[bytes],
    inputs: Mapping[str, tuple[np.dtype[np.generic], Shape]],
    outputs: Mapping[str, Shape],
    constants: Mapping[str, Array],
) -> bytes:
    """ModelProto. `inputs` by name: type and shape, where a name stands for any size. Outputs are float32."""
    graph = b"".join(_field(1, node) for node in nodes) + _text(2, "calibration")
    graph += b"".join(_field(5, _tensor(name, value)) for name, value in constants.items())
    graph += b"".join(_field(11, _value(name, TYPES[kind], shape)) for name, (kind, shape) in inputs.items())
    graph += b"".join(_field(12, _value(name, FLOAT, shape)) for name, shape in outputs.items())
    opsets = [("", OPSET), ("com.microsoft", 1)]
    return (
        _number(1, IR_VERSION) + _field(7, graph) + b"".join(_field(8, _text(1, d) + _number(2, v)) for d, v in opsets)
    )


def node(
    kind: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    attributes: Mapping[str, int | float] | None = None,
    domain: str = "",
) -> bytes:
    """NodeProto. An omitted input or output is an empty name."""
    found = b"".join(_text(1, name) for name in inputs) + b"".join(_text(2, name) for name in outputs)
    found += _text(4, kind) + b"".join(_field(5, _attribute(n, v)) for n, v in (attributes or {}).items())
    return found + (_text(7, domain) if domain else b"")


def _attribute(name: str, value: int | float) -> bytes:
    if isinstance(value, float):
        return _text(1, name) + _varint(2 << 3 | 5) + struct.pack("<f", value) + _number(20, FLOAT)
    return _text(1, name) + _number(3, value) + _number(20, INT)


def _tensor(name: str, value: Array) -> bytes:
    dims = b"".join(_number(1, size) for size in value.shape)
    return dims + _number(2, TYPES[value.dtype]) + _text(8, name) + _field(9, np.ascontiguousarray(value).tobytes())


def _value(name: str, kind: int, shape: Shape) -> bytes:
    """ValueInfoProto."""
    sizes = b"".join(_field(1, _number(1, d) if isinstance(d, int) else _text(2, d)) for d in shape)
    return _text(1, name) + _field(2, _field(1, _number(1, kind) + _field(2, sizes)))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
