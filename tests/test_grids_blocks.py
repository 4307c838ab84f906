"""Laws of every grid with blocks, over block sizes, odd shapes and both symmetries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qia3.grids import int4, int8
from qia3.grids.blocks import BLOCK_SIZES

both = pytest.mark.parametrize("grid", [int4, int8])
forms = st.tuples(st.sampled_from(BLOCK_SIZES), st.booleans())
vectors = st.lists(st.sampled_from([0.0, 1.0, -1.0, 0.5, -2.25, 1.0078125]), min_size=5, max_size=5)


@st.composite
def weights(draw):
    n, k = draw(st.integers(1, 5)), draw(st.integers(1, 70))
    return draw(hnp.arrays(np.float32, (n, k), elements=st.floats(-4, 4, width=32)))


@both
@settings(max_examples=60, deadline=None)
@given(weight=weights(), form=forms, first=vectors, second=vectors)
def test_folding_touches_scales_only(grid, weight, form, first, second):
    """Law 2: fold(1) is the identity, fold(a) then fold(b) is fold(a * b)."""
    w = grid.quantise(weight, *form)
    a, b = np.array(first[: w.outputs], np.float32), np.array(second[: w.outputs], np.float32)
    folded = grid.fold(w, a)
    assert type(folded) is type(w)
    assert folded.codes is w.codes
    assert folded.zero_points is w.zero_points
    np.testing.assert_allclose(grid.dequantise(folded), grid.dequantise(w) * a[:, None], rtol=1e-6, atol=1e-30)
    np.testing.assert_array_equal(grid.fold(w, np.ones_like(a)).scales, w.scales)
    np.testing.assert_allclose(grid.fold(folded, b).scales, grid.fold(w, a * b).scales, rtol=1e-6, atol=1e-38)


@both
def test_a_vector_of_another_length_is_refused(grid):
    with pytest.raises(ValueError, match="3 output rows"):
        grid.fold(grid.quantise(np.ones((3, 16), np.float32), 16), np.ones(4, np.float32))


@both
@pytest.mark.parametrize("values", [[np.nan], [np.inf]])
def test_values_that_are_not_finite_are_refused(grid, values):
    with pytest.raises(ValueError, match="NaN or infinity"):
        grid.quantise(np.array([values], np.float32), 32)


@both
def test_a_block_of_another_size_is_refused(grid):
    with pytest.raises(ValueError, match="block_size must be one of"):
        grid.quantise(np.ones((1, 48), np.float32), 48)
