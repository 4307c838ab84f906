"""The int4 grid: unsigned 4-bit codes, a scale and a zero point per block of inputs. ONNX Runtime's MatMulNBits layout.

A weight W of N output rows and K inputs is cut, row by row, into B = ceil(K / block) blocks of `block` inputs each:

    W[n, i] = (q[n, i] - z[n, b]) * s[n, b],    b = i // block,    q, z in 0..15

    codes        uint8   [N, B, block / 2]    two codes a byte, the even input in the low nibble
    scales       float32 [N, B]
    zero points  uint8   [N, ceil(B / 2)]     two a byte, the even block in the low nibble; absent on a symmetric grid, where z = 8

The last block of a row is filled up with codes equal to its zero point, so that the filling is worth zero. Worked example, N = 1, K = 4,
shown for a block of 4 (real blocks are 16 to 256):

    W = [-0.3, 0.0, 0.6, 1.2]     min -0.3, max 1.2     s = (1.2 + 0.3) / 15 = 0.1     z = round(0.3 / 0.1) = 3
    q = [0, 3, 9, 15]             bytes: 0x30 (q1 q0), 0xF9 (q3 q2)                     zero points: 0x03

A row is a whole number of blocks, so multiplying output row n by l[n] multiplies its scales alone (`fold`): the codes and zero points
stay byte for byte what they were, for any sign of l, and l = 0 gives a row of zeros.

Asymmetric: the range [min(W, 0), max(W, 0)] over 15 steps; zero is always on the grid. Symmetric: s = -peak / 8 where peak is the entry of
the largest magnitude with its sign, so the peak itself is exact (code 0) and scales may be negative, as ONNX Runtime's own quantiser has it.

Source of the layout: docs/ContribOperators.md of ONNX Runtime, com.microsoft.MatMulNBits. Scales that train: PEQA (arXiv:2305.14152).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

BLOCK_SIZES = (16, 32, 64, 128, 256)
SYMMETRIC_ZERO = 8

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Int4:
    """A weight on the grid. `inputs` is K, which the padded codes no longer tell."""

    codes: Bytes  # [N, B, block / 2]
    scales: Floats  # [N, B]
    zero_points: Bytes | None  # [N, ceil(B / 2)]
    inputs: int

    @property
    def outputs(self) -> int:
        return int(self.codes.shape[0])

    @property
    def block_size(self) -> int:
        return int(self.codes.shape[2]) * 2

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.zero_points is None else self.zero_points.nbytes)


def bits_per_weight(block_size: int, symmetric: bool) -> float:
    """The grid's arithmetic for rows of whole, even blocks: 4 bits, a float32 scale and a 4-bit zero point per block."""
    return 4 + 32 / block_size + (0 if symmetric else 4 / block_size)


def pack_nibbles(values: Bytes) -> Bytes:
    """[..., m] of 0..15 -> [..., ceil(m / 2)], the even entry in the low nibble; an odd end is filled with 0."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], axis=-1)
    packed: Bytes = values[..., 0::2] | (values[..., 1::2] << np.uint8(4))
    return packed


def unpack_nibbles(packed: Bytes, count: int) -> Bytes:
    """[..., ceil(count / 2)] -> [..., count] of 0..15."""
    both = np.stack([packed & 0x0F, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return both[..., :count]


def quantise(weight: Floats, block_size: int, symmetric: bool = False) -> Int4:
    """Round to nearest. weight [N, K] float32 -> Int4. Raises ValueError on a bad block size or a weight that is not finite."""
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size is one of {BLOCK_SIZES}, not {block_size}")
    if not np.isfinite(weight).all():
        raise ValueError("the weight holds NaN or infinity")
    outputs, inputs = weight.shape
    blocks = -(-inputs // block_size)
    padded = weight.astype(np.float32, copy=False)
    if blocks * block_size != inputs:
        padded = np.pad(padded, ((0, 0), (0, blocks * block_size - inputs)))
    grouped = padded.reshape(outputs, blocks, block_size)
    scales, zeros = _symmetric_range(grouped) if symmetric else _asymmetric_range(grouped)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    codes = np.clip(np.rint(grouped * inverse[..., None]) + zeros[..., None], 0, 15).astype(np.uint8)
    return Int4(pack_nibbles(codes), scales, None if symmetric else pack_nibbles(zeros.astype(np.uint8)), inputs)


def _asymmetric_range(grouped: Floats) -> tuple[Floats, Floats]:
    """Scales and zero points [N, B] of blocks [N, B, block]; a block of zeros gets scale 0."""
    low = np.minimum(grouped.min(axis=-1), 0)
    high = np.maximum(grouped.max(axis=-1), 0)
    scales = ((high - low) / np.float32(15)).astype(np.float32)
    zeros = np.rint(np.divide(-low, scales, out=np.zeros_like(scales), where=scales != 0))
    return scales, np.clip(zeros, 0, 15)


def _symmetric_range(grouped: Floats) -> tuple[Floats, Floats]:
    """Scales (signed) and the constant zero point 8."""
    peak = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    scales = (peak / np.float32(-SYMMETRIC_ZERO)).astype(np.float32)
    return scales, np.full_like(scales, SYMMETRIC_ZERO)


def unpack(weight: Int4) -> tuple[Bytes, Bytes]:
    """Codes [N, K] and zero points [N, B], one value a byte."""
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


def fold(weight: Int4, vector: Floats) -> Int4:
    """Multiplies output row n by vector[n] (shape [N]): one multiply on the scales. Codes and zero points are the same objects."""
    if vector.shape != (weight.outputs,):
        raise ValueError(f"the vector has shape {vector.shape}, the weight {weight.outputs} output rows")
    return replace(weight, scales=weight.scales * vector.astype(np.float32)[:, None])
