#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU: RunOptions.only_execute_path_to_fetches, "Only execute the nodes needed by fetch list" in the API's own
# words, changes nothing. A graph with two outputs that share no node runs every node when one of them is fetched, with the option
# and without it, in the profiler's own list.
#
# Who meets it: anybody who puts two tasks into one graph (an embedding beside a classifier, logits beside states) and counts on a
# call to pay for what it asks. It pays for both; separate graphs over one data file, or a branch in the graph, are the way.
#
# Output seen on 2026-11-28:
#   only_execute_path_to_fetches=False: asked unasked_exp unasked_product
#   only_execute_path_to_fetches=True: asked unasked_exp unasked_product
# Exits 0 where it still is so, 1 where it has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.22.0 numpy==2.4.6
cd "$place"
ORT_DISABLE_TELEMETRY=1 "$place/venv/bin/python" - <<'PY'
import json
import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

nodes = [
    helper.make_node("MatMul", ["x", "x"], ["a"], name="asked"),
    helper.make_node("Exp", ["x"], ["e"], name="unasked_exp"),
    helper.make_node("MatMul", ["e", "e"], ["b"], name="unasked_product"),
]
x, a, b = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 8]) for name in "xab")
opset = [helper.make_opsetid("", 17)]
model = helper.make_model(helper.make_graph(nodes, "two", [x], [a, b]), opset_imports=opset, ir_version=9)
ran = {}
for only in (False, True):
    options, run = ort.SessionOptions(), ort.RunOptions()
    options.enable_profiling, run.only_execute_path_to_fetches = True, only
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(["a"], {"x": np.eye(8, dtype=np.float32)}, run)
    events = json.load(open(session.end_profiling()))
    ends = "_kernel_time"
    ran[only] = sorted(e["name"].removesuffix(ends) for e in events if e.get("cat") == "Node" and e["name"].endswith(ends))
    print(f"only_execute_path_to_fetches={only}: {' '.join(ran[only])}")
sys.exit(ran[False] != ran[True] or "unasked_product" not in ran[True])
PY
