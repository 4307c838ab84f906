"""What the block-wise grids (int4.py, int8.py) have in common: codes in blocks of inputs, a scale and a zero point per
block, and the fold.

A row is a whole number of blocks, so multiplying output row n by l[n] only multiplies its scales: the codes and zero
points stay the same, byte for byte, for any sign of l. With l = 0 the row becomes zeros.
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
    """A weight on a block-wise grid. Each grid says how its codes and zero points are packed.

    `inputs` is K, which cannot be told from the codes, since the last block of a row is padded.
    """

    codes: Bytes  # [N, B, bytes per block]
    scales: Floats  # [N, B]
    zero_points: Bytes | None  # None on a symmetric grid
    inputs: int

    @property
    def outputs(self) -> int:
        return int(self.codes.shape[0])

    @property
    def block_size(self) -> int:
        """Inputs per block."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.zero_points is None else self.zero_points.nbytes)


Weight = TypeVar("Weight", bound=Blocks)


def fold(weight: Weight, vector: Floats) -> Weight:
    """Multiplies output row n by vector[n] (shape [N]) by multiplying its scales. Codes and zero points are shared, not
    copied. Raises ValueError if the shape of the vector is wrong.
    """
    if vector.shape != (weight.outputs,):
        raise ValueError(f"the vector has shape {vector.shape}, but the weight has {weight.outputs} output rows")
    return replace(weight, scales=weight.scales * vector.astype(np.float32)[:, None])


def check(weight: Floats, block_size: int) -> None:
    """Raises ValueError on a bad block size or a weight that is not finite."""
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size must be one of {BLOCK_SIZES}, not {block_size}")
    if not np.isfinite(weight).all():
        raise ValueError("the weight holds NaN or infinity")
