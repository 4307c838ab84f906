"""What the grids with blocks of inputs have in common (int4.py, int8.py): codes block by block, a scale and a zero
point for each, and the fold.

A row is a whole number of blocks, so multiplying output row n by l[n] multiplies its scales alone: the codes and zero
points stay byte for byte what they were, for any sign of l, and l = 0 gives a row of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

BLOCK_SIZES = (16, 32, 64, 128, 256)

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Blocks:
    """A weight on such a grid.

    `inputs` is K, which the padded codes no longer tell. How codes and zero points are packed is the grid's.
    """

    codes: Bytes  # [N, B, bytes of a block]
    scales: Floats  # [N, B]
    zero_points: Bytes | None  # None on a symmetric grid
    inputs: int

    @property
    def outputs(self) -> int:
        return int(self.codes.shape[0])

    @property
    def block_size(self) -> int:
        """Inputs in a block."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.zero_points is None else self.zero_points.nbytes)


Weight = TypeVar("Weight", bound=Blocks)


def fold(weight: Weight, vector: Floats) -> Weight:
    """Multiplies output row n by vector[n] (shape [N]): one multiply on the scales.

    Codes and zero points are the same objects.
    """
    if vector.shape != (weight.outputs,):
        raise ValueError(f"the vector has shape {vector.shape}, the weight {weight.outputs} output rows")
    return replace(weight, scales=weight.scales * vector.astype(np.float32)[:, None])


def check(weight: Floats, block_size: int) -> None:
    """Raises ValueError on a bad block size or a weight that is not finite."""
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size is one of {BLOCK_SIZES}, not {block_size}")
    if not np.isfinite(weight).all():
        raise ValueError("the weight holds NaN or infinity")
