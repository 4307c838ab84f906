"""A base whose 4-bit codes were given: a checkpoint that others quantised keeps its codes, and only what it leaves in
float gets ours.

What a BaseModel says of itself is then what is in the file, not what a build asked for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from qia3.base.modules import GridLinear


@dataclass(frozen=True)
class Given:
    """Where the codes are from ("gptq", "gptq_v2", "awq" or "q4_0"), and the grid that most of them are on."""

    codes: str
    block_size: int
    symmetric: bool
    layers: int

    @classmethod
    def in_model(cls, codes: str, model: nn.Module) -> Given:
        """Of a model whose only layers on a grid are the given ones."""
        grids: Counter[tuple[int, bool]] = Counter()
        layers = [m for m in model.modules() if isinstance(m, GridLinear)]
        for layer in layers:
            symmetric = getattr(layer.store, "zero_points", None) is None
            grids[layer.store.block_size, symmetric] += layer.in_features * layer.out_features
        block_size, symmetric = grids.most_common(1)[0][0]
        return cls(codes, block_size, symmetric, len(layers))


def parameters(model: nn.Module) -> int:
    """Weights of the model, those on a grid among them; a shared one once."""
    layers = [m for m in model.modules() if isinstance(m, GridLinear)]
    stored = {id(m.store): m.in_features * m.out_features for m in layers}
    biases = sum(m.bias.numel() for m in layers if m.bias is not None)
    return sum(p.numel() for p in model.parameters()) + sum(stored.values()) + biases
