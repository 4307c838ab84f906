#!/usr/bin/env bash
# onnxruntime-web 1.30.0: its builds differ in the CPU kernels that they hold. A 4-bit table is looked up (GatherBlockQuantized, of
# com.microsoft) by the provider "wasm" of the entry `onnxruntime-web/wasm`; the provider of the same name in the entry
# `onnxruntime-web/webgpu` has no such kernel, and the session cannot be made.
#
# Who meets it: everybody who opens a 4-bit language model in transformers.js without WebGPU. It imports `onnxruntime-web/webgpu` for
# every device, so `device: "wasm"` fails in a browser with a model that runs in Node and on `onnxruntime-web/wasm`. The operator's
# documents list it for the CPU. Written as Gather, Cast and arithmetic on nibbles the look-up opens everywhere.
#
# Output seen on 2026-11-29 (node 20.20.2; the message is cut at 90 characters):
#   wasm: 4 -8 -3 -7
#   webgpu: Can't create a session. ERROR_CODE: 9, ERROR_MESSAGE: Could not find an implementation for
# Exits 0 where it still is so, 1 where it has changed. Needs node and npm.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet onnx==1.22.0 numpy==2.4.6
npm install --ignore-scripts --no-audit --no-fund --silent --prefix "$place" onnxruntime-web@1.30.0
cd "$place"
venv/bin/python - <<'PY'
import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

rng = np.random.default_rng(0)
codes = rng.integers(0, 256, (5, 96)).astype(np.uint8)  # 5 rows of 192 codes, in 3 blocks of 64
held = {"codes": codes, "scales": np.ones((5, 3), np.float32), "zeros": np.full((5, 2), 0x88, np.uint8)}
how = {"bits": 4, "block_size": 64, "gather_axis": 0, "quantize_axis": 1}
node = helper.make_node("GatherBlockQuantized", ["codes", "ids", "scales", "zeros"], ["rows"], domain="com.microsoft", **how)
ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 1])
rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, [1, 1, 192])
graph = helper.make_graph([node], "table", [ids], [rows], [numpy_helper.from_array(a, n) for n, a in held.items()])
opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
save(helper.make_model(graph, opset_imports=opsets, ir_version=10), "table.onnx")
PY
cat > look.mjs <<'JS'
import fs from "node:fs";

const entry = process.argv[2];
const loaded = await import(`onnxruntime-web/${entry}`);
const ort = loaded.InferenceSession ? loaded : loaded.default;
ort.env.wasm.numThreads = 1;
try {
  const session = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync("table.onnx")), { executionProviders: ["wasm"] });
  const { rows } = await session.run({ ids: new ort.Tensor("int64", BigInt64Array.from([1n]), [1, 1]) });
  console.log(`${entry}: ${[...rows.data].slice(0, 4).join(" ")}`);
} catch (error) {
  console.log(`${entry}: ${error.message.slice(0, 90).trim()}`);
}
process.exit(0);
JS
wasm=$(node look.mjs wasm); webgpu=$(node look.mjs webgpu 2>/dev/null)
echo "$wasm"; echo "$webgpu"
[ "$wasm" = "wasm: 4 -8 -3 -7" ] && [[ "$webgpu" == *"Could not find an implementation"* ]]
