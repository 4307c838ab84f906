"""Graph edits for speed: fewer nodes, same function.

When decoding one token, a node costs about a microsecond, whatever it computes.

    Transpose(Transpose(x))                  -> x, if the order is restored                  (6 nodes per layer as torch writes attention)
    Reshape(Reshape(x))                      -> x, if the shape is restored                  (another 8)
    SimplifiedLayerNormalization(a + b)      -> SkipSimplifiedLayerNormalization(a, b), whose fourth output is the sum
    Slice(x) of the shape of x               -> x
    x * Sigmoid(x)                           -> QuickGelu(x) with alpha 1, which is SiLU

Operators: docs/ContribOperators.md of ONNX Runtime. tests/test_graph.py compares every family's fused graph with torch.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import convenience
from onnx_ir.passes import InPlacePass, PassResult

MICROSOFT = "com.microsoft"


class CancelPairs(InPlacePass):  # type: ignore[misc]
    """Removes pairs of transposes or reshapes that cancel out."""

    def call(self, model: ir.Model) -> PassResult:
        modified = False
        for kind, undone in (("Transpose", _same_order), ("Reshape", _same_shape)):
            pairs = [
                (f, s) for s in model.graph if s.op_type == kind and (f := producer(s.inputs[0], kind)) and undone(f, s)
            ]
            for first, second in pairs:
                convenience.replace_all_uses_with(second.outputs[0], first.inputs[0])
                _drop(model, second, first)
            modified |= bool(pairs)
        return PassResult(model, modified=modified)


class WholeSlices(InPlacePass):  # type: ignore[misc]
    """Removes slices that keep everything, such as x[:, 0:]."""

    def call(self, model: ir.Model) -> PassResult:
        whole = [n for n in model.graph if n.op_type == "Slice" and _same_shape(n, n)]
        for node in whole:
            convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
            _drop(model, node)
        return PassResult(model, modified=bool(whole))


class SkipNorms(InPlacePass):  # type: ignore[misc]
    """The residual sum and the RMS norm after it, as one node."""

    def call(self, model: ir.Model) -> PassResult:
        pairs = [
            (add, norm)
            for norm in model.graph
            if norm.op_type == "SimplifiedLayerNormalization"
            and (add := producer(norm.inputs[0], "Add"))
            and _same_inputs(add)
        ]
        for add, norm in pairs:
            epsilon = norm.attributes["epsilon"].as_float()
            fused = ir.node(
                "SkipSimplifiedLayerNormalization",
                [*add.inputs, norm.inputs[1]],
                {"epsilon": epsilon},
                domain=MICROSOFT,
                num_outputs=4,
            )
            model.graph.insert_after(add, fused)
            _take_over(norm.outputs[0], fused.outputs[0])
            _take_over(add.outputs[0], fused.outputs[3])
            _drop(model, norm, add)
        return PassResult(model, modified=bool(pairs))


class SiLU(InPlacePass):  # type: ignore[misc]
    """x * Sigmoid(x) as one node."""

    def call(self, model: ir.Model) -> PassResult:
        pairs = []
        for product in model.graph:
            gates = [g for v in product.inputs if (g := producer(v, "Sigmoid"))] if product.op_type == "Mul" else []
            if len(gates) == 1 and {id(v) for v in product.inputs} == {id(gates[0].inputs[0]), id(gates[0].outputs[0])}:
                pairs.append((gates[0], product))
        for gate, product in pairs:
            fused = ir.node("QuickGelu", [gate.inputs[0]], {"alpha": 1.0}, domain=MICROSOFT)
            model.graph.insert_after(product, fused)
            _take_over(product.outputs[0], fused.outputs[0])
            _drop(model, product, gate)
        return PassResult(model, modified=bool(pairs))


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that made `value`, if it is of this kind."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _same_order(first: ir.Node, second: ir.Node) -> bool:
    """Whether two transposes together change nothing."""
    orders = [node.attributes["perm"].as_ints() for node in (first, second)]
    return [orders[0][i] for i in orders[1]] == list(range(len(orders[0]))) and not second.outputs[0].is_graph_output()


def _same_shape(first: ir.Node, second: ir.Node) -> bool:
    """Whether the first node's input has the shape of the second one's output, by the traced shapes."""
    before, after = first.inputs[0], second.outputs[0]
    return before is not None and _known(before.shape) and before.shape == after.shape and not after.is_graph_output()


def _same_inputs(add: ir.Node) -> bool:
    """Whether it adds two activations [batch, sequence, size] without broadcasting."""
    first, second = (None if v is None else v.shape for v in add.inputs)
    return first is not None and _known(first) and first == second and len(first) == 3


def _known(shape: ir.Shape | None) -> bool:
    """Every dimension a number or a named symbol: two unnamed ones need not be equal."""
    return shape is not None and all(isinstance(d, int) or d.value is not None for d in shape)


def _take_over(old: ir.Value, new: ir.Value) -> None:
    new.shape, new.type, new.name = old.shape, old.type, f"{old.name}_fused"
    if old.is_graph_output():
        old.name, new.name = new.name, old.name
    convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def _drop(model: ir.Model, *nodes: ir.Node) -> None:
    """Removes the nodes whose outputs are no longer used."""
    for node in nodes:
        if not any(value.uses() for value in node.outputs):
            model.graph.remove(node, safe=True)
