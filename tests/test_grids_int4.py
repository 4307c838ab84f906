"""Laws of the int4 grid, over blocks, odd sizes and both symmetries; the oracle is five plain lines."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from test_grids_blocks import forms, weights

from qia3.grids import int4


def oracle(w: int4.Int4) -> np.ndarray:
    out = np.zeros((w.outputs, w.inputs), np.float32)
    for n in range(w.outputs):
        for i in range(w.inputs):
            b, j = divmod(i, w.block_size)
            q = (int(w.codes[n, b, j // 2]) >> (4 * (j % 2))) & 15
            z = 8 if w.zero_points is None else (int(w.zero_points[n, b // 2]) >> (4 * (b % 2))) & 15
            out[n, i] = np.float32(q - z) * w.scales[n, b]
    return out


def test_worked_example():
    w = int4.quantise(np.array([[-0.3, 0.0, 0.6, 1.2]], np.float32), 16)
    assert w.codes[0, 0, :2].tolist() == [0x30, 0xF9]
    assert w.zero_points is not None
    assert w.zero_points.tolist() == [[3]]
    np.testing.assert_allclose(w.scales, [[0.1]], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(weights(), forms)
def test_dequantise_equals_the_oracle(weight, grid):
    w = int4.quantise(weight, *grid)
    np.testing.assert_array_equal(int4.dequantise(w), oracle(w))


def nearest(row: np.ndarray, symmetric: bool) -> np.ndarray:
    """One block by round to nearest over its full range, in float64."""
    row = row.astype(np.float64)
    low, high = min(row.min(), 0), max(row.max(), 0)
    scale = row[np.abs(row).argmax()] / -8 if symmetric else (high - low) / 15
    if scale == 0:
        return np.zeros_like(row)
    zero = 8 if symmetric else np.clip(np.rint(-low / scale), 0, 15)
    return (np.clip(np.rint(row / scale) + zero, 0, 15) - zero) * scale


@settings(max_examples=60, deadline=None)
@given(weights(), forms)
def test_no_block_is_worse_than_by_round_to_nearest(weight, grid):
    found = int4.dequantise(int4.quantise(weight, *grid)).astype(np.float64)
    for row, ours in zip(weight, found, strict=True):
        for start in range(0, len(row), grid[0]):
            part = slice(start, start + grid[0])
            rounding = (
                2e-6 * (row[part].astype(np.float64) ** 2).sum() * (np.abs(row[part]).max() * 2 + 1)
            )  # of the float32 sums that choose
            assert (
                error(row[part], ours[part], grid[0])
                <= error(row[part], nearest(row[part], grid[1]), grid[0]) + rounding
            )


def error(block: np.ndarray, found: np.ndarray, size: int) -> float:
    """The weighted squared error of a block, which may be cut short by the end of its row."""
    wide = block.astype(np.float64)
    return float((np.sqrt((wide**2).sum() / size + wide**2) * (wide - found) ** 2).sum())


def test_the_search_gains_on_weights_as_models_have_them():
    """On a normal weight in blocks of 32, in the plain squared error as well; none of it by chance."""
    weight = np.random.default_rng(0).normal(size=(64, 512)).astype(np.float32)
    plain = np.concatenate([nearest(b, False) for b in weight.reshape(-1, 32)]).reshape(weight.shape)
    found = int4.dequantise(int4.quantise(weight, 32))
    assert ((found - weight) ** 2).sum() < 0.95 * ((plain - weight) ** 2).sum()
    assert sum(map(error, weight.reshape(-1, 32), found.reshape(-1, 32), [32] * 1024)) < 0.95 * sum(
        map(error, weight.reshape(-1, 32), plain.reshape(-1, 32), [32] * 1024)
    )


def test_bytes_follow_the_arithmetic():
    w = int4.quantise(np.random.default_rng(0).normal(size=(7, 256)).astype(np.float32), 32)
    assert w.nbytes * 8 / (7 * 256) == int4.bits_per_weight(32, symmetric=False) == 5.125
