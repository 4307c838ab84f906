"""GPTQ checkpoints: 4-bit codes of K inputs and N outputs, with a scale and a zero point per group of G inputs.

    W[n, i] = (q[n, i] - z[n, g]) * s[n, g],    g = i // G

    qweight  int32    [K / 8, N]           8 inputs of an output in a word: input 8 k + j in bits 4 j to 4 j + 3
    qzeros   int32    [groups, N / 8]      8 outputs in a word, likewise
    scales   float16  [groups, N]
    g_idx    int32    [K]                  the group of each input; i // G, unless the inputs were sorted by activation (desc_act)

There are two conventions for zero points. Files of `checkpoint_format` "gptq" (v1, the default) store z - 1, files of
"gptq_v2" store z. In v1 a zero point of 0 is stored as 15, so z = (stored + 1) mod 16. A symmetric file has z = 8: the
nibble 7 everywhere in v1, 8 in v2.

Worked example: output n, inputs 0 to 7 with codes 1 2 3 4 5 6 7 8, z = 8. The word of qweight is 0x87654321, its bytes
in memory are 21 43 65 87; in v1 the nibble n % 8 of qzeros[g, n // 8] is 7. These are exactly the bytes of int4.py (two
codes per byte, the even input in the low nibble), but GPTQ orders them by input and int4.py by output: unpacking the
codes is a transposition of bytes.

Source: AutoGPTQ 0.7.1, auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py (`pack` and `forward`); GPTQModel's docs on
"gptq_v2"; Frantar et al. 2022, arXiv:2210.17323. Files whose inputs were sorted by activation do not fit this grid:
their groups are scattered over MatMulNBits' blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qia3.grids.grouped import Halves, group_inputs, to_blocks
from qia3.grids.int4 import Int4, pack_nibbles, unpack, unpack_nibbles

Words = NDArray[np.int32]
STORED_BELOW = {"gptq": 1, "gptq_v2": 0}  # how far below the zero point the stored nibble is


def shapes(inputs: int, outputs: int, group_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that a file holds for one layer, except `g_idx`. Raises ValueError if it cannot be packed."""
    if inputs % 8 or outputs % 8:
        raise ValueError(f"{outputs} x {inputs} weights cannot be packed: both sizes must be multiples of 8")
    groups = -(-inputs // group_inputs(group_size, inputs))
    return {"qweight": (inputs // 8, outputs), "qzeros": (groups, outputs // 8), "scales": (groups, outputs)}


def is_plain(g_idx: Words, group_size: int) -> bool:
    """Whether each group is a run of consecutive inputs, in order."""
    inputs = len(g_idx)
    return bool(np.array_equal(g_idx, np.arange(inputs) // group_inputs(group_size, inputs)))


def unpack_gptq(qweight: Words, qzeros: Words, scales: Halves, group_size: int, checkpoint_format: str) -> Int4:
    """The same codes on our grid, without rounding.

    Raises ValueError if the shapes do not fit together or a scale is not finite.
    """
    inputs, outputs = qweight.shape[0] * 8, qweight.shape[1]
    if shapes(inputs, outputs, group_size) != {
        "qweight": qweight.shape,
        "qzeros": qzeros.shape,
        "scales": scales.shape,
    }:
        raise ValueError(
            f"qweight {qweight.shape}, qzeros {qzeros.shape} and scales {scales.shape} do not fit together"
        )
    codes = as_bytes(qweight).reshape(inputs // 8, outputs, 4).transpose(1, 0, 2).reshape(outputs, inputs // 2)
    stored = unpack_nibbles(as_bytes(qzeros).reshape(len(qzeros), outputs // 2), outputs)
    zeros = (stored + np.uint8(STORED_BELOW[checkpoint_format])) & np.uint8(15)
    return to_blocks(codes, scales.T, zeros.T, group_inputs(group_size, inputs), inputs)


def pack_gptq(weight: Int4, checkpoint_format: str) -> tuple[Words, Words, NDArray[np.float16]]:
    """qweight, qzeros and scales of a weight whose scales are exact in float16; each block becomes a group."""
    codes, zeros = unpack(weight)
    words = pack_nibbles(codes).reshape(weight.outputs, -1, 4).transpose(1, 0, 2)
    stored = (zeros.T - np.uint8(STORED_BELOW[checkpoint_format])) & np.uint8(15)
    return (
        as_words(words)[..., 0],
        as_words(pack_nibbles(stored)),
        np.ascontiguousarray(weight.scales.T.astype(np.float16)),
    )


def as_bytes(words: Words) -> NDArray[np.uint8]:
    """[..., m] words -> [..., 4 m] bytes, the lowest first."""
    return np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)


def as_words(data: NDArray[np.uint8]) -> Words:
    """[..., 4 m] bytes -> [..., m] words."""
    return np.ascontiguousarray(data).view("<i4").astype(np.int32, copy=False)
