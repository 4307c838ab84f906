"""Q4_0's layout: a slow reference from its description, the gguf library's dequantiser, round trips, rows in another
order.
"""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qia3.grids.int4 import Int4, dequantise, pack_nibbles, unpack
from qia3.grids.q4_0 import pack_q4_0, rows, unpack_q4_0


def slow(raw):
    """W [N, K], entry by entry, as the format is described."""
    weight = np.zeros((len(raw), raw.shape[1] // 18 * 32), np.float32)
    for n, i in np.ndindex(*weight.shape):
        block = raw[n, i // 32 * 18 :][:18].tobytes()
        byte = block[2 + i % 16]
        weight[n, i] = ((byte >> 4 if i % 32 >= 16 else byte & 15) - 8) * np.frombuffer(block[:2], np.float16)[
            0
        ].astype(np.float32)
    return weight


def random_raw(outputs=5, blocks=3, seed=0):
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (outputs, blocks, 18)).astype(np.uint8)
    raw[..., :2] = rng.uniform(-0.2, 0.2, (outputs, blocks, 1)).astype(np.float16).view(np.uint8)
    return raw.reshape(outputs, -1)


def test_the_worked_example_of_the_header():
    raw = np.array([[0x00, 0x38, 0x08, 0x98] + [0x88] * 14], np.uint8)
    expected = np.zeros(32)
    expected[16], expected[17] = -4, 0.5
    np.testing.assert_array_equal(dequantise(unpack_q4_0(raw))[0], expected)


def test_unpacking_is_the_slow_reference():
    np.testing.assert_array_equal(dequantise(unpack_q4_0(random_raw())), slow(random_raw()))


def test_the_gguf_librarys_weights_are_ours():
    raw = quants.quantize(
        np.random.default_rng(0).normal(0, 0.1, (7, 160)).astype(np.float32), gguf.GGMLQuantizationType.Q4_0
    )
    np.testing.assert_array_equal(dequantise(unpack_q4_0(raw)), quants.dequantize(raw, gguf.GGMLQuantizationType.Q4_0))


def test_packing_again_gives_the_files_bytes():
    np.testing.assert_array_equal(pack_q4_0(unpack_q4_0(random_raw())), random_raw())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_unpacking_undoes_packing(data):
    outputs, blocks = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    codes = data.draw(arrays(np.uint8, (outputs, blocks, 32), elements=st.integers(0, 15)))
    scales = data.draw(arrays(np.float16, (outputs, blocks), elements=st.floats(-1, 1, width=16))).astype(np.float32)
    weight = Int4(pack_nibbles(codes), scales, None, blocks * 32)
    again = unpack_q4_0(pack_q4_0(weight))
    np.testing.assert_array_equal(unpack(again)[0], unpack(weight)[0])
    np.testing.assert_array_equal(again.scales, scales)
    assert again.zero_points is None


def test_rows_move_whole():
    order = np.array([3, 0, 4, 1, 2])
    weight = unpack_q4_0(random_raw())
    np.testing.assert_array_equal(dequantise(rows(weight, order)), dequantise(weight)[order])


@pytest.mark.parametrize(
    "raw",
    [np.zeros((2, 19), np.uint8), np.zeros(18, np.uint8), np.zeros((2, 18), np.int8), np.zeros((0, 18), np.uint8)],
)
def test_what_is_no_rows_of_blocks_is_refused(raw):
    with pytest.raises(ValueError, match="not uint8 rows of whole 18-byte blocks"):
        unpack_q4_0(raw)


def test_a_scale_that_is_not_finite_is_refused():
    raw = random_raw()
    raw[1, 18:20] = np.array([np.nan], np.float16).view(np.uint8)
    with pytest.raises(ValueError, match="NaN"):
        unpack_q4_0(raw)
