"""The NF4 grid: 4-bit codes into 16 levels at the quantiles of a normal distribution, times a block's largest
magnitude. bitsandbytes' layout.

A weight W of N output rows and K inputs is read as one long list, row after row, and cut into blocks of `block` entries
(64 as a rule):

    W[e] = LEVELS[q[e]] * s[e // block],    e = n K + i,    q in 0..15

    codes   uint8   [ceil(N K / 2)]         two codes per byte, the even entry in the HIGH nibble (int4 has it in the low one)
    scales  float32 [ceil(N K / block)]     the largest |W| per block ("absmax"); the last block may be short

Worked example, N = 1, K = 4:   W = [-0.5, 0.0, 0.25, 0.125]    s = 0.5    W / s = [-1, 0, 0.5, 0.25]
nearest levels -1, 0, 0.4407, 0.2461 are numbers 0, 7, 12, 10           bytes: 0x07 (q0 q1), 0xCA (q2 q3)

Level 7 is zero, so zeros stay zeros. A level is chosen by the midpoints between neighbours, in float32, as in
bitsandbytes; the result is bit for bit that of its CPU code (tests/test_grids_nf4.py). Its AVX-512 dequantiser (0.50)
starts a new block at every row: if K is not a multiple of the block, its weights are wrong there. They are right in its
plain code, on GPUs and here.

Folding. If K is a multiple of the block, no block spans two rows, and multiplying row n by l[n] multiplies the scales
of that row's K / block blocks; the codes do not change. Otherwise a block spans two rows, an exact fold is impossible,
and `fold` refuses.

Double quantisation. bitsandbytes may store the scales themselves in 8 bits: s = MAP[c] * t[b // 256] + offset, with c
one byte per block and t one float32 per 256 blocks. That takes 0.127 bits per weight instead of 0.5. A fold needs plain
float32 scales, so they are unpacked first (`unnest`), which costs the difference, 0.373 bits per weight, and changes no
weight.

Sources: Dettmers et al. 2023 (arXiv:2305.14314), sections 3 and appendix E; bitsandbytes 0.50, functional.py
(get_4bit_type, quantize_4bit).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qia3.grids.blocks import Bytes, Floats

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NESTED_BLOCK = 256
LEVELS: Floats = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
LEAST = np.float32(1e-38)
MIDPOINTS: Floats = (LEVELS[:-1] + LEVELS[1:]) / np.float32(2)


@dataclass(frozen=True)
class Nf4:
    """A weight on the grid. `outputs` and `inputs` are N and K, which cannot be told from the flat codes."""

    codes: Bytes  # [ceil(N K / 2)]
    scales: Floats  # [ceil(N K / block)]
    block_size: int
    outputs: int
    inputs: int

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes

    @property
    def folds(self) -> bool:
        """Whether every row is a whole number of blocks, so that `fold` is exact."""
        return self.inputs % self.block_size == 0


def bits_per_weight(block_size: int, nested: bool = False) -> float:
    """4 bits plus the scales: float32 per block, or one byte per block and a float32 per 256 blocks."""
    return 4 + (8 / block_size + 32 / (NESTED_BLOCK * block_size) if nested else 32 / block_size)


def quantise(weight: Floats, block_size: int = 64) -> Nf4:
    """The nearest level of each entry. weight [N, K] float32 -> Nf4.

    Raises ValueError on a bad block size or a weight that is not finite.
    """
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"an NF4 block must be one of {BLOCK_SIZES}, not {block_size}")
    if not np.isfinite(weight).all():
        raise ValueError("the weight holds NaN or infinity")
    outputs, inputs = weight.shape
    flat = weight.astype(np.float32, copy=False).reshape(-1)
    blocks = np.pad(flat, (0, -len(flat) % block_size)).reshape(-1, block_size)
    scales: Floats = np.abs(blocks).max(axis=-1)
    inverse = np.float32(1) / np.maximum(
        scales, LEAST
    )  # bitsandbytes multiplies by the reciprocal, which rounds differently from dividing
    steps = np.clip(blocks * inverse[:, None], -1, 1).reshape(-1)[: len(flat)]
    if rest := len(flat) % block_size:  # but it divides in a short last block
        scales[-1] = max(scales[-1], LEAST)
        steps[-rest:] = np.clip(flat[-rest:] / scales[-1], -1, 1)
    return Nf4(pack(np.searchsorted(MIDPOINTS, steps).astype(np.uint8)), scales, block_size, outputs, inputs)


def pack(codes: Bytes) -> Bytes:
    """[m] of 0..15 -> [ceil(m / 2)], the even entry in the high nibble; an odd end is padded with the code of zero."""
    if len(codes) % 2:
        codes = np.append(codes, np.uint8(7))
    packed: Bytes = (codes[0::2] << np.uint8(4)) | codes[1::2]
    return packed


def unpack(weight: Nf4) -> Bytes:
    """Codes [N, K], one per byte."""
    both = np.stack([weight.codes >> 4, weight.codes & 0x0F], axis=-1).reshape(-1)
    return both[: weight.outputs * weight.inputs].reshape(weight.outputs, weight.inputs)


def dequantise(weight: Nf4) -> Floats:
    """float32 [N, K]."""
    codes = unpack(weight).reshape(-1)
    result: Floats = LEVELS[codes] * np.repeat(weight.scales, weight.block_size)[: len(codes)]
    return result.reshape(weight.outputs, weight.inputs)


def fold(weight: Nf4, vector: Floats) -> Nf4:
    """Multiplies output row n by vector[n] (shape [N]) by multiplying its scales.

    Raises ValueError if a block spans two rows.
    """
    if vector.shape != (weight.outputs,):
        raise ValueError(f"the vector has shape {vector.shape}, but the weight has {weight.outputs} output rows")
    if not weight.folds:
        raise ValueError(
            f"rows of {weight.inputs} inputs are not a whole number of blocks of {weight.block_size}: a block "
            "spans two rows"
        )
    each = weight.inputs // weight.block_size
    return replace(weight, scales=weight.scales * np.repeat(vector.astype(np.float32), each))


def unnest(codes: Bytes, levels: Floats, scales: Floats, offset: float, block: int = NESTED_BLOCK) -> Floats:
    """Plain scales float32 [m] from double-quantised ones: codes uint8 [m] into levels [256], scales [ceil(m / block)],
    and one offset for all.
    """
    wide = np.repeat(scales.astype(np.float32), block)[: len(codes)]
    plain: Floats = levels.astype(np.float32)[codes] * wide + np.float32(offset)
    return plain
