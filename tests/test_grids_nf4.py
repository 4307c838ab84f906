"""Laws of the NF4 grid. The oracles are bitsandbytes, bit for bit, and plain loops."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qia3.grids import nf4

blocks = st.sampled_from([32, 64, 128])


@st.composite
def weights(draw):
    n, k = draw(st.integers(1, 5)), draw(st.integers(1, 150))
    return draw(hnp.arrays(np.float32, (n, k), elements=st.floats(-4, 4, width=32)))


def normal(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.05, (n, k)).astype(np.float32)


def oracle(w: nf4.Nf4) -> np.ndarray:
    out = np.zeros((w.outputs, w.inputs), np.float32)
    for e in range(w.outputs * w.inputs):
        q = (int(w.codes[e // 2]) >> (4 if e % 2 == 0 else 0)) & 15
        out[e // w.inputs, e % w.inputs] = nf4.LEVELS[q] * w.scales[e // w.block_size]
    return out


def test_worked_example():
    w = nf4.quantise(np.array([[-0.5, 0.0, 0.25, 0.125]], np.float32))
    assert w.scales.tolist() == [0.5]
    assert w.codes.tolist() == [0x07, 0xCA]


def test_the_levels_are_those_of_bitsandbytes():
    np.testing.assert_array_equal(nf4.LEVELS, bnb.get_4bit_type("nf4", device="cpu").numpy())


@settings(max_examples=60, deadline=None)
@given(weights(), blocks)
def test_dequantise_equals_the_oracle(weight, block):
    w = nf4.quantise(weight, block)
    np.testing.assert_array_equal(nf4.dequantise(w), oracle(w))


@settings(max_examples=60, deadline=None)
@given(weights(), blocks)
def test_codes_and_scales_are_those_of_bitsandbytes(weight, block):
    if weight.size % 2:
        weight = weight[:, 1:]
    if not weight.size:
        return
    ours = nf4.quantise(weight, block)
    packed, state = bnb.quantize_4bit(torch.from_numpy(weight), blocksize=block, quant_type="nf4")
    np.testing.assert_array_equal(ours.scales, np.abs(state.absmax.numpy()))
    live = ours.scales[np.arange(weight.size) // block] > 1e-37  # the code of 0 / 0 is nobody's business
    theirs = np.stack([packed.numpy() >> 4, packed.numpy() & 15], -1).reshape(-1)[: weight.size]
    np.testing.assert_array_equal(nf4.unpack(ours).reshape(-1)[live], theirs[live])


@pytest.mark.parametrize("shape", [(7, 64), (48, 192), (33, 130)])
def test_a_whole_weight_is_that_of_bitsandbytes_bit_for_bit(shape):
    weight = normal(*shape)
    ours = nf4.quantise(weight)
    packed, state = bnb.quantize_4bit(torch.from_numpy(weight), blocksize=64, quant_type="nf4")
    np.testing.assert_array_equal(ours.codes, packed.numpy().reshape(-1))
    np.testing.assert_array_equal(nf4.dequantise(ours), bnb.dequantize_4bit(packed, state).numpy())


@settings(max_examples=60, deadline=None)
@given(weights(), blocks)
def test_no_entry_is_nearer_to_another_level(weight, block):
    w = nf4.quantise(weight, block)
    scales = w.scales[np.arange(weight.size) // block].reshape(weight.shape).astype(np.float64)
    wide = weight.astype(np.float64)
    best = np.abs(wide[..., None] - nf4.LEVELS.astype(np.float64) * scales[..., None]).min(-1)
    assert (np.abs(wide - nf4.dequantise(w)) <= best + 1e-6 * scales + 1e-37).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    blocks,
    st.lists(st.sampled_from([0.0, 1.0, -1.0, 0.5, -2.25]), min_size=4, max_size=4),
)
def test_folding_touches_scales_only_and_multiplies_rows(rows, each, block, vector):
    w = nf4.quantise(normal(rows, each * block), block)
    l = np.array(vector[:rows], np.float32)  # noqa: E741
    folded = nf4.fold(w, l)
    assert folded.codes is w.codes
    np.testing.assert_allclose(nf4.dequantise(folded), l[:, None] * nf4.dequantise(w), rtol=1e-6)
    np.testing.assert_array_equal(nf4.fold(w, np.ones(rows, np.float32)).scales, w.scales)


def test_rows_that_are_no_whole_blocks_are_not_folded():
    with pytest.raises(ValueError, match="a block spans two rows"):
        nf4.fold(nf4.quantise(normal(3, 96)), np.ones(3, np.float32))


def test_un_nested_scales_are_those_of_bitsandbytes():
    weight = normal(64, 576)
    packed, state = bnb.quantize_4bit(
        torch.from_numpy(weight), blocksize=64, quant_type="nf4", compress_statistics=True
    )
    scales = nf4.unnest(
        state.absmax.numpy(), state.state2.code.numpy(), state.state2.absmax.numpy(), float(state.offset)
    )
    ours = nf4.Nf4(packed.numpy().reshape(-1), scales, 64, 64, 576)
    np.testing.assert_array_equal(nf4.dequantise(ours), bnb.dequantize_4bit(packed, state).numpy())
    held = packed.numel() + state.absmax.numel() + 4 * state.state2.absmax.numel()
    assert 8 * held / weight.size == pytest.approx(nf4.bits_per_weight(64, nested=True), abs=0.01)
    assert 8 * ours.nbytes / weight.size == nf4.bits_per_weight(64) == 4.5


@pytest.mark.parametrize("bad", [{"block_size": 48}, {"weight": np.array([[np.nan]], np.float32)}])
def test_bad_input_is_told(bad):
    with pytest.raises(ValueError, match=r"NF4 block|NaN"):
        nf4.quantise(bad.get("weight", normal(2, 64)), bad.get("block_size", 64))
