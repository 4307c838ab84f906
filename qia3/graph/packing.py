"""Query, key and value projections as one MatMulNBits: three products with the same input, and three roundings of it to
int8, become one.

    q = x Wq^T,  k = l_k * (x Wk^T),  v = l_v * (x Wv^T)        ->        [1 | l_k | l_v] * (x [Wq; Wk; Wv]^T)

Rows are independent on the grid, so the packed codes, scales and zero points are the three tensors' bytes concatenated:
what was trained still ships byte for byte (law 1). GroupQueryAttention takes q|k|v in its first input. The vectors keep
their names and shapes; in one run all of them have the same number of rows. If there is something between projection
and attention (norms on keys in Qwen3), nothing is packed. If one of the three is on a different grid (values at 8
bits), neighbours on the same grid are packed and the results joined:

    Concat(x [Wq; Wk]^T, x Wv^T)

Operators: docs/ContribOperators.md of ONNX Runtime, com.microsoft.MatMulNBits and GroupQueryAttention.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qia3.graph.fusions import MICROSOFT, producer

PACKED = "qia3.packed"  # metadata of an initializer: the tensors it was concatenated from, in order, with their bytes
GRID = ("K", "bits", "block_size", "accuracy_level")
KINDS = (
    "codes",
    "scales",
    "zero_points",
    None,
    "bias",
)  # inputs 1 to 5 of MatMulNBits; the fourth is an unused index


@dataclass(frozen=True)
class Projection:
    """A MatMulNBits and, if its output is scaled, the Mul and its vector."""

    product: ir.Node
    scaled: ir.Node | None
    vector: ir.Value | None

    @property
    def outputs(self) -> int:
        return int(self.product.attributes["N"].as_int())


Run = list[Projection]


class PackAttention(InPlacePass):  # type: ignore[misc]
    """Packs the projections before every GroupQueryAttention that takes their plain results."""

    def call(self, model: ir.Model) -> PassResult:
        found = [
            (a, runs) for a in model.graph if a.op_type == "GroupQueryAttention" and len(runs := _runs(a)) in (1, 2)
        ]
        ones: dict[int, ir.Value] = {}
        for attention, runs in found:
            _pack(model, attention, runs, ones)
        return PassResult(model, modified=bool(found))

    def ensures(self, model: ir.Model) -> None:
        names = list(model.graph.initializers)
        assert len(names) == len(set(names))


def _runs(attention: ir.Node) -> list[Run]:
    """The three projections, grouped by grid, if they share their input and have no other readers; otherwise empty."""
    parts = [p for value in attention.inputs[:3] if (p := projection(value)) is not None]
    if len({id(p.product) for p in parts}) != 3 or len({id(p.product.inputs[0]) for p in parts}) != 1:
        return []
    return [list(run) for _, run in groupby(parts, same_grid)]


def same_grid(part: Projection) -> tuple[Any, ...]:
    """What two products must share to become one."""
    return *(part.product.attributes[a].as_int() for a in GRID), *(value is None for value in part.product.inputs)


def projection(value: ir.Value | None) -> Projection | None:
    scaled = producer(value, "Mul")
    vector = None
    if scaled is not None:
        vector = next((v for v in scaled.inputs if v is not None and v.is_graph_input()), None)
        value = next((v for v in scaled.inputs if v is not vector), None)
        if vector is None or value is None or len(value.uses()) != 1:
            return None
    product = producer(value, "MatMulNBits")
    single = product is not None and all(len(v.uses()) == 1 for v in ((scaled or product).outputs[0],))
    return Projection(product, scaled, vector) if product is not None and single else None


def _pack(model: ir.Model, attention: ir.Node, runs: list[Run], ones: dict[int, ir.Value]) -> None:
    result = packed(model, attention, runs, "qkv", ones)
    for i, value in enumerate((result, None, None)):
        attention.replace_input_with(i, value)
    drop(model, [p for run in runs for p in run])


def packed(model: ir.Model, reader: ir.Node, runs: list[Run], named: str, ones: dict[int, ir.Value]) -> ir.Value:
    """The projections' results concatenated in the last dimension, computed before `reader`; each run is one product.
    `named` has a letter per projection.
    """
    parts = [p for run in runs for p in run]
    nodes: list[ir.Node] = []
    letters = iter(named)
    for run in runs:
        first, name = run[0].product, "".join(next(letters) for _ in run)
        weights = [
            None if kind is None else _concatenated(model, run, i, f"{name}_proj.{kind}")
            for i, kind in enumerate(KINDS, 1)
        ]
        attributes = {a: first.attributes[a].as_int() for a in GRID} | {"N": sum(p.outputs for p in run)}
        nodes.append(
            ir.node("MatMulNBits", [first.inputs[0], *weights[: len(first.inputs) - 1]], attributes, domain=MICROSOFT)
        )
    if len(runs) > 1:
        nodes.append(ir.node("Concat", [node.outputs[0] for node in nodes], {"axis": -1}))
    result = nodes[-1].outputs[0]
    if any(p.vector is not None for p in parts):
        multiplier = _multiplier(model, parts, ones, nodes)
        nodes.append(ir.node("Mul", [result, multiplier]))
        result = nodes[-1].outputs[0]
    model.graph.insert_before(reader, nodes)
    return result


def drop(model: ir.Model, parts: Run) -> None:
    """Removes projections whose results are no longer used, and their weights."""
    for p in parts:
        model.graph.remove([n for n in (p.scaled, p.product) if n is not None], safe=True)
        for value in p.product.inputs[1:]:
            if value is not None and not value.uses():
                model.graph.initializers.pop(value.name or "", None)


def _multiplier(model: ir.Model, parts: list[Projection], ones: dict[int, ir.Value], nodes: list[ir.Node]) -> ir.Value:
    """[1 | l_k | l_v] of this layer, [rows, 1, size].

    The ones are made once, with as many rows as the first layer's vectors.
    """
    pieces = []
    for p in parts:
        if p.vector is None and p.outputs not in ones:
            beside = next(q.vector for q in parts if q.vector is not None)
            rows = ir.node("Shape", [beside], {"start": 0, "end": 2})  # [rows, 1]
            shape = ir.node(
                "Concat", [rows.outputs[0], constant(model, f"size_{p.outputs}", np.array([p.outputs]))], {"axis": 0}
            )
            expanded = ir.node(
                "Expand", [constant(model, f"ones_{p.outputs}", np.ones((1, 1, 1), np.float32)), shape.outputs[0]]
            )
            nodes += [rows, shape, expanded]
            ones[p.outputs] = expanded.outputs[0]
        pieces.append(ones[p.outputs] if p.vector is None else p.vector)
    nodes.append(ir.node("Concat", pieces, {"axis": 2}))
    return nodes[-1].outputs[0]


def constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """An initializer of the graph, made once."""
    if name not in model.graph.initializers:
        tensor = ir.tensor(array, name=name)
        model.graph.register_initializer(
            ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return model.graph.initializers[name]


def heads_apart(model: ir.Model, heads: int, size: int) -> ir.Value:
    """The shape that turns [rows, positions, heads size] into [rows, positions, heads, size], for any number of rows."""
    return constant(model, f"heads_{heads}_of_{size}", np.array([0, 0, heads, size], np.int64))


def _concatenated(model: ir.Model, parts: Run, index: int, kind: str) -> ir.Value | None:
    """One initializer with the tensors' bytes concatenated, made when it is written; a single tensor is used as is."""
    if index >= len(parts[0].product.inputs) or parts[0].product.inputs[index] is None:
        return None
    values = [v for p in parts if (v := p.product.inputs[index]) is not None]
    tensors = [v.const_value for v in values if v.const_value is not None]
    assert len(tensors) == len(parts), "ConstantWeights runs first"
    if len(values) == 1:
        return values[0]
    shape = ir.Shape([sum(int(t.shape[0]) for t in tensors), *tensors[0].shape.numpy()[1:]])
    name = f"{str(values[0].name).rpartition('.')[0].rpartition('.')[0]}.{kind}"

    def join() -> ir.Tensor:
        return ir.Tensor(np.concatenate([t.numpy() for t in tensors]))

    lazy = ir.LazyTensor(join, dtype=tensors[0].dtype, shape=shape, name=name)
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensors[0].dtype), const_value=lazy)
    value.meta[PACKED] = tuple((str(v.name), t.nbytes) for v, t in zip(values, tensors, strict=True))
    model.graph.register_initializer(value)
    return value
