"""Laws of the int8 grid, over blocks, odd sizes and both symmetries; the oracle is five plain lines.

And ONNX Runtime reads it the same way.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper, numpy_helper
from test_grids_blocks import forms, weights

from qia3.grids import int4, int8


def oracle(w: int8.Int8) -> np.ndarray:
    out = np.zeros((w.outputs, w.inputs), np.float32)
    for n in range(w.outputs):
        for i in range(w.inputs):
            b, j = divmod(i, w.block_size)
            z = 128 if w.zero_points is None else int(w.zero_points[n, b])
            out[n, i] = np.float32(int(w.codes[n, b, j]) - z) * w.scales[n, b]
    return out


def test_worked_example():
    w = int8.quantise(np.array([[-0.5, 0.0, 1.0, 2.05]], np.float32), 16)
    assert w.codes[0, 0].tolist() == [0, 50, 150, 255] + [50] * 12
    assert w.zero_points is not None
    assert w.zero_points.tolist() == [[50]]
    np.testing.assert_allclose(w.scales, [[0.01]], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(weights(), forms)
def test_dequantise_equals_the_oracle(weight, grid):
    w = int8.quantise(weight, *grid)
    np.testing.assert_array_equal(int8.dequantise(w), oracle(w))


@settings(max_examples=60, deadline=None)
@given(weights(), forms)
def test_no_weight_is_further_than_a_step_from_what_it_was(weight, grid):
    """Half a step is the rounding of W, at the ends another half that of the zero point; symmetric, half a step and no
    more.
    """
    w = int8.quantise(weight, *grid)
    step = np.repeat(w.scales, w.block_size, axis=1)[:, : w.inputs]
    assert (np.abs(int8.dequantise(w) - weight) <= step * (0.5 if grid[1] else 1) * (1 + 1e-4) + 1e-37).all()


def test_a_zero_weight_stays_zero_and_so_does_the_filling():
    weight = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    weight[:, ::7] = 0
    for symmetric in (False, True):
        w = int8.quantise(weight, 32, symmetric)
        assert (int8.dequantise(w)[:, ::7] == 0).all()
        zeros = 128 if w.zero_points is None else w.zero_points[:, -1:]
        assert (w.codes[:, -1, 50 - 32 :] == zeros).all()


def test_rounding_costs_a_hundredth_of_what_the_best_four_bits_cost():
    """So round to nearest is enough: 17 times finer steps, 289 times less; 4 bits get a third of it back by searching
    ranges.
    """
    weight = np.random.default_rng(0).normal(size=(64, 512)).astype(np.float32)
    for symmetric in (False, True):
        four, eight = (g.dequantise(g.quantise(weight, 64, symmetric)) for g in (int4, int8))
        assert ((eight - weight) ** 2).sum() < ((four - weight) ** 2).sum() / 100


@pytest.mark.parametrize("symmetric", [False, True])
def test_bytes_follow_the_arithmetic(symmetric):
    w = int8.quantise(np.random.default_rng(0).normal(size=(7, 256)).astype(np.float32), 32, symmetric)
    assert w.nbytes * 8 / (7 * 256) == int8.bits_per_weight(32, symmetric) == (9.0 if symmetric else 9.25)
    assert w.nbytes == 7 * int8.row_bytes(256, 32, symmetric)


def test_the_block_is_the_one_that_a_row_takes_fewest_bytes_in():
    assert (int8.block_for(576, 128), int8.block_for(1536, 256), int8.block_for(1536, 16), int8.block_for(96, 64)) == (
        64,
        256,
        128,
        32,
    )


def session(op: str, w: int8.Int8, **attributes: int) -> ort.InferenceSession:
    """One node over the grid's bytes: x or ids in, y out."""
    tensors = {"codes": w.codes if op == "MatMulNBits" else w.codes.reshape(w.outputs, -1), "scales": w.scales}
    tensors |= {} if w.zero_points is None else {"zero_points": w.zero_points}
    order = ["x", *tensors] if op == "MatMulNBits" else ["codes", "x", *list(tensors)[1:]]
    node = helper.make_node(op, order, ["y"], domain="com.microsoft", bits=8, block_size=w.block_size, **attributes)
    kind = TensorProto.FLOAT if op == "MatMulNBits" else TensorProto.INT64
    ends = (
        [helper.make_tensor_value_info("x", kind, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph([node], "g", *ends, [numpy_helper.from_array(a, name) for name, a in tensors.items()])
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=domains, ir_version=10)
    return ort.InferenceSession(model.SerializeToString())


@pytest.mark.parametrize(
    ("block", "symmetric", "level"), list(itertools.product((16, 32, 64, 128, 256), (False, True), (0, 4)))
)
def test_onnx_runtime_multiplies_by_these_bytes(block, symmetric, level):
    """Level 4 rounds x to int8: each entry by up to 1/254 of its block's peak (3, say), over 300 weights of 1.

    A wrong zero point is off by 40.
    """
    random = np.random.default_rng(block)
    w = int8.quantise(random.normal(size=(41, 300)).astype(np.float32), block, symmetric)
    x = random.normal(size=(2, 3, 300)).astype(np.float32)
    got = session("MatMulNBits", w, K=300, N=41, accuracy_level=level).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, x @ int8.dequantise(w).T, atol=1e-4 if level == 0 else 4 * 3 / 254 * 300**0.5)


@pytest.mark.parametrize(("block", "symmetric"), list(itertools.product((16, 32, 64, 128, 256), (False, True))))
def test_onnx_runtime_looks_rows_up_in_these_bytes(block, symmetric):
    w = int8.quantise(np.random.default_rng(block).normal(size=(41, 512)).astype(np.float32), block, symmetric)
    ids = np.array([[3, 0, 40], [7, 7, 1]])
    got = session("GatherBlockQuantized", w, gather_axis=0, quantize_axis=1).run(None, {"x": ids})[0]
    np.testing.assert_array_equal(got, int8.dequantise(w)[ids])
