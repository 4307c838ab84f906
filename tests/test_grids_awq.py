"""AWQ's layout (gemm): a slow reference from its description, what AutoAWQ packs and dequantises, round trips, and what
is refused.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file
from test_grids_gptq import FOREIGN

from qia3.grids.awq import pack_awq, unpack_awq
from qia3.grids.int4 import Int4, dequantise, pack_nibbles, unpack


def slow(qweight, qzeros, scales, group):
    """W [N, K], entry by entry, as the format is described: output n is in the nibble where 0 2 4 6 1 3 5 7 has n % 8."""
    inputs, outputs = qweight.shape[0], qweight.shape[1] * 8
    weight = np.zeros((outputs, inputs), np.float32)
    for n, i in np.ndindex(outputs, inputs):
        at = 4 * [0, 2, 4, 6, 1, 3, 5, 7].index(n % 8)
        code, zero = (int(qweight[i, n // 8]) >> at) & 15, (int(qzeros[i // group, n // 8]) >> at) & 15
        weight[n, i] = (code - zero) * np.float32(scales[i // group, n])
    return weight


def random_layer(inputs, outputs, group, seed=0, symmetric=False):
    rng = np.random.default_rng(seed)
    groups = -(-inputs // group)
    words = rng.integers(-(2**31), 2**31, (inputs, outputs // 8)).astype(np.int32)
    zeros = rng.integers(-(2**31), 2**31, (groups, outputs // 8)).astype(np.int32)
    if symmetric:
        zeros = np.full_like(zeros, int.from_bytes(b"\x88" * 4, "little", signed=True))
    return words, zeros, rng.uniform(-0.1, 0.2, (groups, outputs)).astype(np.float16)


def test_the_worked_example_of_the_header():
    qweight = np.full((16, 1), 0x75316420, np.int32)
    weight = unpack_awq(qweight, np.zeros((1, 1), np.int32), np.ones((1, 8), np.float16), 16)
    np.testing.assert_array_equal(dequantise(weight), np.arange(8)[:, None].repeat(16, 1))


@pytest.mark.parametrize(("inputs", "group"), [(96, 32), (128, 64), (256, 128), (160, 64), (1024, 512), (40, 32)])
def test_unpacking_is_the_slow_reference(inputs, group):
    layer = random_layer(inputs, 24, group)
    np.testing.assert_array_equal(dequantise(unpack_awq(*layer, group)), slow(*layer, group))


def test_the_librarys_weights_are_ours():
    """Packed and dequantised by AutoAWQ (tests/golden/foreign.py); its dequantised weight is float16, so ours is
    rounded to it.
    """
    found = {k.partition(".")[2]: v for k, v in load_file(FOREIGN).items() if k.startswith("awq.")}
    weight = unpack_awq(found["qweight"], found["qzeros"], found["scales"], 32)
    np.testing.assert_array_equal(dequantise(weight).astype(np.float16), found["dense"].T.astype(np.float16))


@pytest.mark.parametrize("symmetric", [False, True])
def test_packing_again_gives_the_files_tensors(symmetric):
    layer = random_layer(128, 40, 32, seed=3, symmetric=symmetric)
    weight = unpack_awq(*layer, 32)
    assert (weight.zero_points is None) is symmetric
    for ours, theirs in zip(pack_awq(weight), layer, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_unpacking_undoes_packing(data):
    """Codes, zero points and scales, of any layer on the grid."""
    block, outputs, blocks = (
        data.draw(st.sampled_from((16, 32, 64))),
        8 * data.draw(st.integers(1, 3)),
        data.draw(st.integers(1, 3)),
    )
    codes = data.draw(arrays(np.uint8, (outputs, blocks, block), elements=st.integers(0, 15)))
    zeros = data.draw(arrays(np.uint8, (outputs, blocks), elements=st.integers(0, 15)))
    scales = data.draw(arrays(np.float16, (outputs, blocks), elements=st.floats(-1, 1, width=16))).astype(np.float32)
    again = unpack_awq(
        *pack_awq(weight := Int4(pack_nibbles(codes), scales, pack_nibbles(zeros), blocks * block)), block
    )
    for ours, theirs in zip(unpack(again), unpack(weight), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(again.scales, scales)


def test_tensors_that_do_not_belong_together_are_refused():
    words, zeros, scales = random_layer(96, 24, 32)
    for layer in [(words[:-8], zeros[:-1], scales), (words, zeros[:, :-1], scales), (words, zeros, scales[:-1])]:
        with pytest.raises(ValueError, match="fit together"):
            unpack_awq(*layer, 32)
