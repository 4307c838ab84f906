"""A weight on the int8 grid as a torch module (qia3.grids.int8): for layers that are kept at 8 bits among those at 4."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qia3.base.weights import BlockWeight
from qia3.grids import int8


class Int8Weight(BlockWeight):
    """Codes uint8 [N, B, block], zero points uint8 [N, B] or None."""

    kind, bits, layout = "int8", 8, int8.Int8

    @classmethod
    def from_float(cls, weight: Tensor, block_size: int, symmetric: bool) -> Int8Weight:
        """Rounds a float weight [N, K] to nearest."""
        return cls(int8.quantise(np.ascontiguousarray(weight.detach().float().cpu().numpy()), block_size, symmetric))

    def rows(self, index: Tensor | slice, dtype: torch.dtype) -> Tensor:
        codes, scales = self.codes[index], self.scales[index]  # [..., B, block], [..., B]
        zeros = int8.SYMMETRIC_ZERO if self.zero_points is None else self.zero_points[index].float().unsqueeze(-1)
        dense = (codes.float() - zeros) * scales.unsqueeze(-1)
        return dense.flatten(-2)[..., : self.inputs].to(dtype)
