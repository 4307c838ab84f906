"""A base whose 4-bit codes were given: a checkpoint that was quantised elsewhere keeps its codes, and only layers that
it leaves in float are quantised here.

A BaseModel then describes what is in the file, not what the build asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from qia3.base.drift import Moved, Rounding
from qia3.base.modules import GridEmbedding, GridLinear


@dataclass(frozen=True)
class Given:
    """Where the codes come from ("gptq", "gptq_v2", "awq", "nf4", "q4_0", "compressed-tensors" or "mlx"), and the grid
    of most layers. `rounding`: what our grid changed, if the codes' own grid is slightly different.
    """

    codes: str
    block_size: int
    symmetric: bool
    layers: int
    rounding: Rounding | None = None

    @classmethod
    def in_model(cls, codes: str, model: nn.Module, moved: Mapping[str, Moved] | None = None) -> Given:
        """From a model in which only the given layers are on a grid."""
        grids: Counter[tuple[int, bool]] = Counter()
        layers = [m for m in model.modules() if isinstance(m, GridLinear)]
        for layer in layers:
            symmetric = getattr(layer.store, "zero_points", None) is None
            grids[layer.store.block_size, symmetric] += layer.in_features * layer.out_features
        block_size, symmetric = grids.most_common(1)[0][0]
        return cls(codes, block_size, symmetric, len(layers), Rounding.over(moved) if moved else None)


def parameters(model: nn.Module) -> int:
    """Number of weights of the model, including those on a grid; shared ones count once."""
    layers = [m for m in model.modules() if isinstance(m, GridLinear)]
    on_grid = [m for m in model.modules() if isinstance(m, GridLinear | GridEmbedding)]
    stored = {id(m.store): m.store.inputs * m.store.outputs for m in on_grid}
    biases = sum(m.bias.numel() for m in layers if m.bias is not None)
    return sum(p.numel() for p in model.parameters()) + sum(stored.values()) + biases
