"""Keeps the codes of a GGUF file's Q4_0 layers.

The file is read like any GGUF: dequantised. Then each linear layer whose tensor is Q4_0 in the file gets the file's
codes back. The tensor is found by gguf's own name table (model.layers.0.self_attn.q_proj <-> blk.0.attn_q). Its rows
may be in another order: files of the llama architecture store each head's rotary pairs side by side, x0 y0 x1 y1 ..,
where transformers has x0 x1 .. y0 y1 ...

Names and orders are not taken on trust: codes are kept only if, dequantised, they equal the layer's weight entry by
entry. (q - 8) * d is exact in float32 (4 bits times 11), so exact equality is the right test.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

from qia3.base.gguf_parts import Gguf
from qia3.base.gguf_weights import tensor_name
from qia3.base.given import Given
from qia3.base.modules import GridLinear
from qia3.base.quantise import float_weight
from qia3.base.weights import Int4Weight
from qia3.grids.int4 import Int4, dequantise
from qia3.grids.q4_0 import rows, unpack_q4_0


def keep_q4_0(model: Any, file: Gguf) -> Given | None:
    """Replaces the float layers that were made from Q4_0 tensors by the file's codes.

    Returns None, and changes nothing, if most weights have other formats.
    """
    kept = {name for name, t in file.tensors.items() if t.kind == gguf.GGMLQuantizationType.Q4_0 and len(t.shape) == 2}
    embedding = model.get_input_embeddings().weight
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m.weight is not embedding}
    find = tensor_name(file, model.config)
    ours = {name: place for name in layers if (place := find(f"{name}.weight")) in kept and place is not None}
    if 2 * sum(layers[name].weight.numel() for name in ours) <= sum(layer.weight.numel() for layer in layers.values()):
        return None
    for name, place in ours.items():
        codes = _same(unpack_q4_0(file.raw(place)), layers[name], model.config.get_text_config())
        if codes is not None:
            model.set_submodule(name, GridLinear(Int4Weight(codes), layers[name].bias))
    return Given.in_model("q4_0", model) if any(isinstance(m, GridLinear) for m in model.modules()) else None


def _same(weight: Int4, layer: nn.Module, config: Any) -> Int4 | None:
    """The codes with rows in the order that gives the layer's weight, or None if no order does."""
    wanted = float_weight(layer).detach().float().numpy()
    if wanted.shape != (weight.outputs, weight.inputs):
        return None
    dense = dequantise(weight)
    for order in _orders(weight.outputs, config):
        if np.array_equal(dense[order], wanted):
            return rows(weight, order)
    return None


def _orders(count: int, config: Any) -> Iterator[NDArray[np.int64]]:
    """Row orders to try: as stored, and with each head's rotary pairs separated."""
    yield np.arange(count)
    for heads in (config.num_attention_heads, getattr(config, "num_key_value_heads", None)):
        if heads and count % (2 * heads) == 0:
            yield np.arange(count).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
