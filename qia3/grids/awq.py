"""AWQ checkpoints in the packing "gemm": 4-bit codes of K inputs and N outputs, a scale and a zero point for each group
of G inputs.

    W[n, i] = (q[n, i] - z[n, g]) * s[n, g],    g = i // G

    qweight  int32    [K, N / 8]           8 outputs of an input in a word, interleaved
    qzeros   int32    [groups, N / 8]      likewise; the zero points as they are, nothing is taken off
    scales   float16  [groups, N]

Within a word, counted from the lowest bits, the nibbles are the outputs 0 2 4 6 1 3 5 7 of its 8: a kernel that masks
every other nibble gets neighbours side by side.

Worked example: outputs 0 to 7 of one input with codes 0 1 2 3 4 5 6 7. The nibbles from the lowest are 0 2 4 6 1 3 5 7,
the word is 0x75316420. In int4.py each code belongs to another output row, so here codes are taken out one by one and
packed again by row.

Source: AutoAWQ 0.2.9, awq/modules/linear/gemm.py (`from_linear`, order_map); Lin et al. 2023, arXiv:2306.00978. What
AWQ does to a model before it rounds (scaling channels) is in the codes and in the norms of the file. The packings
"gemv", "gemv_fast" and "marlin" are others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qia3.grids.blocks import Bytes
from qia3.grids.gptq import Words, as_bytes, as_words
from qia3.grids.grouped import Halves, group_inputs, to_blocks
from qia3.grids.int4 import Int4, pack_nibbles, unpack, unpack_nibbles

ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # the output that each nibble of a word belongs to


def shapes(inputs: int, outputs: int, group_size: int) -> dict[str, tuple[int, ...]]:
    """What a file holds for one layer. Raises ValueError where such a layer cannot be packed."""
    if inputs % 8 or outputs % 8:
        raise ValueError(f"{outputs} x {inputs} weights do not fill words of 8 codes")
    groups = -(-inputs // group_inputs(group_size, inputs))
    return {"qweight": (inputs, outputs // 8), "qzeros": (groups, outputs // 8), "scales": (groups, outputs)}


def unpack_awq(qweight: Words, qzeros: Words, scales: Halves, group_size: int) -> Int4:
    """The same codes on our grid.

    Raises ValueError where the shapes do not belong together or a scale is not finite.
    """
    inputs, outputs = qweight.shape[0], qweight.shape[1] * 8
    if shapes(inputs, outputs, group_size) != {
        "qweight": qweight.shape,
        "qzeros": qzeros.shape,
        "scales": scales.shape,
    }:
        raise ValueError(
            f"qweight {qweight.shape}, qzeros {qzeros.shape} and scales {scales.shape} do not belong together"
        )
    codes = pack_nibbles(np.ascontiguousarray(_in_order(qweight).T))
    return to_blocks(codes, scales.T, _in_order(qzeros).T, group_inputs(group_size, inputs), inputs)


def pack_awq(weight: Int4) -> tuple[Words, Words, NDArray[np.float16]]:
    """qweight, qzeros and scales of a weight whose scales are float16 numbers; a block is a group."""
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
