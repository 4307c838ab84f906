"""Keys and values of an encoder's states, in one decoder layer, as one product.

    k = l_k * (states Wk^T),  v = l_v * (states Wv^T)     ->     k|v = [l_k | l_v] * (states [Wk; Wv]^T)

with one reshape, one transpose to [batch, 2 heads, positions, size] and one split for both. In a step there are no new
states and nothing is computed, but each node costs its microsecond: four instead of six (with unmerged vectors, six
instead of eight). For what is packed and how, see packing.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir import convenience
from onnx_ir.passes import InPlacePass, PassResult

from qia3.graph.fusions import producer
from qia3.graph.packing import Projection, drop, heads_apart, packed, projection, same_grid

APART = [0, 2, 1, 3]  # [batch, positions, heads, size] -> [batch, heads, positions, size]


@dataclass(frozen=True)
class Half:
    """Keys or values on their way to an attention: a projection, split into heads, with heads before positions."""

    projection: Projection
    reshaped: ir.Node
    turned: ir.Node


class PackCross(InPlacePass):  # type: ignore[misc]
    """Packs keys and values before every MultiHeadAttention that takes their plain results from one input."""

    def call(self, model: ir.Model) -> PassResult:
        found = [(a, halves) for a in model.graph if a.op_type == "MultiHeadAttention" and (halves := _halves(a))]
        for attention, halves in found:
            _pack(model, attention.attributes["num_heads"].as_int(), halves)
        return PassResult(model, modified=bool(found))


def _halves(attention: ir.Node) -> list[Half]:
    """Keys and values that are products of the same input with weights on the same grid."""
    halves = [half for value in attention.inputs[1:3] if (half := _half(value)) is not None]
    if len(halves) != 2 or len({id(h.projection.product.inputs[0]) for h in halves}) != 1:
        return []
    return halves if _alike(*(h.projection for h in halves)) else []


def _alike(first: Projection, second: Projection) -> bool:
    """Whether one product can compute both."""
    both = same_grid(first) == same_grid(second) and first.outputs == second.outputs
    return both and (first.vector is None) == (second.vector is None)


def _half(value: ir.Value | None) -> Half | None:
    turned = producer(value, "Transpose")
    reshaped = None if turned is None else producer(turned.inputs[0], "Reshape")
    if turned is None or reshaped is None or list(turned.attributes["perm"].as_ints()) != APART:
        return None
    found = projection(reshaped.inputs[0])
    return None if found is None or len(reshaped.outputs[0].uses()) != 1 else Half(found, reshaped, turned)


def _pack(model: ir.Model, heads: int, halves: list[Half]) -> None:
    shape = heads_apart(model, 2 * heads, halves[0].projection.outputs // heads)
    joined = packed(model, halves[0].turned, [[h.projection for h in halves]], "kv", {})
    apart = ir.node("Reshape", [joined, shape])
    turned = ir.node("Transpose", [apart.outputs[0]], {"perm": APART})
    split = ir.node("Split", [turned.outputs[0]], {"axis": 1, "num_outputs": 2}, num_outputs=2)
    model.graph.insert_before(halves[0].turned, [apart, turned, split])
    for half, new in zip(halves, split.outputs, strict=True):
        old = half.turned.outputs[0]
        new.shape, new.type, name = old.shape, old.type, old.name
        old.name, new.name = f"{name}_apart", name
        convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        model.graph.remove([half.turned, half.reshaped], safe=True)
    drop(model, [h.projection for h in halves])
    model.graph.sort()
