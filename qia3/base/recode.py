"""Moves an NF4 base to a grid that devices multiply quickly.

ONNX Runtime's NF4 product is 25 to 100 times slower than its int4 one (docs/design.md), so a base that was trained on
bitsandbytes' codes usually ships as int8 or int4, and the effect is measured and reported.

A level of NF4 is LEVELS[q] times the block's largest magnitude. On int8 with the same blocks every level is off by at
most half a step, s / 2 with s = (max - min) / 255, about 0.4 % of the largest. On int4, sixteen unevenly spaced levels
meet sixteen even ones, and the loss is that of int4. Rows stay rows, so vectors that were trained on NF4 remain valid,
unmerged or merged. Layers on other grids are left as they are.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from qia3.base.drift import Drift, Moved
from qia3.base.int8 import Int8Weight
from qia3.base.modules import grid_linears
from qia3.base.nf4 import Nf4Weight
from qia3.base.weights import GridWeight, Int4Weight
from qia3.grids import int4, int8

Recoded = Literal["int8", "int4"]


def recode(model: nn.Module, to: Recoded, block_size: int) -> Drift | None:
    """Puts every NF4 layer of `model` on the grid `to`, with blocks of at most `block_size`, in place.

    Returns None if there is no such layer.
    """
    each: dict[str, Moved] = {}
    for name, layer in grid_linears(model):
        if isinstance(layer.store, Nf4Weight):
            dense = layer.store.rows(slice(None), torch.float32)
            layer.store = _store(dense, to, min(block_size, 256))
            each[name] = Moved.between(dense, layer.store)
    return Drift.over(to, block_size, each) if each else None


def _store(dense: Tensor, to: Recoded, block_size: int) -> GridWeight:
    inputs = dense.shape[1]
    if to == "int8":
        return Int8Weight.from_float(dense, int8.block_for(inputs, block_size, symmetric=False), symmetric=False)
    return Int4Weight.from_float(dense, int4.block_for(inputs, block_size), symmetric=False)
