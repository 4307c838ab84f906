"""GPTQ's layout: a slow reference from its description, what auto-gptq and gptqmodel pack and dequantise, round trips,
and what is refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file

from qia3.grids.gptq import STORED_BELOW, is_plain, pack_gptq, shapes, unpack_gptq
from qia3.grids.grouped import block_of, group_inputs
from qia3.grids.int4 import Int4, dequantise, pack_nibbles, unpack, unpack_nibbles

FOREIGN = Path(__file__).parent / "golden" / "foreign.safetensors"
FORMATS = sorted(STORED_BELOW)


def slow(qweight, qzeros, scales, group, below):
    """W [N, K], entry by entry, as the format is described."""
    inputs, outputs = qweight.shape[0] * 8, qweight.shape[1]
    weight = np.zeros((outputs, inputs), np.float32)
    for n, i in np.ndindex(outputs, inputs):
        code, zero = (
            (int(qweight[i // 8, n]) >> 4 * (i % 8)) & 15,
            (int(qzeros[i // group, n // 8]) >> 4 * (n % 8)) & 15,
        )
        weight[n, i] = (code - (zero + below) % 16) * np.float32(scales[i // group, n])
    return weight


def random_layer(inputs, outputs, group, below, seed=0, symmetric=False):
    """qweight, qzeros and scales; every nibble occurs, those of the words' top bits too."""
    rng = np.random.default_rng(seed)
    groups = -(-inputs // group_inputs(group, inputs))
    words = rng.integers(-(2**31), 2**31, (inputs // 8, outputs)).astype(np.int32)
    zeros = rng.integers(-(2**31), 2**31, (groups, outputs // 8)).astype(np.int32)
    if symmetric:
        zeros = np.full_like(zeros, int.from_bytes(bytes([(8 - below) * 17] * 4), "little", signed=True))
    return words, zeros, rng.uniform(-0.1, 0.2, (groups, outputs)).astype(np.float16)


def test_the_worked_example_of_the_header():
    qweight = np.array([[np.uint32(0x87654321).view(np.int32)] * 8], np.int32)
    weight = unpack_gptq(
        np.repeat(qweight, 2, 0), np.array([[0x77777777]], np.int32), np.ones((1, 8), np.float16), 16, "gptq"
    )
    assert bytes(weight.codes[3, 0, :4]) == bytes([0x21, 0x43, 0x65, 0x87])
    assert weight.zero_points is None
    np.testing.assert_array_equal(dequantise(weight)[5, :8], np.arange(1, 9) - 8)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("inputs", "group"),
    [(96, 32), (128, 64), (256, 128), (96, 96), (96, -1), (1024, 512), (160, 64), (40, 32), (32, 16), (512, 256)],
)
def test_unpacking_is_the_slow_reference(name, inputs, group):
    layer = random_layer(inputs, 24, group, STORED_BELOW[name])
    weight = unpack_gptq(*layer, group, name)
    np.testing.assert_array_equal(dequantise(weight), slow(*layer, group_inputs(group, inputs), STORED_BELOW[name]))
    assert weight.block_size == block_of(group_inputs(group, inputs))


@pytest.mark.parametrize("name", FORMATS)
def test_the_libraries_weights_are_ours(name):
    """v1 packed and dequantised by auto-gptq, v2 by gptqmodel (tests/golden/foreign.py), which gives float16, so ours
    are rounded to it.
    """
    found = {k.partition(".")[2]: v for k, v in load_file(FOREIGN).items() if k.startswith(f"{name}.")}
    weight = unpack_gptq(found["qweight"], found["qzeros"], found["scales"], 32, name)
    dense = found["dense"].T.astype(np.float16)
    np.testing.assert_array_equal(dequantise(weight).astype(np.float16), dense)
    other = unpack_gptq(found["qweight"], found["qzeros"], found["scales"], 32, next(f for f in FORMATS if f != name))
    assert (dequantise(other).astype(np.float16) != dense).all()  # in the other convention every weight is another


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_packing_again_gives_the_files_tensors(name, symmetric):
    layer = random_layer(128, 40, 32, STORED_BELOW[name], seed=3, symmetric=symmetric)
    weight = unpack_gptq(*layer, 32, name)
    assert (weight.zero_points is None) is symmetric
    for ours, theirs in zip(pack_gptq(weight, name), layer, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_unpacking_undoes_packing(data):
    """Codes, zero points and scales, of any layer on the grid."""
    name, block = data.draw(st.sampled_from(FORMATS)), data.draw(st.sampled_from((16, 32, 64)))
    outputs, blocks = 8 * data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    codes = data.draw(arrays(np.uint8, (outputs, blocks, block), elements=st.integers(0, 15)))
    zeros = data.draw(arrays(np.uint8, (outputs, blocks), elements=st.integers(0, 15)))
    scales = data.draw(arrays(np.float16, (outputs, blocks), elements=st.floats(-1, 1, width=16))).astype(np.float32)
    weight = Int4(pack_nibbles(codes), scales, pack_nibbles(zeros), blocks * block)
    again = unpack_gptq(*pack_gptq(weight, name), block, name)
    for ours, theirs in zip(unpack(again), unpack(weight), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(again.scales, scales)


def test_a_short_last_block_is_filled_up_with_its_zero_point():
    weight = unpack_gptq(*random_layer(160, 24, 64, 1), 64, "gptq")
    codes, zeros = unpack_nibbles(weight.codes, 64), unpack(weight)[1]
    assert (codes[:, 2, 32:] == zeros[:, 2, None]).all()


def test_long_groups_become_blocks_with_the_same_scale():
    layer = random_layer(1024, 8, 512, 1)
    weight = unpack_gptq(*layer, 512, "gptq")
    assert (weight.block_size, weight.scales.shape) == (256, (8, 4))
    np.testing.assert_array_equal(weight.scales, layer[2].astype(np.float32).T.repeat(2, 1))


@pytest.mark.parametrize("group", [0, 8, 24, 100, -2])
def test_groups_that_no_block_divides_are_refused(group):
    with pytest.raises(ValueError, match="cannot be split into blocks"):
        block_of(group)


def test_only_groups_in_order_are_plain():
    order = np.arange(96, dtype=np.int32) // 32
    assert is_plain(order, 32)
    assert is_plain(np.zeros(96, np.int32), -1)
    assert not is_plain(order[::-1], 32)
    assert not is_plain(np.roll(order, 1), 32)


def test_tensors_that_do_not_belong_together_are_refused():
    words, zeros, scales = random_layer(96, 24, 32, 1)
    for layer in [
        (words[:-4], zeros, scales),
        (words, zeros[:, :-1], scales),
        (words, zeros, scales[:-1]),
        (words[:, :-1], zeros, scales),
    ]:
        with pytest.raises(ValueError, match=r"fit together|multiples of 8|odd number"):
            unpack_gptq(*layer, 32, "gptq")
    with pytest.raises(ValueError, match="NaN or infinity"):
        unpack_gptq(words, zeros, np.where(scales == scales.max(), np.float16("inf"), scales), 32, "gptq")
    with pytest.raises(ValueError, match="multiples of 8"):
        shapes(100, 24, 32)
