"""Writes out zero points of 8, for kernels that compute differently without them.

Without zero points a 4-bit code means `(code - 8) * scale`, which is the same as with zero points of 8. Not all of ONNX
Runtime's kernels treat the two alike: on ARM with dot product instructions, KleidiAI truncates the scales of a
symmetric weight to bfloat16 (up to 0.8 % each) and rounds activations once per row; with zero points it keeps float32
scales and rounds once per block. IA³ is folded into the scales, so truncated scales also break the law that a merged
model equals the unmerged one: by 2.4e-3 of the answer's RMS per layer, 2e-7 with zero points written out (onnxruntime
1.32 under emulation of cortex-a76 and neoverse-v1). They cost half a byte per block, 1.4 % of the weights in blocks of
64; codes and scales do not change.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from qia3.base.modules import grid_linears
from qia3.base.weights import Int4Weight
from qia3.grids.int4 import SYMMETRIC_ZERO, pack_nibbles

INT8_PRODUCTS = 4  # the accuracy_level whose kernels differ; at 0 and 1 products are in float32 on every processor


def write_zero_points(model: nn.Module, accuracy_level: int) -> None:
    """Gives the symmetric 4-bit layers of `model` explicit zero points, in place, if a graph of `accuracy_level` needs
    them. Values do not change.
    """
    if accuracy_level != INT8_PRODUCTS:
        return
    for _, layer in grid_linears(model):
        if isinstance(layer.store, Int4Weight) and layer.store.zero_points is None:
            layer.store.zero_points = _eights(layer.store)


def _eights(store: Int4Weight) -> torch.Tensor:
    """uint8 [N, ceil(B / 2)]."""
    zeros = np.full((store.outputs, store.codes.shape[1]), SYMMETRIC_ZERO, np.uint8)
    return torch.from_numpy(pack_nibbles(zeros)).to(store.codes.device)
