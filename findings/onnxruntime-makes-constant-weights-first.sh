#!/usr/bin/env bash
# onnxruntime 1.32.0: nodes that follow from constants alone run before everything else, however late they are needed. A graph that
# dequantises each 4-bit weight right before its product (DequantizeLinear on initializers, which is not folded) has all of them in float32
# at once: the 4-bit file is small, the process is not. A scale whose shape is computed from the activation makes the node wait for it.
#
# Who meets it: anyone who ships 4-bit weights in standard ONNX operators to save memory, or runs a backward pass over them.
#
# Output seen on 2026-11-29 (40 weights of 1024 x 1024, behind 40 other nodes; the nodes are written in the order they are needed):
#   constants alone: 40 of 40 weights made before the first product
#   waiting for the activation: 1 of 40 weights made before the first product
# Exits 0 where it still is so, 1 where it has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cd "$place"
cat > main.py <<'PY'
import json
import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

LAYERS, WIDTH, BLOCK = 40, 1024, 64
random = np.random.default_rng(0)


def model(waits):
    nodes, at = [], "x"
    shape = np.array([WIDTH, WIDTH // BLOCK], np.int64)
    held = [numpy_helper.from_array(np.array([0], np.int64), "nought"), numpy_helper.from_array(shape, "shape")]
    for i in range(LAYERS):
        nodes.append(helper.make_node("Tanh", [at], [f"h{i}"]))
        at = f"h{i}"
    for i in reversed(range(LAYERS)):
        codes = random.integers(0, 256, WIDTH * WIDTH // 2, np.uint8).tobytes()
        held.append(helper.make_tensor(f"codes{i}", TensorProto.UINT4, [WIDTH, WIDTH], codes, raw=True))
        held.append(numpy_helper.from_array(random.random(tuple(shape), np.float32) * np.float32(0.01), f"scales{i}"))
        scales = f"scales{i}"
        if waits:
            nodes += [
                helper.make_node("Shape", [at], [f"rows{i}"], start=0, end=1),
                helper.make_node("Min", [f"rows{i}", "nought"], [f"none{i}"]),
                helper.make_node("Add", [f"none{i}", "shape"], [f"asked{i}"]),
                helper.make_node("Reshape", [scales, f"asked{i}"], [f"late{i}"]),
            ]
            scales = f"late{i}"
        nodes += [
            helper.make_node("DequantizeLinear", [f"codes{i}", scales], [f"weight{i}"], axis=1, block_size=BLOCK),
            helper.make_node("MatMul", [at, f"weight{i}"], [f"product{i}"]),
            helper.make_node("Mul", [f"product{i}", f"h{i}"], [f"g{i}"]),
        ]
        at = f"g{i}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", WIDTH]) for name in ("x", at)]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def early(waits):
    options = ort.SessionOptions()
    options.enable_profiling, options.log_severity_level = True, 3
    session = ort.InferenceSession(model(waits), options)
    session.run(None, {"x": np.ones((2, WIDTH), np.float32)})
    with open(session.end_profiling()) as file:
        events = [e for e in json.load(file) if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    order = [event["args"]["op_name"] for event in events]
    return order[: order.index("MatMul")].count("DequantizeLinear")


found = early(False), early(True)
for how, count in zip(("constants alone", "waiting for the activation"), found, strict=True):
    print(f"{how}: {count} of {LAYERS} weights made before the first product")
sys.exit(found != (LAYERS, 1))
PY
venv/bin/python main.py
