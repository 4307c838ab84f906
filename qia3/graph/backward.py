r"""The backward product by a weight on a grid: grad_x = grad_y W, on the bytes that MatMulNBits reads.

    qia3.BackwardProduct(grad [..., N], codes, scales[, zero points])

is made of ONNX's own operators:

    W = DequantizeLinear(codes as uint4 [N, B block], scales [N, B], zero points as uint4 [N, B])      axis 1, in blocks
    grad_x = MatMul(grad, W)[..., :K]

W follows from constants alone, and ONNX Runtime's order of nodes puts such nodes early: left to itself it makes hundreds
of float32 weights during the forward pass and holds them until the backward pass comes (540 MB of SmolLM2-135M). So the
scales are reshaped to a shape that is computed from the gradient's, which is there only when it is needed:

    scales = Reshape(scales, [N, B] + min(Shape(grad)[0], 0))

A layer whose W would take more than LARGE bytes (a head) is dequantised a piece of its rows at a time, by ONNX Runtime's
look-up in a 4-bit table, which takes MatMulNBits' bytes as they are; first = 0, n, 2n, ...:

    W[first : first + n] = GatherBlockQuantized(codes, range(first + min(Shape(grad)[0], 0), first + n), scales[, zero points])
    grad_x = sum of MatMul(grad[..., first : first + n], W[first : first + n])

MatMulNBits has two codes a byte, the even input in the low nibble, and whole blocks: ONNX packs uint4 in the same way,
so the bytes are the same, and the file holds them once. Its rows of zero points are whole bytes where ONNX's run on: with
an odd number of blocks in a row they are packed anew (4 bits a block, of the weight's 4 a number), and zero points that
are absent, which mean 8, are written out. At 8 bits codes and zero points are bytes in both.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qia3.footprint.learning import LARGE
from qia3.grids.int4 import SYMMETRIC_ZERO, pack_nibbles

DOMAIN, OPERATOR = "qia3", "BackwardProduct"
BACKWARD = f"{DOMAIN}::{OPERATOR}"
PIECES = 2  # of LARGE, that a weight which is larger is made in


class BackwardProducts(InPlacePass):  # type: ignore[misc]
    """Makes every BackwardProduct of DequantizeLinear and MatMul."""

    def call(self, model: ir.Model) -> PassResult:
        found = [node for node in model.graph if node.domain == DOMAIN and node.op_type == OPERATOR]
        for node in found:
            _lower(model, node)
        model.opset_imports.pop(DOMAIN, None)
        return PassResult(model, modified=bool(found))

    def ensures(self, model: ir.Model) -> None:
        assert all(node.domain != DOMAIN for node in model.graph)


def _lower(model: ir.Model, node: ir.Node) -> None:
    grad, codes, scales, *zeros = node.inputs
    inputs, block, bits = (node.attributes[name].as_int() for name in ("K", "block_size", "bits"))
    assert grad is not None
    assert codes is not None
    assert scales is not None
    rows, blocks = (int(n) for n in _tensor(scales).shape)
    weight = Weight(codes, scales, zeros[0] if zeros else None, rows, blocks, block, bits)
    made = _at_once(model, grad, weight) if 4 * rows * blocks * block <= LARGE else _in_pieces(model, grad, weight)
    if blocks * block != inputs:
        made.append(ir.node("Slice", [made[-1].outputs[0], *_ends(model, 0, inputs)]))
    new, old = made[-1].outputs[0], node.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], made, [old], [new])


class Weight(NamedTuple):
    """A layer's bytes as MatMulNBits has them: `rows` of `blocks` of `block` codes."""

    codes: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    rows: int
    blocks: int
    block: int
    bits: int


def _at_once(model: ir.Model, grad: ir.Value, w: Weight) -> list[ir.Node]:
    """The last node gives the product, with the columns that fill the last block."""
    codes = _of(model, f"{w.codes.name}.backward", _bytes(w.codes), w.bits, (w.rows, w.blocks * w.block))
    packed = _zeros(w.zeros, w.rows, w.blocks, w.bits)
    zero = _of(model, f"{w.codes.name}.backward_zero", packed, w.bits, (w.rows, w.blocks))
    waiting, nothing = _nothing(model, grad)
    shape = _constant(model, f"backward.shape_{w.rows}_{w.blocks}", w.rows, w.blocks)
    asked = ir.node("Add", [nothing, shape])
    late = ir.node("Reshape", [w.scales, asked.outputs[0]])
    late.outputs[0].shape, late.outputs[0].type = ir.Shape((w.rows, w.blocks)), w.scales.type
    dense = ir.node("DequantizeLinear", [codes, late.outputs[0], zero], {"axis": 1, "block_size": w.block})
    return [*waiting, asked, late, dense, ir.node("MatMul", [grad, dense.outputs[0]])]


def _in_pieces(model: ir.Model, grad: ir.Value, w: Weight) -> list[ir.Node]:
    """The same, of few rows of W at a time."""
    each = LARGE // (4 * w.blocks * w.block * PIECES)
    table = _flat(model, w)
    made, nothing = _nothing(model, grad)
    total: ir.Value | None = None
    for first in range(0, w.rows, each):
        last = min(first + each, w.rows)
        start = ir.node("Add", [nothing, _constant(model, f"backward.at_{first}", first)])
        scalar = ir.node("Squeeze", [start.outputs[0]])
        asked = ir.node("Range", [scalar.outputs[0], _scalar(model, last), _scalar(model, 1)])
        inputs = [table[0], asked.outputs[0], *table[1:]]
        how = {"gather_axis": 0, "quantize_axis": 1, "block_size": w.block, "bits": w.bits}
        dense = ir.node("GatherBlockQuantized", inputs, how, domain="com.microsoft")
        part = ir.node("Slice", [grad, *_ends(model, first, last)])
        product = ir.node("MatMul", [part.outputs[0], dense.outputs[0]])
        made += [start, scalar, asked, dense, part, product]
        if total is not None:
            made.append(ir.node("Add", [total, product.outputs[0]]))
        total = made[-1].outputs[0]
    return made


def _flat(model: ir.Model, w: Weight) -> list[ir.Value]:
    """Codes, scales and zero points in two dimensions, as the look-up takes them: the same bytes."""
    codes = _bytes(w.codes).reshape(w.rows, -1)
    found = [_uint8(model, f"{w.codes.name}.table", codes), w.scales]
    if w.zeros is not None:
        found.append(_uint8(model, f"{w.codes.name}.table_zero", _bytes(w.zeros).reshape(w.rows, -1)))
    return found


def _uint8(model: ir.Model, name: str, content: np.ndarray) -> ir.Value:
    return _of(model, name, content, 8, content.shape)


def _nothing(model: ir.Model, grad: ir.Value) -> tuple[list[ir.Node], ir.Value]:
    """A nought that is not there before the gradient is."""
    first = ir.node("Shape", [grad], {"start": 0, "end": 1})
    least = ir.node("Min", [first.outputs[0], _constant(model, "backward.at_0", 0)])
    return [first, least], least.outputs[0]


def _zeros(value: ir.Value | None, rows: int, blocks: int, bits: int) -> np.ndarray:
    """Zero points as ONNX packs [rows, blocks]: flat, with no fill between rows."""
    if bits == 8:
        return np.full((rows, blocks), 128, np.uint8) if value is None else _bytes(value)
    if value is None:
        return pack_nibbles(np.full(rows * blocks, SYMMETRIC_ZERO, np.uint8))
    packed = _bytes(value)
    if blocks % 2 == 0:
        return packed
    apart = np.stack((packed & 15, packed >> 4), axis=-1).reshape(rows, -1)[:, :blocks]
    return pack_nibbles(np.ascontiguousarray(apart).reshape(-1))


def _of(model: ir.Model, name: str, content: np.ndarray, bits: int, shape: tuple[int, ...]) -> ir.Value:
    """An initializer of these bytes as numbers of so many bits, made once."""
    if name not in model.graph.initializers:
        dtype, whole = (ir.DataType.UINT4, ir.Shape(shape)) if bits == 4 else (ir.DataType.UINT8, ir.Shape(shape))
        tensor = (
            ir.PackedTensor(content.reshape(-1), dtype, shape=whole, name=name)
            if bits == 4
            else ir.Tensor(content.reshape(shape), name=name)
        )
        value = ir.Value(name=name, shape=whole, type=ir.TensorType(dtype), const_value=tensor)
        model.graph.register_initializer(value)
    return model.graph.initializers[name]


def _ends(model: ir.Model, first: int, last: int) -> list[ir.Value]:
    """starts, ends and axes of a Slice of the last dimension."""
    return [_constant(model, f"backward.at_{number}", number) for number in (first, last, -1)]


def _scalar(model: ir.Model, number: int) -> ir.Value:
    return _held(model, f"backward.number_{number}", np.array(number, np.int64))


def _constant(model: ir.Model, name: str, *numbers: int) -> ir.Value:
    return _held(model, name, np.array(numbers, np.int64))


def _held(model: ir.Model, name: str, numbers: np.ndarray) -> ir.Value:
    """Made once."""
    if name not in model.graph.initializers:
        tensor = ir.tensor(numbers, name=name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        model.graph.register_initializer(value)
    return model.graph.initializers[name]


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None, f"{value.name} is no constant"
    return value.const_value


def _bytes(value: ir.Value) -> np.ndarray:
    return np.ascontiguousarray(_tensor(value).numpy())
