r"""Int8 products in place of 4-bit ones, where those are slow: for many rows, and on WebAssembly.

MatMulNBits unpacks 4-bit weights at every call and multiplies block by block. That is right for one row, where reading
the weights is what takes the time. With many rows ONNX Runtime's plain int8 product (MatMulIntegerToFloat) is two to
four times as fast, and on WebAssembly, which has no kernel for 4-bit products, for one row as well. It computes (for
each part of up to `LONGEST` inputs)

    x'[m, k] = x[m, k] / s[k]                             smoothing: a constant per input channel
    a[m, k]  = round(x'[m, k] / r[m]) + 128               uint8, with r[m] = max_k |x'[m, k]| / 127, a scale per row
    b[k, n]  = round(w[n, k] s[k] / t[n])                 int8, with t[n] = max_k |w[n, k] s[k]| / 127, a scale per column
    y[m, n]  = r[m] t[n] sum_k (a[m, k] - 128) b[k, n]

where w are the 4-bit weights. Behind a norm, rows are of one size: there s goes into the norm's own weights, and r is
one scale for all rows, with an offset (DynamicQuantizeMatMul, one operator instead of eight: with 32 tokens, small
operators took half as long as the products). Experts stay in 4 bits. Two uses:

    a decoder's prompts      a second graph, beside the 4-bit one that generates. The head, and what follows the last
                             attention (trimming.py), run at one position and stay in 4 bits. Inputs, outputs and cache
                             are the decoder's own, so that one continues the other's
    `every` product          in place of the 4-bit graph: encoders, which have only prompts, and the target browser-wasm

A scale per row is coarser than MatMulNBits' scale per block, and a few channels of a decoder's activations are far
larger than the rest. Measured on SmolLM2 (KL against the 4-bit graph after the demo's prompts), whole rows and s = 1:
0.12 nats, but with these weights and float activations 0.011, as much as float32 products have. s moves the large
channels into the weights, and shorter parts have smaller scales: 0.03 with s, 0.01 to 0.02 with s and parts.

    s[k] = (max |x[., k]|)^alpha / (max_n |w[n, k]|)^(1 - alpha), up to a factor

(SmoothQuant, Xiao et al. 2023, arXiv:2211.10438). Products that read the same input share s. alpha is chosen from
`ALPHAS` for each of these inputs by the error of y on rows of the tasks' own prompts.

x64 without VNNI adds pairs of products in 16 bits and saturates; there the runtime leaves a second graph alone
(qia3.runtime.engine), and refuses a bundle that has no other (qia3.runtime.int8_products).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PreconditionError

from qia3.bundle.ports import LOGITS
from qia3.graph.fusions import MICROSOFT
from qia3.graph.packing import constant
from qia3.grids import int4, int8
from qia3.grids.int4 import Int4
from qia3.grids.int8 import Int8

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
LARGEST = 127
MIDDLE = 128
LEAST = 1e-20  # of a row of zeros, so that nothing is divided by zero
LONGEST = 640  # inputs that share a scale per row
ROWS = 256  # rows of activations that are kept per input
OUTPUTS = 8192  # of a product, at most, that its alpha is chosen by
GATHERS = ("GatherND", "GatherElements")
INT8, INT8_SCALES, SMOOTHING, NORM = "int8", "int8_scales", "smoothing", "smoothed_norm"  # end of an initializer's name
Floats = NDArray[np.float32]


@dataclass
class Seen:
    """What a product's input was: the largest |x| per channel, [K], and some of its `count` rows, each [K]."""

    largest: Floats
    rows: list[Floats] = field(default_factory=list)
    count: int = 0


def products(model: ir.Model, every: bool = False) -> list[ir.Node]:
    """The 4-bit and 8-bit products that all positions of a prompt go through, or `every` one, in the graph's order."""
    once = set() if every else _at_one_position(model)
    return [node for node in model.graph if node.op_type == "MatMulNBits" and node not in once]


def _at_one_position(model: ir.Model) -> set[ir.Node]:
    """The nodes between the gather of the last position and the logits; the head alone if there is no gather."""
    head = next(value for value in model.graph.outputs if value.name == LOGITS).producer()
    found: set[ir.Node] = set()
    ahead, gathered = [head], False
    while ahead:
        node = ahead.pop()
        if node is None or node in found:
            continue
        if node.op_type in GATHERS:
            gathered = True
            continue
        found.add(node)
        ahead += [value.producer() for value in node.inputs if value is not None]
    return found if gathered else {node for node in [head] if node is not None}


def weights(node: ir.Node) -> Floats:
    """[N, K] of a MatMulNBits with constant weights."""
    given = _constant(node, 1), _constant(node, 2)
    zeros = _constant(node, 3) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    outputs, blocks = given[0].shape[:2]
    parts_of = (given[0], given[1].reshape(outputs, blocks), None if zeros is None else zeros.reshape(outputs, -1))
    inputs = node.attributes["K"].as_int()
    if node.attributes["bits"].as_int() == 4:
        return int4.dequantise(Int4(*parts_of, inputs))
    return int8.dequantise(Int8(*parts_of, inputs))


def _constant(node: ir.Node, number: int) -> NDArray[Any]:
    value = node.inputs[number]
    if value is None or value.const_value is None:
        raise PreconditionError(f"input {number} of {node.name}, a part of its weights, is not constant")
    found: NDArray[Any] = value.const_value.numpy()
    return found


class Watched:
    """A graph whose runs are watched: a session with the inputs, outputs and `run` of ONNX Runtime's, which remembers
    in `seen` what the graph's products read.
    """

    def __init__(self, graph: Path, every: bool = False) -> None:
        model = ir.load(graph)
        read = dict.fromkeys(value for node in products(model, every) if (value := node.inputs[0]) is not None)
        shown = {value.name for value in model.graph.outputs}
        model.graph.outputs.extend(value for value in read if value.name not in shown)
        self.seen: dict[str, Seen] = {str(value.name): Seen(np.zeros(0, np.float32)) for value in read}
        self.draws = np.random.default_rng(0)
        file = graph.with_name(f"watched-{graph.name}")
        try:
            ir.save(model, file)
            options = ort.SessionOptions()
            options.log_severity_level = 3
            self.session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        finally:
            file.unlink(missing_ok=True)
        self.get_inputs, self.get_overridable_initializers = (
            self.session.get_inputs,
            self.session.get_overridable_initializers,
        )
        self.outputs = [o for o in self.session.get_outputs() if o.name in shown]

    def get_outputs(self) -> list[Any]:
        return self.outputs

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Any]:
        """Like InferenceSession.run."""
        asked = list(names) if names is not None else [o.name for o in self.outputs]
        watched = [name for name in self.seen if name not in asked]
        found = self.session.run([*asked, *watched], feeds)
        for name, value in zip([*asked, *watched], found, strict=True):
            if name in self.seen:
                self._remember(self.seen[name], value.reshape(-1, value.shape[-1]))
        return list(found[: len(asked)])

    def _remember(self, seen: Seen, rows: Floats) -> None:
        """Keeps the largest values, and up to ROWS rows of all runs so far, each as likely as another."""
        if not len(rows):
            return
        largest = np.abs(rows).max(0)
        seen.largest = np.maximum(seen.largest, largest) if len(seen.largest) else largest
        places = self.draws.integers(seen.count + 1 + np.arange(len(rows)))
        for row, place in zip(rows, places, strict=True):
            if len(seen.rows) < ROWS:
                seen.rows.append(row.copy())
            elif place < ROWS:
                seen.rows[place] = row.copy()
        seen.count += len(rows)


def smoothing(seen: Seen, read: Sequence[Floats], normed: bool = False) -> Floats:
    """s [K] for products of this input with the weights [N, K] in `read`: among ones and those of ALPHAS, the one with
    the smallest squared error of all results. Each row counts relative to its own size, or the first token's, often
    hundreds of times as large, would decide alone.
    """
    x, w = np.stack(seen.rows), np.concatenate(read)
    most = np.maximum(np.abs(w).max(0), 1e-8)
    w = w[:: -(-len(w) // OUTPUTS)]
    exact = x @ w.T
    large = np.maximum(seen.largest, 1e-8 * max(1.0, float(seen.largest.max(initial=0))))
    tried = [np.ones_like(large), *(large**alpha / most ** (1 - alpha) for alpha in ALPHAS)]
    size = np.square(exact).sum(1) + LEAST
    errors = [float((np.square(rounded_product(x, w, s, normed) - exact).sum(1) / size).sum()) for s in tried]
    best = tried[int(np.argmin(errors))]
    found: Floats = (best / np.exp(np.log(best).mean())).astype(np.float32)
    return found


def rounded_product(x: Floats, w: Floats, s: Floats, normed: bool = False) -> Floats:
    """y [M, N] of x [M, K] and w [N, K] as the graph computes it."""
    if normed:
        codes, t = rounded_weights(w, s)
        smooth = x / s
        low, high = min(float(smooth.min()), 0.0), max(float(smooth.max()), 0.0)
        step = max((high - low) / 255, LEAST)
        zero = np.rint(-low / step)
        rounded: Floats = np.clip(np.rint(smooth / step) + zero, 0, 255) - zero
        result: Floats = rounded.astype(np.float32) @ codes.T.astype(np.float32) * np.float32(step) * t
        return result
    found = np.zeros((len(x), len(w)), np.float32)
    for part in parts(w.shape[1]):
        smooth = x[:, part] / s[part]
        r = np.maximum(np.abs(smooth).max(1, keepdims=True), LEAST) / LARGEST
        codes, t = rounded_weights(w[:, part], s[part])
        found += np.rint(smooth / r) @ codes.T.astype(np.float32) * r * t
    return found


def parts(inputs: int) -> list[slice]:
    """Equal parts of up to LONGEST inputs, each with scales of its own."""
    count = next(n for n in range(-(-inputs // LONGEST), inputs + 1) if inputs % n == 0)
    size = inputs // count
    return [slice(i * size, (i + 1) * size) for i in range(count)]


def rounded_weights(w: Floats, s: Floats) -> tuple[NDArray[np.int8], Floats]:
    """b [N, K] int8 and t [N] of weights [N, K]."""
    wide = w * s
    t = np.maximum(np.abs(wide).max(1), LEAST).astype(np.float32) / np.float32(LARGEST)
    return np.rint(wide / t[:, None]).astype(np.int8), t


def prompt_graph(graph: Path, seen: Mapping[str, Seen]) -> ir.Model:
    """The decoder in this file with int8 products for prompts; its other weights stay where they are."""
    model = ir.load(graph)
    Int8Products(seen)(model)
    return model


def int8_graph(graph: Path, seen: Mapping[str, Seen]) -> ir.Model:
    """The graph in this file with int8 products throughout, and without its file: all weights are in memory."""
    model = ir.load(graph)
    Int8Products(seen, every=True)(model)
    in_memory(model)
    return model


def in_memory(model: ir.Model) -> None:
    """Reads the weights that are in a file."""
    for name, value in model.graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=name)


class Int8Products(InPlacePass):  # type: ignore[misc]
    """Replaces each of `products` by an int8 product."""

    def __init__(self, seen: Mapping[str, Seen], every: bool = False) -> None:
        super().__init__()
        self.seen, self.every = seen, every

    def requires(self, model: ir.Model) -> None:
        found = products(model, self.every)
        if not found:
            raise PreconditionError("no product that all positions of a prompt go through")
        if missing := {str(n.inputs[0].name) for n in found if n.inputs[0] is not None} - {
            n for n, s in self.seen.items() if s.rows
        }:
            raise PreconditionError(f"inputs whose range is not known: {sorted(missing)}")

    def call(self, model: ir.Model) -> PassResult:
        readers: dict[ir.Value, list[ir.Node]] = {}
        for node in products(model, self.every):
            assert node.inputs[0] is not None
            readers.setdefault(node.inputs[0], []).append(node)
        for x, nodes in readers.items():
            read, norm = [weights(node) for node in nodes], _norm_of(x, nodes)
            s = smoothing(self.seen[str(x.name)], read, norm is not None)
            if norm is not None:
                self._smoothed_norm(model, norm, nodes[0], s)
                for node, w in zip(nodes, read, strict=True):
                    self._fused(model, node, w, s)
                continue
            rounded = self._rounded(model, nodes[0], x, s)
            for node, w in zip(nodes, read, strict=True):
                self._product(model, node, w, s, rounded)
        for name in [n for n, v in model.graph.initializers.items() if not v.uses() and not v.is_graph_input()]:
            del model.graph.initializers[name]
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        assert not products(model, self.every)

    def _smoothed_norm(self, model: ir.Model, norm: ir.Node, reader: ir.Node, s: Floats) -> None:
        """Divides what a norm multiplies by, and adds, by s."""
        name = f"{_module(reader)}.{NORM}"
        for number, which in _constants_of(norm).items():
            divided = (_constant(norm, number) / s).astype(np.float32)
            norm.replace_input_with(number, _initializer(model, f"{name}{which}", divided))

    def _fused(self, model: ir.Model, node: ir.Node, w: Floats, s: Floats) -> None:
        """Puts a product that rounds its own input where `node` was."""
        name, old = _module(node), node.outputs[0]
        b, t = rounded_weights(w, s)
        weight = _initializer(model, f"{name}.{INT8}", np.ascontiguousarray(b.T))
        given = [node.inputs[0], weight, _initializer(model, f"{name}.{INT8_SCALES}", t), None]
        bias = node.inputs[5] if len(node.inputs) > 5 else None
        made = ir.Node(MICROSOFT, "DynamicQuantizeMatMul", [*given, *([] if bias is None else [bias])], num_outputs=1)
        made.outputs[0].shape, made.outputs[0].type = old.shape, old.type
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [made], [old], [made.outputs[0]])

    def _rounded(self, model: ir.Model, before: ir.Node, x: ir.Value, s: Floats) -> list[tuple[ir.Value, ir.Value]]:
        """The uint8 codes of each part of x, and r [batch, positions, 1]; their nodes go before `before`."""
        name, cut = f"{_module(before)}.{SMOOTHING}", parts(len(s))
        nodes = [ir.Node("", "Mul", [x, _initializer(model, name, 1 / s)], num_outputs=1)]
        if len(cut) > 1:
            size = ir.AttrInt64("axis", -1), ir.AttrInt64("num_outputs", len(cut))
            nodes.append(ir.Node("", "Split", [nodes[0].outputs[0]], size, num_outputs=len(cut)))
        found = []
        for smooth in nodes[-1].outputs:
            steps = [
                ("Abs", None),
                ("ReduceMax", constant(model, "prompt.axis", np.array([-1], np.int64))),
                ("Max", constant(model, "prompt.least", np.array(LEAST * LARGEST, np.float32))),
            ]
            r = smooth
            for op, other in steps:
                nodes.append(ir.Node("", op, [r] if other is None else [r, other], num_outputs=1))
                r = nodes[-1].outputs[0]
            nodes.append(ir.Node("", "Div", [smooth, r], num_outputs=1))
            step, middle = self._ends(model)
            nodes.append(ir.Node("", "QuantizeLinear", [nodes[-1].outputs[0], step, middle], num_outputs=1))
            found.append((nodes[-1].outputs[0], r))
        for i, value in enumerate(value for node in nodes for value in node.outputs):
            value.name = f"{name}.{i}"
        model.graph.insert_before(before, nodes)
        return found

    def _product(
        self, model: ir.Model, node: ir.Node, w: Floats, s: Floats, rounded: Sequence[tuple[ir.Value, ir.Value]]
    ) -> None:
        """Puts an int8 product where `node` was, for several parts a sum of them."""
        name, old, (step, middle) = _module(node), node.outputs[0], self._ends(model)
        nodes: list[ir.Node] = []
        results: list[ir.Value] = []
        for i, (part, (codes, scales)) in enumerate(zip(parts(len(s)), rounded, strict=True)):
            b, t = rounded_weights(w[:, part], s[part])
            which = f"{name}.{i}" if len(rounded) > 1 else name
            weight = _initializer(model, f"{which}.{INT8}", np.ascontiguousarray(b.T))
            given = [codes, weight, step, _initializer(model, f"{which}.{INT8_SCALES}", t), middle]
            nodes.append(ir.Node(MICROSOFT, "MatMulIntegerToFloat", given, num_outputs=1))
            nodes.append(ir.Node("", "Mul", [nodes[-1].outputs[0], scales], num_outputs=1))
            results.append(nodes[-1].outputs[0])
        if len(results) > 1:
            nodes.append(ir.Node("", "Sum", results, num_outputs=1))
        bias = node.inputs[5] if len(node.inputs) > 5 else None
        if bias is not None:
            nodes.append(ir.Node("", "Add", [nodes[-1].outputs[0], bias], num_outputs=1))
        for i, made in enumerate(nodes[:-1]):
            made.outputs[0].name = f"{name}.{INT8}.{i}"
        new = nodes[-1].outputs[0]
        new.shape, new.type = old.shape, old.type
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, [old], [new])

    def _ends(self, model: ir.Model) -> tuple[ir.Value, ir.Value]:
        """The scale of codes of numbers up to 1, and the code of zero."""
        step = constant(model, "prompt.step", np.array(1 / LARGEST, np.float32))
        return step, constant(model, "prompt.middle", np.array(MIDDLE, np.uint8))


NORMS = {
    "SimplifiedLayerNormalization": {1: ""},
    "SkipSimplifiedLayerNormalization": {2: ""},
    "LayerNormalization": {1: "", 2: "_bias"},
    "SkipLayerNormalization": {2: "", 3: "_bias"},
}


def _norm_of(x: ir.Value, readers: Sequence[ir.Node]) -> ir.Node | None:
    """The norm that makes x, if nothing but these products reads it."""
    norm = x.producer()
    if norm is None or norm.op_type not in NORMS or x.index() or x.is_graph_output():
        return None
    return norm if {use.node for use in x.uses()} == {*readers} and _constants_of(norm) else None


def _constants_of(norm: ir.Node) -> dict[int, str]:
    """What a norm multiplies by and adds, by the number of the input; empty if one of them is not constant."""
    found = {
        n: which for n, which in NORMS[norm.op_type].items() if len(norm.inputs) > n and norm.inputs[n] is not None
    }
    return found if all(norm.inputs[n].const_value is not None for n in found) else {}


def _module(node: ir.Node) -> str:
    """The path of the product's module: its codes' name without the last part."""
    codes = node.inputs[1]
    assert codes is not None
    return str(codes.name).rpartition(".")[0]


def _initializer(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value
