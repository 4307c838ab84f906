"""AWQ checkpoints in the "gemm" packing: 4-bit codes of K inputs and N outputs, with a scale and a zero point per group
of G inputs.

    W[n, i] = (q[n, i] - z[n, g]) * s[n, g],    g = i // G

    qweight  int32    [K, N / 8]           8 outputs of an input in a word, interleaved
    qzeros   int32    [groups, N / 8]      likewise; zero points as they are, without GPTQ's offset of 1
    scales   float16  [groups, N]

Within a word, counted from the lowest bits, the nibbles are the outputs 0 2 4 6 1 3 5 7 of its 8: a kernel that masks
every other nibble gets neighbours side by side.

Worked example: outputs 0 to 7 of one input with codes 0 1 2 3 4 5 6 7. The nibbles from the lowest are 0 2 4 6 1 3 5 7,
the word is 0x75316420. In int4.py each byte holds codes of one output row only, so the codes are taken out one by one
here and packed again by row.

Source: AutoAWQ 0.2.9, awq/modules/linear/gemm.py (`from_linear`, order_map); Lin et al. 2023, arXiv:2306.00978. AWQ
scales channels before it rounds; that scaling is already in the codes and norms of the file, so nothing has to be
undone. The packings "gemv", "gemv_fast" and "marlin" are different and are not read here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qia3.grids.blocks import Bytes
from qia3.grids.gptq import Words, as_bytes, as_words
from qia3.grids.grouped import Halves, group_inputs, to_blocks
from qia3.grids.int4 import Int4, pack_nibbles, unpack, unpack_nibbles

ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # the output that each nibble of a word holds, lowest bits first


def shapes(inputs: int, outputs: int, group_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that a file holds for one layer. Raises ValueError if a layer of this size cannot be
    packed.
    """
    if inputs % 8 or outputs % 8:
        raise ValueError(f"{outputs} x {inputs} weights cannot be packed: both sizes must be multiples of 8")
    groups = -(-inputs // group_inputs(group_size, inputs))
    return {"qweight": (inputs, outputs // 8), "qzeros": (groups, outputs // 8), "scales": (groups, outputs)}


def unpack_awq(qweight: Words, qzeros: Words, scales: Halves, group_size: int) -> Int4:
    """The same codes on our grid, without rounding.

    Raises ValueError if the shapes do not fit together or a scale is not finite.
    """
    inputs, outputs = qweight.shape[0], qweight.shape[1] * 8
    if shapes(inputs, outputs, group_size) != {
        "qweight": qweight.shape,
        "qzeros": qzeros.shape,
        "scales": scales.shape,
    }:
        raise ValueError(
            f"qweight {qweight.shape}, qzeros {qzeros.shape} and scales {scales.shape} do not fit together"
        )
    codes = pack_nibbles(np.ascontiguousarray(_in_order(qweight).T))
    return to_blocks(codes, scales.T, _in_order(qzeros).T, group_inputs(group_size, inputs), inputs)


def pack_awq(weight: Int4) -> tuple[Words, Words, NDArray[np.float16]]:
    """qweight, qzeros and scales of a weight whose scales are exact in float16; each block becomes a group."""
    codes, zeros = unpack(weight)
    return _interleaved(codes.T), _interleaved(zeros.T), np.ascontiguousarray(weight.scales.T.astype(np.float16))


def _in_order(words: Words) -> Bytes:
    """[rows, m] -> [rows, 8 m] of 0..15."""
    rows, count = words.shape
    nibbles = unpack_nibbles(as_bytes(words), 8 * count).reshape(rows, count, 8)
    values = np.empty_like(nibbles)
    values[..., ORDER] = nibbles
    return values.reshape(rows, 8 * count)


def _interleaved(values: Bytes) -> Words:
    """[rows, 8 m] of 0..15 -> [rows, m]."""
    rows = len(values)
    return as_words(pack_nibbles(values.reshape(rows, -1, 8)[..., ORDER].reshape(rows, -1)))
