"""Q4_0, the first 4-bit format of GGUF files: blocks of 32 inputs with one float16 scale and the constant zero point 8.

    W[n, i] = (q[n, i] - 8) * d[n, b],    b = i // 32

    a block is 18 bytes:  d as float16, then 16 bytes; byte j has input j in its low nibble and input j + 16 in its high one

Worked example: the bytes 00 38 | 08 98 88 .. 88 are d = 0.5, q[0] = 8, q[16] = 0, q[1] = 8, q[17] = 9, and 8 elsewhere:
a block of zeros except W[16] = -4 and W[17] = 0.5. On our grid (int4.py) the codes are the same but are packed in pairs
of neighbours: byte 0 holds inputs 0 and 1. The zero point is that of a symmetric grid, so none is stored, and
float32(float16) is exact.

GGUF stores llama's query and key projections with the rows of each head in another order (rotary pairs side by side).
Each row is a unit here, so restoring the order (`rows`) moves codes and scales together.

Source: ggml-common.h (block_q4_0) and ggml-quants.c (dequantize_row_q4_0) of llama.cpp.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qia3.grids.blocks import Bytes
from qia3.grids.int4 import SYMMETRIC_ZERO, Int4, pack_nibbles, unpack

BLOCK, BLOCK_BYTES = 32, 18


def unpack_q4_0(raw: Bytes) -> Int4:
    """raw uint8 [N, 18 B] -> the same codes on our grid, without rounding.

    Raises ValueError if rows are not a whole number of blocks or a scale is not finite.
    """
    if raw.ndim != 2 or raw.dtype != np.uint8 or raw.shape[1] % BLOCK_BYTES or not raw.size:
        raise ValueError(f"{raw.dtype} {raw.shape} is not uint8 rows of whole {BLOCK_BYTES}-byte blocks")
    blocks = np.ascontiguousarray(raw).reshape(len(raw), -1, BLOCK_BYTES)
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0].astype(np.float32)
    if not np.isfinite(scales).all():
        raise ValueError("a scale is NaN or infinity")
    halves = blocks[..., 2:]
    codes = pack_nibbles(np.concatenate([halves & np.uint8(15), halves >> np.uint8(4)], axis=-1))
    return Int4(codes, scales, None, blocks.shape[1] * BLOCK)


def pack_q4_0(weight: Int4) -> Bytes:
    """raw uint8 [N, 18 B] of a symmetric weight in blocks of 32 whose scales are exact in float16."""
    codes, zeros = unpack(weight)
    assert (weight.block_size, weight.inputs % BLOCK) == (BLOCK, 0)
    assert (zeros == SYMMETRIC_ZERO).all()
    low, high = np.split(codes.reshape(weight.outputs, -1, BLOCK), 2, axis=-1)
    scales = np.ascontiguousarray(weight.scales[..., None].astype("<f2")).view(np.uint8)
    return np.concatenate([scales, low | (high << np.uint8(4))], axis=-1).reshape(weight.outputs, -1)


def rows(weight: Int4, order: NDArray[np.int64]) -> Int4:
    """The output rows in another order."""
    return Int4(
        weight.codes[order],
        weight.scales[order],
        None if weight.zero_points is None else weight.zero_points[order],
        weight.inputs,
    )
