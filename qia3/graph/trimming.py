"""Computes the last layer of a prompt at the last position only: nothing reads its results at the others.

With logits at the last position only, the graph ends in head(gather(x)), x [batch, sequence, size]. Everything between
the last attention and the gather works on each position separately, so the gather can come first:

    head(gather(norm(a + down(act(gate(n)) * up(n)))))      ->      the same with a and n gathered, right after attention

In Llama's last layer, only q|k|v and attention remain at full length; the output projection and the feed-forward run at
one position: 84 % of the layer's products are saved. In a step of one token nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
from onnx_ir import convenience
from onnx_ir.passes import InPlacePass, PassResult

from qia3.graph.fusions import producer

# operators that treat each position by itself, with weights and vectors that broadcast over positions
BY_POSITION = {
    *(
        "MatMulNBits",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Sqrt",
        "Tanh",
        "Sigmoid",
        "Relu",
        "Erf",
        "Gelu",
        "FastGelu",
        "QuickGelu",
    ),
    *("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "LayerNormalization", "Split"),
}


class LastPositionFirst(InPlacePass):  # type: ignore[misc]
    """Moves the gather of each row's last position up to the last attention."""

    def call(self, model: ir.Model) -> PassResult:
        found = [(n, index) for n in model.graph if n.op_type == "GatherElements" and (index := _index(n))]
        for gather, index in found:
            _move_up(model, gather, index)
        return PassResult(model, modified=bool(found))


def _index(gather: ir.Node) -> ir.Value | None:
    """[batch, 1, 1]: each row's position, before it is expanded to the gathered size."""
    data, expand = gather.inputs[0], producer(gather.inputs[1], "Expand")
    if (
        expand is None
        or data is None
        or data.shape is None
        or len(data.shape) != 3
        or getattr(data.shape[1], "value", None) is None
    ):
        return None
    return expand.inputs[0]


def _move_up(model: ir.Model, gather: ir.Node, index: ir.Value) -> None:
    end = gather.inputs[0]
    assert end is not None
    assert end.shape is not None
    sequence = end.shape[1]
    inside = _between(end, gather, sequence)
    readers = inside or [gather]
    edges = {
        id(v): v
        for n in readers
        for v in n.inputs
        if v is not None and _positional(v, sequence) and v.producer() not in inside
    }
    for edge in edges.values():
        last = _picked(model, edge, index)
        for node in readers:
            for i, value in enumerate(node.inputs):
                if value is edge:
                    node.replace_input_with(i, last)
    for value in (v for node in inside for v in node.outputs if v.shape is not None):
        value.shape = ir.Shape([value.shape[0], 1, *value.shape[2:]])
    convenience.replace_all_uses_with(gather.outputs[0], gather.inputs[0])
    model.graph.remove(gather, safe=True)
    model.graph.sort()


def _picked(model: ir.Model, value: ir.Value, index: ir.Value) -> ir.Value:
    """[batch, sequence, d] -> [batch, 1, d]: indices [batch, 1, 1] with one batch dimension."""
    node = ir.node("GatherND", [value, index], {"batch_dims": 1})
    assert value.shape is not None
    node.outputs[0].shape, node.outputs[0].type = ir.Shape([value.shape[0], 1, value.shape[2]]), value.type
    model.graph.append(node)
    return node.outputs[0]


def _between(end: ir.Value, gather: ir.Node, sequence: object) -> list[ir.Node]:
    """The nodes before `gather` that work by position and whose results have no other readers."""
    inside: dict[int, ir.Node] = {}
    waiting = [end.producer()]
    while waiting:
        node = waiting.pop()
        if node is not None and id(node) not in inside and node.op_type in BY_POSITION and _by_position(node, sequence):
            inside[id(node)] = node
            waiting += [v.producer() for v in node.inputs if v is not None and _positional(v, sequence)]
    while read_outside := [n for n in inside.values() if not all(u is gather or id(u) in inside for u in _readers(n))]:
        for node in read_outside:
            del inside[id(node)]
    return list(inside.values())


def _by_position(node: ir.Node, sequence: object) -> bool:
    """Whether every input is a weight, a vector or an activation [batch, sequence, d], and so is the result."""
    if node.op_type in ("LayerNormalization", "Split") and node.attributes.get_int(
        "axis", -1 if node.op_type != "Split" else 0
    ) not in (
        -1,
        2,
    ):
        return False
    constant = [v for v in node.inputs if v is not None and not _positional(v, sequence)]
    return all(v.is_initializer() or v.is_graph_input() or _is_constant(v) for v in constant) and _positional(
        node.outputs[0], sequence
    )


def _is_constant(value: ir.Value) -> bool:
    return producer(value, "Constant") is not None


def _positional(value: ir.Value, sequence: object) -> bool:
    return (
        value.shape is not None
        and len(value.shape) == 3
        and value.shape[1] == sequence
        and value.producer() is not None
    )


def _readers(node: ir.Node) -> Iterable[ir.Node]:
    return (use.node for value in node.outputs for use in value.uses())
