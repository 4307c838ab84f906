r"""The backward product by a weight on a grid: grad_x = grad_y W, on the bytes that MatMulNBits reads.

    qia3.BackwardProduct(grad [..., N], codes, scales[, zero points])

is made of ONNX's own operators:

    W = DequantizeLinear(codes as uint4 [N, B block], scales [N, B], zero points as uint4 [N, B])      axis 1, in blocks
    grad_x = MatMul(grad, W)[..., :K]

MatMulNBits has two codes a byte, the even input in the low nibble, and whole blocks: ONNX packs uint4 in the same way,
so the bytes are the same, and the file holds them once. Its rows of zero points are whole bytes where ONNX's run on: with
an odd number of blocks in a row they are packed anew (4 bits a block, of the weight's 4 a number), and zero points that
are absent, which mean 8, are written out. At 8 bits codes and zero points are bytes in both.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qia3.grids.int4 import SYMMETRIC_ZERO, pack_nibbles

DOMAIN, OPERATOR = "qia3", "BackwardProduct"
BACKWARD = f"{DOMAIN}::{OPERATOR}"


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
    weight = _of(model, f"{codes.name}.backward", _bytes(codes), bits, (rows, blocks * block))
    zero = _of(
        model,
        f"{codes.name}.backward_zero",
        _zeros(zeros[0] if zeros else None, rows, blocks, bits),
        bits,
        (rows, blocks),
    )
    dense = ir.node("DequantizeLinear", [weight, scales, zero], {"axis": 1, "block_size": block})
    product = ir.node("MatMul", [grad, dense.outputs[0]])
    made = [dense, product]
    if blocks * block != inputs:
        made.append(ir.node("Slice", [product.outputs[0], *_ends(model, inputs)]))
    new, old = made[-1].outputs[0], node.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], made, [old], [new])


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


def _ends(model: ir.Model, end: int) -> list[ir.Value]:
    """starts, ends and axes of a Slice of the last dimension."""
    found = []
    for name, number in (("backward.start", 0), (f"backward.end_{end}", end), ("backward.axis", -1)):
        if name not in model.graph.initializers:
            tensor = ir.tensor(np.array([number], np.int64), name=name)
            value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            model.graph.register_initializer(value)
        found.append(model.graph.initializers[name])
    return found


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None, f"{value.name} is no constant"
    return value.const_value


def _bytes(value: ir.Value) -> np.ndarray:
    return np.ascontiguousarray(_tensor(value).numpy())
