#!/usr/bin/env bash
# mlx 0.32.4 (CPU wheels on Linux): mx.quantize at 4 bits writes w = scale * q + bias with scales that are NEGATIVE for about
# half of all groups of ordinary weights, and a bias that is a whole multiple of its scale only up to the rounding of their type.
#
# Who meets it: anybody who converts an MLX checkpoint to a grid with a positive scale and a zero point of 4 bits. Taking
# round(-bias / scale) gives whole zero points of 0 to 15 for such weights, with the scale's sign kept; taking abs(scale), or
# the bias as the smallest weight, is wrong. In bfloat16 -bias / scale lies up to some hundredths away from a whole number.
# Groups whose weights all have one sign are another case: their zero points lie far outside 0 to 15.
#
# Output seen on 2026-11-28:
#   float32: negative scales 49%, zero points 8 to 11, largest distance from a whole number 0.0000
#   bfloat16: negative scales 49%, zero points 7 to 11, largest distance from a whole number 0.0327
#   weights of one sign: zero points beyond 15 in 100 % of groups
# Exits 0 where it still is so, 1 where it has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy==2.4.6
"$place/venv/bin/pip" install --quiet --no-deps mlx==0.32.4 mlx-cpu==0.32.4
"$place/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version
import mlx.core as mx
import numpy as np

mx.set_default_device(mx.cpu)
weights = np.random.default_rng(0).normal(0, 0.05, (256, 1024)).astype(np.float32)


def look(w, dtype):
    _, scales, biases = mx.quantize(mx.array(w).astype(dtype), group_size=64, bits=4)
    s, b = (np.array(a.astype(mx.float32), np.float64) for a in (scales, biases))
    zero = -b / s
    return float((s < 0).mean()), zero, float(np.abs(zero - np.round(zero)).max())


print("mlx", version("mlx"))
found = {}
for name, dtype in (("float32", mx.float32), ("bfloat16", mx.bfloat16)):
    negative, zero, apart = found[name] = look(weights, dtype)
    print(f"{name}: negative scales {negative:.0%}, zero points {np.round(zero).min():.0f} to {np.round(zero).max():.0f}, "
          f"largest distance from a whole number {apart:.4f}")
_, far, _ = look(np.abs(weights) + 1, mx.float32)
beyond = float((np.abs(far) > 15).mean())
print(f"weights of one sign: zero points beyond 15 in {beyond:.0%} of groups")
same = all(0.3 < found[n][0] < 0.7 for n in found) and found["float32"][2] < 1e-3 < found["bfloat16"][2] < 0.1 and beyond > 0.9
sys.exit(0 if same else 1)
PYTHON
