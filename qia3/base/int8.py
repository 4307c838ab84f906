"""A weight on the int8 grid as a torch module (qia3.grids.int8): for layers that are kept at 8 bits among those at 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qia3.base.weights import GridWeight
from qia3.grids import int8


class Int8Weight(GridWeight):
    """Codes uint8 [N, B, block], scales float32 [N, B], zero points uint8 [N, B] or None."""

    kind, bits = "int8", 8
    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None

    def __init__(self, weight: int8.Int8) -> None:
        super().__init__()
        self.inputs, self.outputs, self.block_size = weight.inputs, weight.outputs, weight.block_size
        self.register_buffer("codes", torch.from_numpy(weight.codes))
        self.register_buffer("scales", torch.from_numpy(weight.scales))
        self.register_buffer("zero_points", None if weight.zero_points is None else torch.from_numpy(weight.zero_points))

    @classmethod
    def from_float(cls, weight: Tensor, block_size: int, symmetric: bool) -> Int8Weight:
        """Rounds a float weight [N, K] to nearest."""
        return cls(int8.quantise(np.ascontiguousarray(weight.detach().float().cpu().numpy()), block_size, symmetric))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], inputs: int, block_size: int) -> Int8Weight:
        zeros = tensors.get("zero_points")
        return cls(int8.Int8(tensors["codes"].numpy(), tensors["scales"].numpy(), None if zeros is None else zeros.numpy(), inputs))

    @property
    def grid(self) -> int8.Int8:
        zeros = None if self.zero_points is None else self.zero_points.cpu().numpy()
        return int8.Int8(self.codes.cpu().numpy(), self.scales.cpu().numpy(), zeros, self.inputs)

    def rows(self, index: Tensor | slice, dtype: torch.dtype) -> Tensor:
        codes, scales = self.codes[index], self.scales[index]  # [..., B, block], [..., B]
        zeros = int8.SYMMETRIC_ZERO if self.zero_points is None else self.zero_points[index].float().unsqueeze(-1)
        dense = (codes.float() - zeros) * scales.unsqueeze(-1)
        return dense.flatten(-2)[..., : self.inputs].to(dtype)

    def _scaled(self, vector: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(int8.fold(self.grid, vector).scales).to(self.codes.device)
