r"""An int8 cache: GroupQueryAttention keeps keys and values in a quarter of the bytes.

    kept[h, t, c] = clip(round(x[h, t, c] / s[h, c]), -128, 127)          s[h, c] = margin max |x[h, :, c]| / 127

with a scale per layer, head and channel, separately for keys (as they are kept, after rotary embedding) and values
(PER_CHANNEL; per tensor, the largest channel of a layer would cost all others their resolution). ONNX Runtime has had
CPU kernels for it since May 2026 (#28576, #28578): they quantise what is new and multiply in int8, also in prompts.

The largest values are those that this graph puts into its float32 cache for the tasks' own training prompts and for
random tokens, with each adapter and with none. Larger values are silently clipped, so three measures are taken:

- Rotary embedding rotates pairs of a key's channels with the position, and slow pairs hardly rotate within a short
prompt. So both channels of a pair get the range that either may have at any position, sqrt(x_i^2 + x_j^2). Measured on
SmolLM2 (KL of int8 against float32, on texts of 250 to 1,200 tokens unrelated to the tasks): 0.013 and 0.031 without
it, 0.007 and 0.008 with it. If a family rotates in operators of its own (part of each head, as GPT-NeoX), only the
random tokens help.
- `MARGIN`: a fifth of the range is left for other texts. With the random tokens, 1 entry in 10,000 is clipped there,
and 1 in 100,000 in prompts of the tasks.
- l_k and l_v multiply what is kept. A later adapter with larger ones than those that were seen is refused
(qia3.bundle.cache_range); in a merged bundle they are in the weights, and there are no later adapters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PreconditionError

from qia3.bundle.ports import PAST, PRESENT
from qia3.graph.forced import OrtDecoder

MARGIN = 1.25
LARGEST = 127
ATTENTION = "GroupQueryAttention"
SCALES = {"k_scale": 12, "v_scale": 13}  # the operator's inputs by number
Floats = NDArray[np.float32]
Text = tuple[Sequence[int], Mapping[str, Floats]]  # tokens, and the vectors [1, 1, d] to run them with


def pairs_of(model: ir.Model) -> dict[str, list[tuple[int, int]]]:
    """The pairs of channels that are rotated together, by the name of the keys' input; empty if the operator does not
    rotate.
    """
    found = {}
    for node in _attentions(model):
        table, past = node.inputs[7] if len(node.inputs) > 7 else None, node.inputs[3]
        if table is not None and past is not None and _number(node, "do_rotary"):
            assert table.shape is not None
            half = int(table.shape[1])
            near = _number(node, "rotary_interleaved")
            found[str(past.name)] = [(2 * i, 2 * i + 1) if near else (i, i + half) for i in range(half)]
    return found


def largest_kept(
    decoder: OrtDecoder, texts: Iterable[Text], pairs: Mapping[str, Sequence[tuple[int, int]]]
) -> dict[str, Floats]:
    """max |x| over all positions of the texts, [kv heads, head size] by the name of the cache's input; for `pairs`, the
    norm of the pair.
    """
    found: dict[str, Floats] = {}
    for tokens, vectors in texts:
        for name, kept in decoder.kept(tokens, vectors).items():
            sizes = np.abs(kept[0])
            if name in pairs:
                one, other = (list(side) for side in zip(*pairs[name], strict=True))
                sizes[..., one] = sizes[..., other] = np.hypot(sizes[..., one], sizes[..., other])
            most = sizes.max(axis=1)
            found[name] = np.maximum(found[name], most) if name in found else most
    return found


def with_int8_cache(graph: Path, largest: Mapping[str, Floats]) -> Path:
    """Gives the graph in this file an int8 cache; returns its path."""
    model = ir.load(graph)
    Int8Cache(largest)(model)
    ir.save(model, graph)
    return graph


class Int8Cache(InPlacePass):  # type: ignore[misc]
    """Gives every GroupQueryAttention an int8 cache, with constant scales from `largest` (see `largest_kept`); the
    types of the graph's inputs and outputs change accordingly.
    """

    def __init__(self, largest: Mapping[str, Floats]) -> None:
        super().__init__()
        self.largest = largest

    def requires(self, model: ir.Model) -> None:
        kept = {v.name for v in model.graph.inputs if (v.name or "").startswith(PAST)}
        read = {v.name for node in _attentions(model) for v in node.inputs[3:5] if v is not None}
        if not kept or kept != read:
            raise PreconditionError(f"caches that no {ATTENTION} keeps: {sorted(map(str, kept ^ read))}")
        if missing := kept - self.largest.keys():
            raise PreconditionError(f"caches whose range is not known: {sorted(map(str, missing))}")

    def call(self, model: ir.Model) -> PassResult:
        for node in _attentions(model):
            inputs = list(node.inputs) + [None] * (max(SCALES.values()) + 1 - len(node.inputs))
            for past, number in zip(node.inputs[3:5], SCALES.values(), strict=True):
                assert past is not None
                inputs[number] = self._scale(model, str(past.name))
            attributes = [ir.AttrString(f"{part}_quant_type", "PER_CHANNEL") for part in "kv"]
            attributes.append(ir.AttrInt64("kv_cache_bit_width", 8))
            node.resize_inputs(len(inputs))
            for i, value in enumerate(inputs):
                node.replace_input_with(i, value)
            for attribute in attributes:
                node.attributes.add(attribute)
        for value in (*model.graph.inputs, *model.graph.outputs):
            if (value.name or "").startswith((PAST, PRESENT)):
                value.dtype = ir.DataType.INT8
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        assert all(len(node.inputs) > SCALES["v_scale"] for node in _attentions(model))
        kept = [v for v in (*model.graph.inputs, *model.graph.outputs) if (v.name or "").startswith((PAST, PRESENT))]
        assert all(v.dtype == ir.DataType.INT8 for v in kept)

    def _scale(self, model: ir.Model, past: str) -> ir.Value:
        """[1, kv heads, 1, head size]; a channel that is always zero gets 1."""
        most = self.largest[past] * (MARGIN / LARGEST)
        scale = np.where(most > 0, most, 1).astype(np.float32)[None, :, None]
        tensor = ir.tensor(scale, name=f"{past}.scale")
        value = ir.Value(
            name=tensor.name, shape=ir.Shape(scale.shape), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor
        )
        model.graph.register_initializer(value)
        return value


def _number(node: ir.Node, name: str) -> int:
    return int(node.attributes[name].as_int()) if name in node.attributes else 0


def _attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == ATTENTION]
