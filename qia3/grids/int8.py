"""The int8 grid: unsigned 8-bit codes, with a scale and a zero point per block of inputs, for the few layers that are
most sensitive to rounding.

It is the int4 grid (int4.py) with one byte per code, in the layout of ONNX Runtime's MatMulNBits at bits = 8:

    W[n, i] = (q[n, i] - z[n, b]) * s[n, b],    b = i // block,    q, z in 0..255

    codes        uint8   [N, B, block]     one code per byte
    scales       float32 [N, B]
    zero points  uint8   [N, B]            one per block; absent on a symmetric grid, where z = 128

The last block of a row is padded with codes equal to its zero point. Worked example, N = 1, K = 4, shown for a block of
4:

    W = [-0.5, 0.0, 1.0, 2.05]     s = (2.05 + 0.5) / 255 = 0.01     z = round(0.5 / 0.01) = 50
    q = [0, 50, 150, 255]          bytes: 0x00, 0x32, 0x96, 0xFF     zero points: 0x32

A block is at least 128 where that fits: 8-bit steps are so fine that more weights can share a scale than at 4 bits.

Rounding is to nearest on [min(W, 0), max(W, 0)], or on [-max |W|, max |W|] with the codes 1 to 255 if symmetric. There
is no search and no calibration: a step is 1/17 of the 4-bit step, and the squared error about 1/290.

Folding is as in int4: row n times l[n] is the row's scales times l[n], and nothing else changes.

Source of the layout: docs/ContribOperators.md of ONNX Runtime, com.microsoft.MatMulNBits and
com.microsoft.GatherBlockQuantized.
"""

from __future__ import annotations

import numpy as np

from qia3.grids.blocks import BLOCK_SIZES, Blocks, Floats, check
from qia3.grids.blocks import fold as fold

SYMMETRIC_ZERO = 128
LEAST_BLOCK = 128


class Int8(Blocks):
    """Codes [N, B, block], zero points [N, B]."""

    @property
    def block_size(self) -> int:
        return int(self.codes.shape[2])


def bits_per_weight(block_size: int, symmetric: bool) -> float:
    """The grid's arithmetic for rows of a whole number of blocks: 8 bits, a float32 scale and an 8-bit zero point per
    block.
    """
    return 8 + 32 / block_size + (0 if symmetric else 8 / block_size)


def row_bytes(inputs: int, block: int, symmetric: bool) -> int:
    """Bytes per row: codes, scales and zero points."""
    return -(-inputs // block) * (block + 4 + (0 if symmetric else 1))


def block_for(inputs: int, at_most: int, symmetric: bool = False) -> int:
    """The block size, up to `at_most` or 128, in which a row of `inputs` takes the fewest bytes: 64 for 576 inputs, as
    blocks of 128 would pad the row to 640.
    """
    blocks = (b for b in BLOCK_SIZES if b <= max(at_most, LEAST_BLOCK))
    return min(blocks, key=lambda block: (row_bytes(inputs, block, symmetric), block))


def quantise(weight: Floats, block_size: int, symmetric: bool = False) -> Int8:
    """Round to nearest. weight [N, K] float32 -> Int8.

    Raises ValueError on a bad block size or a weight that is not finite.
    """
    check(weight, block_size)
    outputs, inputs = weight.shape
    blocks = -(-inputs // block_size)
    wide = np.pad(weight.astype(np.float32, copy=False), ((0, 0), (0, blocks * block_size - inputs))).reshape(
        outputs, blocks, block_size
    )
    scales, zeros = _range(wide, symmetric)
    steps = np.rint(np.divide(wide, scales[..., None], out=np.zeros_like(wide), where=scales[..., None] != 0))
    codes = np.clip(steps + zeros[..., None], 0, 255).astype(np.uint8)
    return Int8(codes, scales, None if symmetric else zeros.astype(np.uint8), inputs)


def _range(blocks: Floats, symmetric: bool) -> tuple[Floats, Floats]:
    """Scales and zero points [N, B] of blocks [N, B, block]; a block of zeros gets scale 0."""
    low, high = np.minimum(blocks.min(axis=-1), 0), np.maximum(blocks.max(axis=-1), 0)
    if symmetric:
        scales = (np.maximum(high, -low) / np.float32(127)).astype(np.float32)
        return scales, np.full_like(scales, SYMMETRIC_ZERO)
    scales = (high / np.float32(255) - low / np.float32(255)).astype(
        np.float32
    )  # not high - low, which may overflow float32
    zeros = np.rint(np.divide(-low, scales, out=np.zeros_like(scales), where=scales != 0))
    return scales, np.clip(zeros, 0, 255)


def dequantise(weight: Int8) -> Floats:
    """float32 [N, K]."""
    zeros = (
        np.float32(SYMMETRIC_ZERO) if weight.zero_points is None else weight.zero_points.astype(np.float32)[..., None]
    )
    dense: Floats = (weight.codes.astype(np.float32) - zeros) * weight.scales[..., None]
    return dense.reshape(weight.outputs, -1)[:, : weight.inputs]
