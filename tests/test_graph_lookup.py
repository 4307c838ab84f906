"""The look-up in plain operators: ONNX Runtime's own operator to the bit, and the grid's numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from qia3.graph.lookup import KIND, PlainLookup
from qia3.grids import int4, int8

ROWS, IDS = 50, np.array([[3, 49, 0], [7, 7, 12]])


def graph(weight, bits, block):
    """Rows of `weight` by ONNX Runtime's operator, as the exporter writes it."""
    codes = weight.codes.reshape(ROWS, -1)
    held = {"codes": codes, "scales": weight.scales} | (
        {} if weight.zero_points is None else {"zeros": weight.zero_points}
    )
    values = {n: ir.Value(name=n, const_value=ir.tensor(a, name=n)) for n, a in held.items()}
    ids = ir.Value(name="ids", shape=ir.Shape(["batch", "sequence"]), type=ir.TensorType(ir.DataType.INT64))
    how = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    inputs = [values["codes"], ids, values["scales"], *([values["zeros"]] if "zeros" in values else [])]
    node = ir.node(KIND, inputs, how, domain="com.microsoft")
    node.outputs[0].name, node.outputs[0].type = "rows", ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape(["batch", "sequence", weight.inputs])
    reader = ir.node("Identity", [node.outputs[0]])
    reader.outputs[0].name, reader.outputs[0].type = "out", ir.TensorType(ir.DataType.FLOAT)
    opsets = {"": 21, "com.microsoft": 1}
    made = ir.Graph(
        [ids],
        [reader.outputs[0]],
        nodes=[node, reader],
        initializers=list(values.values()),
        opset_imports=opsets,
        name="lookup",
    )
    return ir.Model(made, ir_version=10)


def answer(model):
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, {"ids": IDS})[0]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("inputs", [576, 512])  # 9 and 8 blocks: only an even number fills the zero points' bytes
@pytest.mark.parametrize("bits", [4, 8])
def test_it_is_the_operator_to_the_bit(bits, inputs, symmetric):
    grid = int4 if bits == 4 else int8
    dense = np.random.default_rng(bits).standard_normal((ROWS, inputs)).astype(np.float32)
    weight = grid.quantise(dense, 64, symmetric)
    model = graph(weight, bits, 64)
    native = answer(model)
    PlainLookup()(model)
    assert KIND not in {node.op_type for node in model.graph}
    assert not {node.domain for node in model.graph} - {""}
    np.testing.assert_array_equal(answer(model), native)
    np.testing.assert_array_equal(native, grid.dequantise(weight)[IDS])
