"""compressed-tensors checkpoints in the format "pack-quantized" at 4 bits (llm-compressor writes it for W4A16, AWQ and
GPTQ alike): codes of K inputs and N outputs, with a scale and a zero point per group of G inputs.

    W[n, i] = (q[n, i] - z[n, g]) * s[n, g],    g = i // G

    weight_packed      int32   [N, ceil(K / 8)]        8 inputs of an output in a word: input 8 k + j in bits 4 j to 4 j + 3
    weight_scale       float   [N, groups]             of any float type; one per row if the strategy is "channel"
    weight_zero_point  int32   [ceil(N / 8), groups]   8 OUTPUTS in a word, likewise; absent on a symmetric grid
    weight_shape       int64   [2]                     N and K, which cannot be told from the padded words

The library counts codes and zero points from -8 to 7 and stores both with 8 added; a symmetric grid is one whose zero
point is 0 there, and 8 here. As only their difference counts, the stored nibbles are our codes and zero points.

Worked example: output n, inputs 0 to 7 with the library's codes -8 -7 .. -1, stored as 0 1 .. 7. The word is
0x76543210, its bytes in memory are 10 32 54 76: exactly the bytes of int4.py (two codes per byte, the even input in the
low nibble), so codes are used as they are. Zero points are packed in pairs of outputs, where int4.py pairs blocks of a
row: outputs 0 and 1 of a group with the library's zero points -1 and 2 are the nibbles 7 and A, and the word's first
byte is A7. These are packed again.

Source: compressed-tensors 0.20.0, compressors/pack_quantized (base.py, helpers.py: `pack_to_int32`) and
quantization/lifecycle/forward.py (`dequantize`, which rounds (q - z) * s once, to the type of the scale).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qia3.grids.gptq import Words, as_bytes, as_words
from qia3.grids.grouped import group_inputs, to_blocks
from qia3.grids.int4 import SYMMETRIC_ZERO, Int4, pack_nibbles, unpack, unpack_nibbles


def shapes(inputs: int, outputs: int, group_size: int, symmetric: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that a file holds for one layer. Raises ValueError if a row is not a whole number of bytes."""
    if inputs % 2:
        raise ValueError(f"its rows have an odd number of inputs ({inputs})")
    groups = -(-inputs // group_inputs(group_size, inputs))
    found = {"weight_packed": (outputs, -(-inputs // 8)), "weight_scale": (outputs, groups), "weight_shape": (2,)}
    return found if symmetric else found | {"weight_zero_point": (-(-outputs // 8), groups)}


def unpack_compressed(
    packed: Words, scales: NDArray[np.floating], zero_points: Words | None, group_size: int, inputs: int
) -> Int4:
    """The same codes on our grid, without rounding; group_size -1 means one group per row.

    Raises ValueError if the shapes do not fit together or a scale is not finite.
    """
    outputs = len(packed)
    wanted = shapes(inputs, outputs, group_size, zero_points is None)
    found = {"weight_packed": packed.shape, "weight_scale": scales.shape}
    found |= {} if zero_points is None else {"weight_zero_point": zero_points.shape}
    if found != {kind: wanted[kind] for kind in found}:
        raise ValueError(f"{', '.join(f'{k} {s}' for k, s in found.items())} do not fit together")
    codes = as_bytes(packed).reshape(outputs, -1)[:, : inputs // 2]
    zeros = np.full(scales.shape, SYMMETRIC_ZERO, np.uint8)
    if zero_points is not None:
        zeros = unpack_nibbles(as_bytes(np.ascontiguousarray(zero_points.T)), outputs).T
    return to_blocks(codes, scales.astype(np.float32), zeros, group_inputs(group_size, inputs), inputs)


def pack_compressed(weight: Int4) -> tuple[Words, NDArray[np.float32], Words | None]:
    """weight_packed, weight_scale and weight_zero_point of a weight; each block becomes a group."""
    codes, zeros = unpack(weight)
    words = _words(codes)
    return words, weight.scales, None if weight.zero_points is None else np.ascontiguousarray(_words(zeros.T).T)


def _words(values: NDArray[np.uint8]) -> Words:
    """[rows, m] of 0..15 -> [rows, ceil(m / 8)], padded with 0."""
    return as_words(pack_nibbles(np.pad(values, ((0, 0), (0, -values.shape[1] % 8)))))
