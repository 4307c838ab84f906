#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU: attention over zero keys has two answers. com.microsoft's MultiHeadAttention returns zeros for it, as do
# MatMul, Softmax and MatMul one by one; ONNX's own Attention (opset 23), which computes the same for three keys, fails at run time:
# "KV sequence length must be greater than 0". Its specification names no lower bound.
#
# Who meets it: decoders that attend to an encoder, and caches that begin empty. A graph without `If` runs the branch that has nothing to
# attend to yet, over no keys, and adds its zeros; written with MultiHeadAttention it works, written with Attention it stops.
#
# Output seen on 2026-11-28:
#   3 keys: same=True
#   0 keys: operators by hand zeros, MultiHeadAttention zeros, Attention raises
# Exits 0 where it still is so, 1 where it has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.22.0 numpy==2.4.6
cd "$place"
ORT_DISABLE_TELEMETRY=1 "$place/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

ort.set_default_logger_severity(4)


def value(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, 4])


def by_hand():
    swap = helper.make_node("Transpose", ["k"], ["t"], perm=[0, 2, 1])
    half = helper.make_node("Constant", [], ["half"], value_float=0.5)  # 4 ** -0.5
    return [
        swap,
        half,
        helper.make_node("MatMul", ["q", "t"], ["s"]),
        helper.make_node("Mul", ["s", "half"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]


def run(nodes, keys):
    graph = helper.make_graph(nodes, "g", [value(n) for n in "qkv"], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    opset = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(0)
    q, k, v = (draw.normal(size=(1, n, 4)).astype(np.float32) for n in (2, keys, keys))
    try:
        return session.run(None, {"q": q, "k": k, "v": v})[0]
    except Exception as error:
        if "KV sequence length must be greater than 0" not in str(error):
            raise
        return None


def told(found):
    return "raises" if found is None else "zeros" if not found.any() else "numbers"


graphs = [
    by_hand(),
    [helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], domain="com.microsoft", num_heads=1)],
    [helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=1, kv_num_heads=1)],
]
three = [run(nodes, 3) for nodes in graphs]
same = all(np.allclose(three[0], other, atol=1e-5) for other in three[1:])
none = [told(run(nodes, 0)) for nodes in graphs]
print(f"3 keys: same={same}")
print("0 keys: operators by hand {}, MultiHeadAttention {}, Attention {}".format(*none))
sys.exit(not (same and none == ["zeros", "zeros", "raises"]))
PY
