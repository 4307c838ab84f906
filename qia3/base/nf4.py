"""A weight on the NF4 grid as a torch module: bitsandbytes' bytes (qia3.grids.nf4), without bitsandbytes.

On a CPU bitsandbytes dequantises in every forward pass, and on some processors it repacks what it was given. This keeps
the bytes as they are, and the dequantised weight if there is memory for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from qia3.base.weights import GridWeight
from qia3.grids import nf4


class Nf4Weight(GridWeight):
    """Codes uint8 [N K / 2], scales float32 [N K / block]; flat, since a block may span two rows."""

    kind, bits = "nf4", 4
    codes: Tensor
    scales: Tensor

    def __init__(self, weight: nf4.Nf4) -> None:
        super().__init__()
        self.inputs, self.outputs, self.block_size = weight.inputs, weight.outputs, weight.block_size
        self.register_buffer("codes", torch.from_numpy(weight.codes))
        self.register_buffer("scales", torch.from_numpy(weight.scales))

    @classmethod
    def from_float(cls, weight: Tensor, block_size: int) -> Nf4Weight:
        """The nearest levels of a float weight [N, K]."""
        return cls(nf4.quantise(np.ascontiguousarray(weight.detach().float().cpu().numpy()), block_size))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], inputs: int, block_size: int) -> Self:
        codes, scales = tensors["codes"].numpy(), tensors["scales"].numpy()
        return cls(nf4.Nf4(codes, scales, block_size, 2 * len(codes) // inputs, inputs))

    @property
    def grid(self) -> nf4.Nf4:
        return nf4.Nf4(self.codes.cpu().numpy(), self.scales.cpu().numpy(), self.block_size, self.outputs, self.inputs)

    @property
    def folds(self) -> bool:
        return self.grid.folds

    def rows(self, index: Tensor | slice, dtype: torch.dtype) -> Tensor:
        levels = torch.from_numpy(nf4.LEVELS).to(self.codes.device)  # not a buffer: all weights share this memory
        if (
            self.folds and self.inputs % 2 == 0
        ):  # rows are whole blocks and bytes: only the requested rows are dequantised
            codes, scales = self.codes.view(self.outputs, -1)[index], self.scales.view(self.outputs, -1)[index]
            steps = torch.stack((codes >> 4, codes & 15), dim=-1).flatten(-2)  # [..., K]
            return (levels[steps.int()] * scales.repeat_interleave(self.block_size, -1)).to(dtype)
        steps = torch.stack((self.codes >> 4, self.codes & 15), dim=-1).flatten()[: self.outputs * self.inputs]
        scales = self.scales.repeat_interleave(self.block_size)[: len(steps)]
        return (levels[steps.int()] * scales).view(self.outputs, self.inputs)[index].to(dtype)

    def _scaled(self, vector: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(nf4.fold(self.grid, vector).scales).to(self.codes.device)
