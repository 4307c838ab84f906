"""The layers of a frozen base on any grid: a linear layer and an embedding, which refer to a weight's bytes
(weights.py).

A tied embedding and head share one GridWeight. A forward dequantises, multiplies in `compute` (default: the type of its
input) and returns its input's type, so a model can run its products in bfloat16 while norms, softmax and the residual
stream stay float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from qia3.base.product import product
from qia3.base.weights import GridWeight

M = TypeVar("M", bound=nn.Module)


class GridLinear(nn.Module):
    """y = x W^T + bias with W on a grid."""

    bias: Tensor | None

    def __init__(self, weight: GridWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.store = weight
        self.in_features, self.out_features = weight.inputs, weight.outputs
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())

    @property
    def weight(self) -> Tensor:
        """The dequantised weight [N, K], float32, for code that expects a linear layer's weight."""
        return self.store.dense(torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        # x [..., K] -> [..., N]
        return self.computed(x).to(x.dtype)

    def computed(self, x: Tensor) -> Tensor:
        """The same, in the type of the product."""
        dtype = self.store.compute or x.dtype
        return product(x.to(dtype), self.store, None if self.bias is None else self.bias.to(dtype))

    def fold(self, vector: Tensor) -> None:
        """Multiplies output row n by vector[n], in the scales and in the bias."""
        self.store.fold(vector)
        if self.bias is not None:
            self.bias = self.bias * vector.to(self.bias)


class GridEmbedding(nn.Module):
    """Rows of a GridWeight [V, H], times a constant if the model scales its embeddings."""

    def __init__(self, weight: GridWeight, dtype: torch.dtype, scale: float | None = None) -> None:
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


class Wrapper(nn.Module):
    """A wrapper around a layer of the base, which keeps the name of that layer."""

    base: nn.Module


def grid_linears(model: nn.Module) -> Iterator[tuple[str, GridLinear]]:
    """Every linear layer on a grid, by its name in the base without wrappers."""
    return named_modules(model, GridLinear)


def named_modules(model: nn.Module, kind: type[M]) -> Iterator[tuple[str, M]]:
    """Every module of a kind, by its name in the base without wrappers."""
    wrapped = {f"{name}.base" for name, module in model.named_modules() if isinstance(module, Wrapper)}
    for name, module in model.named_modules():
        if isinstance(module, kind):
            yield name.removesuffix(".base") if name in wrapped else name, module
