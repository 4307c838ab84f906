"""compressed-tensors' layout (pack-quantized, 4 bits): a slow reference from its description, what the library packs
and dequantises, round trips, what folding leaves, and what is refused.
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

from qia3.grids.compressed import pack_compressed, shapes, unpack_compressed
from qia3.grids.grouped import group_inputs
from qia3.grids.int4 import Int4, dequantise, fold, pack_nibbles, unpack

FOREIGN = Path(__file__).parent / "golden" / "compressed.safetensors"


def slow(packed, scales, zeros, group, inputs):
    """W [N, K], entry by entry, as the library counts: signed codes and zero points, each stored with 8 added."""
    outputs = len(packed)
    weight = np.zeros((outputs, inputs), np.float32)
    for n, i in np.ndindex(outputs, inputs):
        code = ((int(packed[n, i // 8]) >> 4 * (i % 8)) & 15) - 8
        zero = 0 if zeros is None else ((int(zeros[n // 8, i // group]) >> 4 * (n % 8)) & 15) - 8
        weight[n, i] = (code - zero) * np.float32(scales[n, i // group])
    return weight


def random_layer(inputs, outputs, group, seed=0, symmetric=False):
    """Every nibble occurs, those of the words' top bits too."""
    rng = np.random.default_rng(seed)
    groups = -(-inputs // group_inputs(group, inputs))
    packed = rng.integers(-(2**31), 2**31, (outputs, -(-inputs // 8))).astype(np.int32)
    zeros = rng.integers(-(2**31), 2**31, (-(-outputs // 8), groups)).astype(np.int32)
    return packed, rng.uniform(-0.1, 0.2, (outputs, groups)).astype(np.float16), None if symmetric else zeros


def test_the_worked_example_of_the_header():
    packed = np.full((2, 2), 0x76543210, np.int32)
    zeros = np.array([[0xA7]], np.int32)
    weight = unpack_compressed(packed, np.ones((2, 1), np.float32), zeros, 16, 16)
    assert bytes(weight.codes[1, 0, :4]) == bytes([0x10, 0x32, 0x54, 0x76])
    np.testing.assert_array_equal(dequantise(weight)[0, :8], np.arange(-8, 0) - -1)
    np.testing.assert_array_equal(dequantise(weight)[1, :8], np.arange(-8, 0) - 2)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("inputs", "outputs", "group"),
    [(96, 24, 32), (128, 13, 64), (256, 7, 128), (96, 24, -1), (1024, 3, 512), (160, 24, 64), (48, 5, 16), (80, 9, -1)],
)
def test_unpacking_is_the_slow_reference(inputs, outputs, group, symmetric):
    """Also where outputs, or inputs, do not fill the words."""
    layer = random_layer(inputs, outputs, group, symmetric=symmetric)
    weight = unpack_compressed(*layer, group, inputs)
    np.testing.assert_array_equal(dequantise(weight), slow(*layer, group_inputs(group, inputs), inputs))
    assert (weight.zero_points is None) is symmetric


@pytest.mark.parametrize("name", ["symmetric", "asymmetric", "channel"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_librarys_weights_are_ours(name, dtype):
    """Packed and decompressed by compressed-tensors (tests/golden/foreign_compressed.py): bit for bit in the type of
    the scale, to which the library rounds once.
    """
    kind = f"{name}.{str(dtype).removeprefix('torch.')}"
    found = {k.removeprefix(f"{kind}."): v for k, v in load_file(FOREIGN).items() if k.startswith(f"{kind}.")}
    zeros = found.get("weight_zero_point")
    group, inputs = -1 if name == "channel" else 32, int(found["weight_shape"][1])
    weight = unpack_compressed(
        found["weight_packed"].numpy(),
        found["weight_scale"].float().numpy(),
        None if zeros is None else zeros.numpy(),
        group,
        inputs,
    )
    assert found["dense"].dtype == dtype
    assert torch.equal(torch.from_numpy(dequantise(weight)).to(dtype), found["dense"])
    assert (weight.zero_points is None) is (zeros is None)
    codes, points = unpack(weight)
    np.testing.assert_array_equal(codes.astype(np.int16) - 8, found["codes"].numpy())
    if zeros is not None:
        each = points.shape[1] // zeros.shape[1]  # a row of 80 inputs is 5 blocks of 16
        np.testing.assert_array_equal(points.astype(np.int16) - 8, found["zero_points"].numpy().repeat(each, 1))


@pytest.mark.parametrize("symmetric", [False, True])
def test_packing_again_gives_the_files_tensors(symmetric):
    layer = random_layer(128, 40, 32, seed=3, symmetric=symmetric)
    for ours, theirs in zip(pack_compressed(unpack_compressed(*layer, 32, 128)), layer, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_unpacking_undoes_packing(data):
    """Codes, zero points and scales, of any layer on the grid."""
    block, blocks = data.draw(st.sampled_from((16, 32, 64))), data.draw(st.integers(1, 3))
    outputs, symmetric = data.draw(st.integers(1, 20)), data.draw(st.booleans())
    codes = data.draw(arrays(np.uint8, (outputs, blocks, block), elements=st.integers(0, 15)))
    zeros = data.draw(arrays(np.uint8, (outputs, blocks), elements=st.integers(0, 15)))
    scales = data.draw(arrays(np.float32, (outputs, blocks), elements=st.floats(-1, 1, width=32)))
    weight = Int4(pack_nibbles(codes), scales, None if symmetric else pack_nibbles(zeros), blocks * block)
    again = unpack_compressed(*pack_compressed(weight), block, blocks * block)
    for ours, theirs in zip(unpack(again), unpack(weight), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(again.scales, scales)


def test_folding_touches_scales_only():
    weight, vector = unpack_compressed(*random_layer(96, 24, 32), 32, 96), np.linspace(-2, 2, 24, dtype=np.float32)
    folded = fold(weight, vector)
    assert folded.codes is weight.codes
    assert folded.zero_points is weight.zero_points
    np.testing.assert_allclose(dequantise(folded), dequantise(weight) * vector[:, None], rtol=1e-6)


def test_tensors_that_do_not_belong_together_are_refused():
    packed, scales, zeros = random_layer(96, 24, 32)
    for layer in [(packed[:-1], scales, zeros), (packed, scales[:, :-1], zeros), (packed, scales, zeros[:-1])]:
        with pytest.raises(ValueError, match="fit together"):
            unpack_compressed(*layer, 32, 96)
    with pytest.raises(ValueError, match="NaN or infinity"):
        unpack_compressed(packed, np.where(scales == scales.max(), np.float16("inf"), scales), zeros, 32, 96)
    with pytest.raises(ValueError, match="odd number"):
        shapes(97, 24, 32, True)
