"""Groups of inputs, as other formats have them, as blocks of int4.py: same codes, same scales, same zero points.

GPTQ and AWQ store a scale and a zero point per group of G inputs of an output row, usually 32, 64 or 128, or one for
the whole row (group size -1). MatMulNBits takes blocks of 16, 32, 64, 128 or 256 inputs. A group of such a size is one
block. A longer group is cut into the largest blocks that divide it, and each block gets the group's scale and zero
point: no value changes, only the number of scales grows.

    G = 512             ->  blocks of 256, scales s0 s0 s1 s1 ...
    G = -1, K = 896     ->  7 blocks of 128 per row, all with the row's one scale
    G = 24              ->  refused: no block divides it
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qia3.grids.blocks import BLOCK_SIZES, Bytes
from qia3.grids.int4 import SYMMETRIC_ZERO, Int4, pack_nibbles

Halves = NDArray[np.float16] | NDArray[np.float32]


def group_inputs(group_size: int, inputs: int) -> int:
    """Inputs per group; a group size of -1 means the whole row."""
    return inputs if group_size == -1 else group_size


def block_of(group: int) -> int:
    """The largest block that divides a group of this many inputs. Raises ValueError if none does."""
    fits = [b for b in BLOCK_SIZES if group > 0 and group % b == 0]
    if not fits:
        raise ValueError(f"a group of {group} inputs cannot be split into blocks of 16, 32, 64, 128 or 256")
    return max(fits)


def to_blocks(codes: Bytes, scales: Halves, zeros: Bytes, group: int, inputs: int) -> Int4:
    """codes [N, inputs / 2] (two per byte, the even input low), scales and zero points 0..15 [N, groups] -> Int4.

    If every zero point is 8, the weight is symmetric and stores none. Raises ValueError if shapes do not match or a
    scale is not finite.
    """
    block = block_of(group)
    groups, blocks = -(-inputs // group), -(-inputs // block)
    if codes.shape != (len(scales), inputs // 2) or not scales.shape == zeros.shape == (len(codes), groups):
        raise ValueError(
            f"codes {codes.shape}, scales {scales.shape} and zero points {zeros.shape} do not match {groups} "
            "groups per row"
        )
    if not np.isfinite(scales).all():
        raise ValueError("a scale is NaN or infinity")
    each = np.repeat(scales.astype(np.float32), group // block, axis=1)[:, :blocks]
    nibbles: Bytes = np.repeat(zeros, group // block, axis=1)[:, :blocks]
    filled = np.empty((len(codes), blocks * block // 2), np.uint8)
    filled[:, : inputs // 2] = codes
    filled[:, inputs // 2 :] = nibbles[:, -1:] * np.uint8(
        17
    )  # padding: the zero point's code twice, which dequantises to zero
    packed = None if (zeros == SYMMETRIC_ZERO).all() else pack_nibbles(nibbles)
    return Int4(filled.reshape(len(codes), blocks, block // 2), np.ascontiguousarray(each), packed, inputs)
