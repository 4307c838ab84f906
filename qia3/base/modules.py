"""A frozen base's 4-bit modules. They hold the int4 grid's own bytes (qia3.grids.int4), so what trains is what ships.

`Int4Weight` owns the bytes; `Int4Linear` and `Int4Embedding` point at one. A tied embedding and head share a single Int4Weight, as the
tensors did. A forward dequantises, multiplies in `compute` (by default its input's type) and gives its input's type back, so a model can
run its products in bfloat16 while norms, softmax and the residual stream stay float32. `hold_dense` keeps the dequantised weight between
calls, which trades 4 bytes a weight (2 in bfloat16) for time and changes no value.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qia3.grids import int4
from qia3.grids.calibrated import Seen, quantise_calibrated


class Int4Weight(nn.Module):
    """Codes uint8 [N, B, block/2], scales float32 [N, B], zero points uint8 [N, ceil(B/2)] or None."""

    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None

    def __init__(self, weight: int4.Int4) -> None:
        super().__init__()
        self.inputs, self.outputs, self.block_size = weight.inputs, weight.outputs, weight.block_size
        self.register_buffer("codes", torch.from_numpy(weight.codes))
        self.register_buffer("scales", torch.from_numpy(weight.scales))
        self.register_buffer("zero_points", None if weight.zero_points is None else torch.from_numpy(weight.zero_points))
        self.compute: torch.dtype | None = None
        self._dense: Tensor | None = None

    @classmethod
    def from_float(cls, weight: Tensor, block_size: int, symmetric: bool, seen: Seen | None = None) -> Int4Weight:
        """Quantises a float weight [N, K]; for the inputs it will get, where they are known."""
        dense = np.ascontiguousarray(weight.detach().float().cpu().numpy())
        if seen is None:
            return cls(int4.quantise(dense, block_size, symmetric))
        return cls(quantise_calibrated(dense, seen, block_size, symmetric))

    @property
    def grid(self) -> int4.Int4:
        """The same bytes as numpy arrays, without a copy on a CPU."""
        zeros = None if self.zero_points is None else self.zero_points.cpu().numpy()
        return int4.Int4(self.codes.cpu().numpy(), self.scales.cpu().numpy(), zeros, self.inputs)

    def rows(self, index: Tensor | slice, dtype: torch.dtype) -> Tensor:
        """Dequantised rows [..., K] in `dtype`; the arithmetic is float32, then rounded once."""
        codes, scales = self.codes[index], self.scales[index]
        nibbles = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)  # [..., B, block]
        zeros = self._zeros(index, codes)
        dense = (nibbles.float() - zeros.unsqueeze(-1)) * scales.unsqueeze(-1)
        return dense.flatten(-2)[..., : self.inputs].to(dtype)

    def _zeros(self, index: Tensor | slice, codes: Tensor) -> Tensor:
        """Zero points as float32 [..., B]."""
        if self.zero_points is None:
            return torch.full(codes.shape[:-1], float(int4.SYMMETRIC_ZERO), device=codes.device)
        packed = self.zero_points[index]
        return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)[..., : codes.shape[-2]].float()

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The whole weight [N, K] in `dtype`."""
        if self._dense is not None and self._dense.dtype == dtype:
            return self._dense
        return self.rows(slice(None), dtype)

    def hold_dense(self, dtype: torch.dtype | None) -> None:
        """Keeps the dequantised weight in `dtype` until called with None."""
        self._dense = None
        if dtype is not None:
            self._dense = self.rows(slice(None), dtype)

    def fold(self, vector: Tensor) -> None:
        """Multiplies output row n by vector[n], float32 [N]: one multiply on the scales."""
        self._dense = None
        self.scales = torch.from_numpy(int4.fold(self.grid, vector.detach().float().cpu().numpy()).scales).to(self.codes.device)


class Int4Linear(nn.Module):
    """y = x W^T + bias with W on the int4 grid."""

    bias: Tensor | None

    def __init__(self, weight: Int4Weight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.store = weight
        self.in_features, self.out_features = weight.inputs, weight.outputs
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())

    @property
    def weight(self) -> Tensor:
        """The dequantised weight [N, K], float32: for code that looks at a linear layer's weight."""
        return self.store.dense(torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        # x [..., K] -> [..., N]
        dtype = self.store.compute or x.dtype
        return F.linear(x.to(dtype), self.store.dense(dtype), None if self.bias is None else self.bias.to(dtype)).to(x.dtype)

    def fold(self, vector: Tensor) -> None:
        """Output row n times vector[n], scales and bias alike."""
        self.store.fold(vector)
        if self.bias is not None:
            self.bias = self.bias * vector.to(self.bias)


class Int4Embedding(nn.Module):
    """Rows of an Int4Weight [V, H], times a constant where the model scales its embeddings."""

    def __init__(self, weight: Int4Weight, dtype: torch.dtype, scale: float | None = None) -> None:
        super().__init__()
        self.store, self.dtype, self.scale = weight, dtype, scale
        self.num_embeddings, self.embedding_dim = weight.outputs, weight.inputs

    @property
    def weight(self) -> Tensor:
        """The dequantised table [V, H]."""
        return self.store.dense(self.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        # ids [...] -> [..., H]
        rows = self.store.rows(ids, self.dtype)
        return rows if self.scale is None else rows * torch.tensor(self.scale, dtype=self.dtype, device=rows.device)
