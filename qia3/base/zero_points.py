"""Zero points of 8, written out, for kernels that read a symmetric grid as another one.

Without zero points a 4-bit code means `(code - 8) * scale`, and with zero points of 8 it means the same. ONNX Runtime's
kernels do not all treat the two alike: on ARM with dot products KleidiAI truncates the scales of a symmetric weight to
bfloat16 (up to 0.8 % each) and rounds activations once per row, where it keeps float32 scales and rounds once per block
beside zero points. IA³ is folded into the scales, so a truncated scale also breaks the law that a merged model is the side
model: by 2.4e-3 of the answer's RMS per layer, 2e-7 with zero points written out (onnxruntime 1.32 under emulation of
cortex-a76 and neoverse-v1). Half a byte per block, 1.4 % of the weights in blocks of 64; codes and scales stay.
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
    """Gives the symmetric 4-bit layers of `model` their zero points, in place, where a graph of `accuracy_level` needs
    them. Values stay what they were.
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
