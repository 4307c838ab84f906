#!/usr/bin/env bash
# onnxruntime 1.32.0 on 64-bit ARM with dot products (emulated: cortex-a76): MatMulNBits at accuracy_level 4 computes with other scales
# than the model holds where it has no zero points. KleidiAI's kernel for symmetric weights drops the low 16 bits of each scale, so
# answers shrink by some 0.3 % for scales that bfloat16 does not hold; with explicit zero points of 8, which mean the same weights,
# another kernel runs that keeps float32 scales. x64 gives the same answer for both.
#
# Who meets it: whoever ships a symmetric 4-bit model (GPTQ's default, GGUF's Q4_0) to phones and boards, tests it on x64, and changes
# scales afterwards (an adapter folded into them, a norm): scaling all scales by 0.9 does not scale the answers by 0.9.
#
# Output seen on 2026-11-29: how far scales times 0.9 are from answers times 0.9 (RMS, divided by the answer's):
#   x64, no zero points: 3e-07
#   x64, zero points of 8: 3e-07
#   cortex-a76, no zero points: 2e-03
#   cortex-a76, zero points of 8: 8e-08
# Exits 0 where it still is so, 1 where it has changed. Debian on x64; QEMU comes from Debian 13 (350 MB in a temporary folder).
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
bash "$(dirname "$(realpath "$0")")/../tests/arm/setup.sh" "$place/arm" onnxruntime==1.32.0 numpy==2.4.6 2> /dev/null
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet onnx==1.22.0 numpy==2.4.6 onnxruntime==1.32.0
cd "$place"
venv/bin/python - <<'PY'
import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

K, N, BLOCK = 576, 256, 64
rng = np.random.default_rng(0)
codes = rng.integers(0, 256, (N, K // BLOCK, BLOCK // 2)).astype(np.uint8)
scales = rng.uniform(0.01, 0.05, (N, K // BLOCK)).astype(np.float32)
np.save("x.npy", rng.standard_normal((4, K)).astype(np.float32))
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, size]) for name, size in (("x", K), ("y", N))]
opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
for zeros in (False, True):
    for factor in (1.0, 0.9):
        held = {"codes": codes, "scales": scales * np.float32(factor)}
        held |= {"zeros": np.full((N, 5), 0x88, np.uint8)} if zeros else {}
        how = {"K": K, "N": N, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
        node = helper.make_node("MatMulNBits", ["x", *held], ["y"], domain="com.microsoft", **how)
        graph = helper.make_graph([node], "product", ends[:1], ends[1:], [numpy_helper.from_array(a, n) for n, a in held.items()])
        save(helper.make_model(graph, opset_imports=opsets, ir_version=10), f"{int(zeros)}-{factor}.onnx")
PY
cat > look.py <<'PY'
import sys

import numpy as np
import onnxruntime as ort

ort.set_default_logger_severity(3)
x, off = np.load("x.npy"), {}
for zeros in (0, 1):
    plain, scaled = (ort.InferenceSession(f"{zeros}-{factor}.onnx").run(None, {"x": x})[0] for factor in (1.0, 0.9))
    off[zeros] = float(np.sqrt(np.square(scaled - 0.9 * plain).mean() / np.square(plain).mean()))
    print(f"{sys.argv[1]}, {'zero points of 8' if zeros else 'no zero points'}: {off[zeros]:.0e}")
truncated = off[0] > 1e-3
sys.exit(off[1] > 1e-5 or truncated == (sys.argv[1] == "x64"))
PY
venv/bin/python look.py x64
arm/arm cortex-a76 look.py cortex-a76
