"""MLX's affine layout: a slow reference from its description, what MLX quantises and dequantises, round trips, which
groups are kept, what folding leaves, and what is refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file

from qia3.grids.int4 import Int4, dequantise, fold, pack_nibbles, unpack
from qia3.grids.mlx import UNITS, dequantise_mlx, pack_mlx, shapes, unpack_mlx

FOREIGN = Path(__file__).parent / "golden" / "mlx.safetensors"


def slow(words, scales, biases, group, bits):
    """W [N, K], entry by entry: the codes of a row are one long number, the first in its lowest bits."""
    outputs, inputs = len(words), words.shape[1] * 32 // bits
    weight = np.zeros((outputs, inputs), np.float32)
    for n in range(outputs):
        row = sum(int(word) << 32 * k for k, word in enumerate(words[n]))
        for i in range(inputs):
            code = (row >> bits * i) & (2**bits - 1)
            weight[n, i] = np.float32(code) * scales[n, i // group] + biases[n, i // group]
    return weight


def random_layer(inputs, outputs, group, bits=4, seed=0):
    """Scales of both signs; biases that are no whole number of them."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 2**32, (outputs, inputs * bits // 32), dtype=np.uint64).astype(np.uint32)
    shape = (outputs, inputs // group)
    return words, rng.uniform(-0.1, 0.1, shape).astype(np.float32), rng.uniform(-1, 1, shape).astype(np.float32)


def foreign(kind):
    """words, scales, biases and MLX's dequantised weight; the type that scales are stored in."""
    found = {k.removeprefix(f"{kind}."): v for k, v in load_file(FOREIGN).items() if k.startswith(f"{kind}.")}
    stored = str(found["scales"].dtype).removeprefix("torch.")
    parts = found["weight"].numpy(), found["scales"].float().numpy(), found["biases"].float().numpy()
    return *parts, found["dense"].numpy(), stored


def test_the_worked_example_of_the_header():
    """The first two bytes of a group, with its negative scale and with the same values on a positive one."""
    words = np.full((1, 4), int.from_bytes(bytes([0xCF, 0x06, 0xCC, 0xCC]), "little"), np.uint32)
    scales, biases = np.array([[-0.1]], np.float32), np.array([[1.2]], np.float32)
    weight, moved = unpack_mlx(words, scales, biases, UNITS["float32"])
    assert not moved.any()
    assert bytes(weight.codes[0, 0, :2]) == bytes([0xCF, 0x06])
    assert unpack(weight)[1].tolist() == [[12]]
    np.testing.assert_allclose(dequantise(weight)[0, :4], [-0.3, 0.0, 0.6, 1.2], atol=1e-7)
    turned = Int4(np.uint8(0xFF) - weight.codes, -weight.scales, pack_nibbles(np.array([[3]], np.uint8)), weight.inputs)
    np.testing.assert_array_equal(dequantise(turned), dequantise(weight))
    assert bytes(turned.codes[0, 0, :2]) == bytes([0x30, 0xF9])


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(("inputs", "group"), [(96, 32), (128, 64), (256, 128)])
def test_dequantising_is_the_slow_reference(inputs, group, bits):
    layer = random_layer(inputs, 7, group, bits)
    np.testing.assert_array_equal(dequantise_mlx(*layer, bits), slow(*layer, group, bits))


@pytest.mark.parametrize("kind", ["2bits", "3bits", "5bits", "6bits", "8bits", "bfloat16.64", "float16.32", "one-sign"])
def test_the_librarys_floats_are_ours(kind):
    """Dequantised by MLX in float32 (tests/golden/foreign_mlx.py), which may join the product and the sum in one step."""
    *layer, dense, _ = foreign(kind)
    bits = int(kind[0]) if kind[0].isdigit() else 4
    np.testing.assert_allclose(dequantise_mlx(*layer, bits), dense, atol=3e-7)


@pytest.mark.parametrize("kind", [f"{dtype}.{group}" for dtype in UNITS for group in (32, 64)])
def test_what_mlx_quantised_is_kept(kind):
    """Every code and every scale, negative ones among them; weights move by one unit in the last place of the bias at
    most, all of a group alike.
    """
    words, scales, biases, dense, stored = foreign(kind)
    weight, moved = unpack_mlx(words, scales, biases, UNITS[stored])
    assert not moved.any()
    assert (scales < 0).any()
    assert (scales > 0).any()
    np.testing.assert_array_equal(weight.scales, scales)
    assert weight.codes.tobytes() == words.astype("<u4").tobytes()
    group = dense.shape[1] // scales.shape[1]
    off = (dequantise(weight) - dense).reshape(len(dense), -1, group)
    assert (np.abs(off).max(-1) <= UNITS[stored] * np.abs(biases) + 3e-7).all()
    assert np.ptp(off, axis=-1).max() < 1e-6
    assert off.std() < 0.04 * np.abs(scales).mean()  # a step; what rounding did to the weights is 0.29


def test_groups_whose_zero_point_is_not_whole_are_rounded_anew_and_no_others():
    words, scales, biases, _, _ = foreign("float32.32")
    biases = biases.copy()
    biases[3, 1] += 0.3 * scales[3, 1]
    biases[4, 2] -= 9 * scales[4, 2]  # whole, and beyond 15
    weight, moved = unpack_mlx(words, scales, biases, UNITS["float32"])
    assert np.argwhere(moved).tolist() == [[3, 1], [4, 2]]
    dense, ours = dequantise_mlx(words, scales, biases), dequantise(weight)
    block = np.arange(dense.shape[1]) // 32
    np.testing.assert_allclose(ours[~moved[:, block]], dense[~moved[:, block]], atol=1e-6)
    error = np.linalg.norm((ours - dense)[moved[:, block]]) / np.linalg.norm(dense[moved[:, block]])
    assert 0 < error < 0.1


def test_groups_of_one_sign_and_of_zeros():
    """MLX puts zero points of 100 and more on the first; a group of zeros is one of our zeros."""
    words, scales, biases, dense, stored = foreign("one-sign")
    weight, moved = unpack_mlx(words, scales, biases, UNITS[stored])
    assert moved.all()
    assert np.abs(dequantise(weight) - dense).max() < 0.06
    words, scales, biases, dense, stored = foreign("zeros")
    weight, moved = unpack_mlx(words, scales, biases, UNITS[stored])
    assert not moved.any()
    assert not dequantise(weight).any()
    assert not dense.any()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_unpacking_undoes_packing(data):
    """Codes, zero points and scales, of any layer on the grid whose scales are not zero, to the last bit of float32."""
    block, blocks = data.draw(st.sampled_from((32, 64, 128))), data.draw(st.integers(1, 3))
    outputs = data.draw(st.integers(1, 6))
    codes = data.draw(arrays(np.uint8, (outputs, blocks, block), elements=st.integers(0, 15)))
    zeros = data.draw(arrays(np.uint8, (outputs, blocks), elements=st.integers(0, 15)))
    sizes = st.floats(2**-10, 1, width=32)
    scales = data.draw(arrays(np.float32, (outputs, blocks), elements=sizes | sizes.map(lambda s: -s)))
    weight = Int4(pack_nibbles(codes), scales, pack_nibbles(zeros), blocks * block)
    again, moved = unpack_mlx(*pack_mlx(weight), UNITS["float32"])
    assert not moved.any()
    for ours, theirs in zip(unpack(again), unpack(weight), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(again.scales, scales)


def test_folding_touches_scales_only():
    words, scales, biases, _, stored = foreign("bfloat16.32")
    weight, vector = unpack_mlx(words, scales, biases, UNITS[stored])[0], np.linspace(-2, 2, 6, dtype=np.float32)
    folded = fold(weight, vector)
    assert folded.codes is weight.codes
    assert folded.zero_points is weight.zero_points
    np.testing.assert_allclose(dequantise(folded), dequantise(weight) * vector[:, None], rtol=1e-6)


def test_a_unit_is_the_spacing_of_the_type_at_one():
    assert {name: torch.finfo(getattr(torch, name)).eps for name in UNITS} == UNITS


def test_tensors_that_do_not_belong_together_are_refused():
    words, scales, biases = random_layer(96, 24, 32)
    for layer in [(words[:-1], scales, biases), (words, scales[:, :-1], biases), (words, scales, biases[:-1])]:
        with pytest.raises(ValueError, match=r"fit together|whole number of groups"):
            unpack_mlx(*layer, 2**-7)
    with pytest.raises(ValueError, match="NaN or infinity"):
        unpack_mlx(words, scales, np.where(biases == biases.max(), np.float32("inf"), biases), 2**-7)
    with pytest.raises(ValueError, match="whole number of groups of 24"):
        shapes(96, 24, 24, 4)
