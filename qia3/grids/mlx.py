"""MLX's affine grid: codes of K inputs and N outputs, with a scale and a bias per group of G inputs.

    W[n, i] = q[n, i] * s[n, g] + b[n, g],    g = i // G,    G is 32, 64 or 128

    weight   uint32   [N, K bits / 32]    the codes of a row as one bit stream, the first in the lowest bits
    scales   float    [N, K / G]          float16, bfloat16 or float32; negative about as often as positive
    biases   float    [N, K / G]          of the same type

At 4 bits input 8 k + j is in bits 4 j to 4 j + 3 of word k: exactly the bytes of int4.py, so codes are used as they
are.

Zero points. MLX puts the entry e of the largest magnitude on the grid: with r = round(e / s) it stores s = e / r and b
= e (mlx/ops.cpp, `affine_quantize`). So -b / s is the whole number z = -r, except for the rounding of s to its type,
and

    q * s + b = (q - z) * s + c,    c = b + z s

A group is kept, code for code and scale for scale, if z is 0 to 15 and |c| <= u |b|, with u the type's spacing at one
(2^-10 in float16, 2^-7 in bfloat16, 2^-23 in float32): that is the most that rounding s and b to nearest can cause. Its
weights then move by the constant c: in bfloat16, with z = 8 and only s rounded, by at most 0.03 of a step, where
rounding to 4 bits had moved each by up to half a step. All other groups (learned scales, as DWQ's; files of older MLX
versions with b = min W; groups whose entries all have one sign, z > 15) are dequantised and rounded again by int4.py.

Worked example, shown for a group of 4: W = [-0.3, 0.0, 0.6, 1.2]. The largest is 1.2, so the scale is negative:
-(1.2 + 0.3) / 15 = -0.1, r = round(1.2 / -0.1) = -12, s = 1.2 / -12 = -0.1, b = 1.2, z = 12.

    q = round((W - 1.2) / -0.1) = [15, 12, 6, 0]     (q - 12) * -0.1 = [-0.3, 0.0, 0.6, 1.2]

The same with a positive scale: codes 15 - q = [0, 3, 9, 15], zero point 15 - z = 3, scale 0.1, as in int4.py's example.
Our grid takes scales of either sign, so nothing is negated: the bundle holds the file's own bytes.

Widths other than 4 bits (2, 3, 5, 6, 8) are read as floats only, by `dequantise_mlx`.

Source: MLX 0.32.4, mx.quantize and mx.dequantize; mlx-lm's utils.py (the keys of config.json).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qia3.grids.blocks import BLOCK_SIZES, Bytes, Floats
from qia3.grids.int4 import SYMMETRIC_ZERO, Int4, pack_nibbles, quantise, unpack, unpack_nibbles

UWords = NDArray[np.uint32]
UNITS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}  # spacing at one of each type
BITS = (2, 3, 4, 5, 6, 8)


def shapes(inputs: int, outputs: int, group_size: int, bits: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that a file holds for one layer. Raises ValueError if a layer of this size cannot be
    packed.
    """
    if group_size not in BLOCK_SIZES or inputs % group_size or inputs * bits % 32:
        raise ValueError(f"rows of {inputs} inputs are not a whole number of groups of {group_size}")
    groups = inputs // group_size
    return {"weight": (outputs, inputs * bits // 32), "scales": (outputs, groups), "biases": (outputs, groups)}


def unpack_mlx(words: UWords, scales: Floats, biases: Floats, unit: float) -> tuple[Int4, NDArray[np.bool_]]:
    """4-bit words on our grid, and which groups [N, K / G] had to be rounded again. `unit`: see UNITS.

    Raises ValueError if the shapes do not fit together or a scale or bias is not finite.
    """
    group = _group(words, scales, biases, 4)
    wide, offsets = scales.astype(np.float64), biases.astype(np.float64)
    zeros = np.rint(np.divide(-offsets, wide, out=np.zeros_like(wide), where=wide != 0))
    off = np.abs(offsets + zeros * wide)
    kept = (zeros >= 0) & (zeros <= 15) & (off <= unit * np.abs(offsets))
    codes = as_bytes(words).reshape(*scales.shape, group // 2).copy()
    found, points = scales.astype(np.float32), np.where(kept, zeros, 0).astype(np.uint8)
    if not kept.all():
        rows, groups = np.nonzero(~kept)
        each = unpack_nibbles(codes[rows, groups], group).astype(np.float32)
        again = quantise(each * found[rows, groups, None] + biases[rows, groups, None].astype(np.float32), group)
        assert again.zero_points is not None
        codes[rows, groups], found[rows, groups] = again.codes[:, 0], again.scales[:, 0]
        points[rows, groups] = again.zero_points[:, 0] & 15
    packed = None if (points == SYMMETRIC_ZERO).all() else pack_nibbles(points)
    return Int4(codes, found, packed, group * scales.shape[1]), ~kept


def dequantise_mlx(words: UWords, scales: Floats, biases: Floats, bits: int = 4) -> Floats:
    """float32 [N, K], for each bit width of the format. Raises ValueError like `unpack_mlx`."""
    group = _group(words, scales, biases, bits)
    inputs = group * scales.shape[1]
    stream = np.unpackbits(as_bytes(words), axis=1, bitorder="little")
    codes = np.packbits(stream.reshape(len(words), inputs, bits), axis=2, bitorder="little")[..., 0]
    spread = (np.repeat(part.astype(np.float32), group, axis=1) for part in (scales, biases))
    scale, bias = spread
    dense: Floats = codes.astype(np.float32) * scale + bias
    return dense


def pack_mlx(weight: Int4) -> tuple[UWords, Floats, Floats]:
    """weight, scales and biases -z s, in float32; each block becomes a group.

    Raises ValueError if the last block is short.
    """
    if weight.inputs % weight.block_size:
        raise ValueError(f"rows of {weight.inputs} inputs are not a whole number of groups of {weight.block_size}")
    words = np.ascontiguousarray(weight.codes.reshape(weight.outputs, -1)).view("<u4").astype(np.uint32, copy=False)
    return words, weight.scales, -unpack(weight)[1].astype(np.float32) * weight.scales


def as_bytes(words: UWords) -> Bytes:
    """[N, m] words -> [N, 4 m] bytes, the lowest first."""
    return np.ascontiguousarray(words).astype("<u4", copy=False).view(np.uint8)


def _group(words: UWords, scales: Floats, biases: Floats, bits: int) -> int:
    """Inputs per group. Raises ValueError if shapes do not fit together or a number is not finite."""
    inputs = int(words.shape[1]) * 32 // bits
    group = inputs // max(int(scales.shape[-1]), 1)
    wanted = shapes(inputs, len(words), group, bits)
    if wanted != {"weight": words.shape, "scales": scales.shape, "biases": biases.shape}:
        raise ValueError(f"weight {words.shape}, scales {scales.shape} and biases {biases.shape} do not fit together")
    if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
        raise ValueError("a scale or a bias is NaN or infinity")
    return group
