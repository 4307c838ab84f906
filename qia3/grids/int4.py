"""The int4 grid: unsigned 4-bit codes, with a scale and a zero point per block of inputs, as ONNX Runtime's MatMulNBits
stores them.

A weight W of N output rows and K inputs is cut, row by row, into B = ceil(K / block) blocks of `block` inputs each:

    W[n, i] = (q[n, i] - z[n, b]) * s[n, b],    b = i // block,    q, z in 0..15

    codes        uint8   [N, B, block / 2]    two codes per byte, the even input in the low nibble
    scales       float32 [N, B]
    zero points  uint8   [N, ceil(B / 2)]     two per byte, the even block in the low nibble; absent on a symmetric grid, where z = 8

The last block of a row is padded with codes equal to its zero point, so that the padding dequantises to zero. Worked
example, N = 1, K = 4, shown for a block of 4 (real blocks are 16 to 256):

    W = [-0.3, 0.0, 0.6, 1.2]     min -0.3, max 1.2     s = (1.2 + 0.3) / 15 = 0.1     z = round(0.3 / 0.1) = 3
    q = [0, 3, 9, 15]             bytes: 0x30 (q1 q0), 0xF9 (q3 q2)                     zero points: 0x03

A row is a whole number of blocks, so multiplying output row n by l[n] only multiplies its scales (`fold`): the codes
and zero points stay the same, byte for byte, for any sign of l. With l = 0 the row becomes zeros.

Choosing scale and zero point. The error of a block is sum a (W - s d)^2 with d = q - z and a = sqrt(mean W^2 + W^2):
large weights count more, as in ggml's k-quants (make_qkx2_quants). For a given d the best scale is s = <aW, d> / <ad,
d>, and the larger <aW, d>^2 / <ad, d>, the smaller the remaining error. So several ranges are tried per block, W is
rounded to nearest within each, and the d with the smallest error is kept. Asymmetric: fractions of [min(W, 0), max(W,
0)], so that zero is always on the grid. Symmetric: fractions of s = -peak / 8, where peak is the entry of the largest
magnitude with its sign, as in ONNX Runtime's own quantiser; scales may be negative. The full range is among those
tried, so no block is worse than with round to nearest. Finally W is rounded once more with the best scale. For
calibration data, see calibrated.py.

Source of the layout: docs/ContribOperators.md of ONNX Runtime, com.microsoft.MatMulNBits. Scales that train: PEQA
(arXiv:2305.14152).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qia3.grids.blocks import BLOCK_SIZES, Blocks, Bytes, Floats, check
from qia3.grids.blocks import fold as fold

SYMMETRIC_ZERO = 8
RANGES = (1.0, 1.05, 0.95, 0.9, 0.86, 0.82, 0.78, 0.74, 0.7)  # the full range first: it wins a tie
CACHED_ENTRIES = 1 << 16  # entries processed at a time: they and their copies fit into the L2 cache


class Int4(Blocks):
    """Codes [N, B, block / 2], zero points [N, ceil(B / 2)]."""

    @property
    def block_size(self) -> int:
        return int(self.codes.shape[2]) * 2


def bits_per_weight(block_size: int, symmetric: bool) -> float:
    """The grid's arithmetic for rows of a whole and even number of blocks: 4 bits, a float32 scale and a 4-bit zero
    point per block.
    """
    return 4 + 32 / block_size + (0 if symmetric else 4 / block_size)


def row_bytes(inputs: int, block: int, symmetric: bool) -> int:
    """Bytes per row: codes, scales and zero points."""
    blocks = -(-inputs // block)
    return blocks * (block // 2 + 4) + (0 if symmetric else -(-blocks // 2))


def block_for(inputs: int, at_most: int, symmetric: bool = False) -> int:
    """The block size, up to `at_most`, in which a row of `inputs` takes the fewest bytes: 64 for 576 inputs and at most
    128, as blocks of 128 would pad the row to 640.
    """
    return min((b for b in BLOCK_SIZES if b <= at_most), key=lambda block: (row_bytes(inputs, block, symmetric), block))


def pack_nibbles(values: Bytes) -> Bytes:
    """[..., m] of 0..15 -> [..., ceil(m / 2)], the even entry in the low nibble; an odd end is padded with 0."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], axis=-1)
    packed: Bytes = values[..., 0::2] | (values[..., 1::2] << np.uint8(4))
    return packed


def unpack_nibbles(packed: Bytes, count: int) -> Bytes:
    """[..., ceil(count / 2)] -> [..., count] of 0..15."""
    both = np.stack([packed & 0x0F, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return both[..., :count]


def quantise(weight: Floats, block_size: int, symmetric: bool = False) -> Int4:
    """weight [N, K] float32 -> Int4, by the least weighted error per block over a few ranges.

    Raises ValueError on a bad block size or a weight that is not finite.
    """
    check(weight, block_size)
    outputs, inputs = weight.shape
    blocks = -(-inputs // block_size)
    flat = np.pad(weight.astype(np.float32, copy=False), ((0, 0), (0, blocks * block_size - inputs))).reshape(
        -1, block_size
    )
    steps, scales, zeros = np.empty_like(flat), np.empty(len(flat), np.float32), np.empty(len(flat), np.float32)
    step = CACHED_ENTRIES // block_size
    for part in (slice(start, start + step) for start in range(0, len(flat), step)):
        squares = flat[part] * flat[part]
        importance = np.sqrt(squares.mean(axis=-1, keepdims=True) + squares)
        steps[part], scales[part], zeros[part] = choose(flat[part], importance, symmetric)
    shape = (outputs, blocks)
    return assemble(steps.reshape(*shape, block_size), scales.reshape(shape), zeros.reshape(shape), inputs, symmetric)


def joined(parts: Sequence[Int4]) -> Int4:
    """The rows of several weights on the same grid, concatenated."""
    if len(parts) == 1:
        return parts[0]
    zeros = [p.zero_points for p in parts if p.zero_points is not None]
    codes, scales = np.concatenate([p.codes for p in parts]), np.concatenate([p.scales for p in parts])
    return Int4(codes, scales, np.concatenate(zeros) if zeros else None, parts[0].inputs)


def choose(blocks: Floats, importance: Floats, symmetric: bool) -> tuple[Floats, Floats, Floats]:
    """Steps q - z [n, block], scales [n] and zero points [n] of blocks [n, block], from the range with the smallest
    error.

    `importance` [n, block] or [1, block] weighs each entry's squared error.
    """
    count = len(blocks)
    explained, scales, zeros = np.full(count, -1, np.float32), np.zeros(count, np.float32), np.zeros(count, np.float32)
    steps, weighted = np.zeros_like(blocks), importance * blocks
    importance = np.broadcast_to(importance, blocks.shape)
    for factor in (*RANGES, None):  # None: round again with the best scale
        ranged = _symmetric_range if symmetric else _asymmetric_range
        scale, zero = (scales, zeros) if factor is None else ranged(blocks, np.float32(factor))
        tried = to_steps(blocks, scale[:, None], zero[:, None])
        along, length = np.einsum("ij,ij->i", weighted, tried), np.einsum("ij,ij,ij->i", importance, tried, tried)
        gain = _ratio(along * along, length)
        better = gain > explained
        explained[better], scales[better], zeros[better] = gain[better], _ratio(along, length)[better], zero[better]
        steps[better] = tried[better]
    return steps, scales, zeros


def to_steps(weight: Floats, scale: Floats, zero: Floats) -> Floats:
    """q - z of the nearest code, with broadcasting: W / s, rounded and clipped to the range of a code."""
    steps = np.rint(_ratio(weight, scale))
    return np.clip(steps, -zero, 15 - zero, out=steps)


def assemble(steps: Floats, scales: Floats, zeros: Floats, inputs: int, symmetric: bool) -> Int4:
    """steps [N, B, block], scales and zero points [N, B] -> Int4."""
    codes = (steps + zeros[..., None]).astype(np.uint8)
    return Int4(pack_nibbles(codes), scales, None if symmetric else pack_nibbles(zeros.astype(np.uint8)), inputs)


def _asymmetric_range(blocks: Floats, factor: np.float32) -> tuple[Floats, Floats]:
    """Scales and zero points [n] for `factor` of the range [min(W, 0), max(W, 0)] around its middle; a block of zeros
    gets scale 0.
    """
    low, high = np.minimum(blocks.min(axis=-1), 0), np.maximum(blocks.max(axis=-1), 0)
    scales = ((high - low) / np.float32(15) * factor).astype(np.float32)
    zeros = np.rint(np.clip(np.float32(7.5) - _ratio((low + high) / 2, scales), 0, 15))
    return scales, np.where(scales == 0, np.float32(0), zeros)


def _symmetric_range(blocks: Floats, factor: np.float32) -> tuple[Floats, Floats]:
    """Scales (signed: the largest magnitude gets code 0) and the constant zero point 8."""
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[:, None], axis=-1)[:, 0]
    scales = (peak / np.float32(-SYMMETRIC_ZERO) * factor).astype(np.float32)
    return scales, np.full_like(scales, SYMMETRIC_ZERO)


def _ratio(above: Floats, below: Floats) -> Floats:
    """above / below, and 0 where below is 0."""
    shape = np.broadcast_shapes(above.shape, below.shape)
    result: Floats = np.divide(above, below, out=np.zeros(shape, np.float32), where=below != 0)
    return result


def unpack(weight: Int4) -> tuple[Bytes, Bytes]:
    """Codes [N, K] and zero points [N, B], one value per byte."""
    outputs, blocks, _ = weight.codes.shape
    codes = unpack_nibbles(weight.codes, weight.block_size).reshape(outputs, -1)[:, : weight.inputs]
    zeros = np.full((outputs, blocks), SYMMETRIC_ZERO, np.uint8)
    if weight.zero_points is not None:
        zeros = unpack_nibbles(weight.zero_points, blocks)
    return codes, zeros


def dequantise(weight: Int4) -> Floats:
    """float32 [N, K]."""
    codes, zeros = unpack(weight)
    block = np.arange(weight.inputs) // weight.block_size
    result: Floats = (codes.astype(np.float32) - zeros.astype(np.float32)[:, block]) * weight.scales[:, block]
    return result
