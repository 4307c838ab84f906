"""How far weights moved when they were put on another grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from qia3.base.weights import GridWeight


@dataclass(frozen=True)
class Moved:
    """Change of one layer: sums of squares of the differences and of the weights, and how many of its blocks have other
    codes.
    """

    by: float
    of: float
    anew: int = 0

    @classmethod
    def between(cls, dense: Tensor, weight: GridWeight, anew: int = 0) -> Self:
        """Compares float weights [N, K] with those on a grid."""
        error = weight.rows(slice(None), torch.float32) - dense
        return cls(float(error.double().square().sum()), float(dense.double().square().sum()), anew)

    @property
    def relative_rms(self) -> float:
        """Root mean square of the difference over that of the weights."""
        return float((self.by / max(self.of, 1e-300)) ** 0.5)


@dataclass(frozen=True)
class Drift:
    """Root mean square of the difference over that of the weights, over all layers that changed and for the worst one."""

    format: str
    block_size: int
    layers: int
    relative_rms: float
    worst_relative_rms: float
    worst_layer: str

    @classmethod
    def over(cls, format: str, block_size: int, each: Mapping[str, Moved]) -> Self:
        """The summary over layers, given by name."""
        worst = max(each, key=lambda name: each[name].relative_rms)
        whole = Moved(sum(m.by for m in each.values()), sum(m.of for m in each.values()))
        return cls(format, block_size, len(each), whole.relative_rms, each[worst].relative_rms, worst)


@dataclass(frozen=True)
class Rounding:
    """What rounding zero points to whole numbers changed in codes that came with other offsets (MLX): `layers` is the
    number that keep their codes, `anew` how many of them have blocks with other codes.
    """

    layers: int
    anew: int
    relative_rms: float
    worst_relative_rms: float
    worst_layer: str

    @classmethod
    def over(cls, each: Mapping[str, Moved]) -> Self:
        """The summary over layers, given by name."""
        drift = Drift.over("int4", 0, each)
        anew = sum(1 for moved in each.values() if moved.anew)
        return cls(drift.layers, anew, drift.relative_rms, drift.worst_relative_rms, drift.worst_layer)
