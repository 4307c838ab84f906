#!/usr/bin/env bash
# compressed-tensors 0.20.0, format "pack-quantized": in one layer the codes are packed along the inputs (eight inputs of an
# output in an int32) and the zero points along the OUTPUTS (eight outputs of a group in an int32). Both tensors are int32
# with nothing in the file that says so; where outputs / 8 equals the number of groups the wrong reading even has the right shape.
#
# Who meets it: anybody who reads such checkpoints without the library. Zero points read like the codes are plausible and wrong.
#
# Output seen on 2026-11-28, 16 inputs and outputs in groups of 8: codes [16, 16] -> [16, 2], zero points [16, 2] -> [2, 2].
# Exits 0 where it still is so, 1 where it has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0
"$place/venv/bin/pip" install --quiet transformers==5.23.0 compressed-tensors==0.20.0 numpy==2.4.6
"$place/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

args = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=8)
scheme = QuantizationScheme(targets=["Linear"], weights=args)
outputs, inputs = 16, 16
zero = torch.randint(-8, 8, (outputs, inputs // 8), generator=torch.Generator().manual_seed(0)).to(torch.int8)
state = {"weight": torch.randn(outputs, inputs), "weight_scale": torch.ones(outputs, inputs // 8), "weight_zero_point": zero}
packed = PackedQuantizationCompressor.compress(state, scheme)
print("compressed-tensors", version("compressed-tensors"))
for name, tensor in packed.items():
    print(name, tuple(tensor.shape), tensor.dtype)
words = packed["weight_zero_point"].to(torch.int64) & 0xFFFFFFFF
along_outputs = torch.stack([(words >> (4 * j)) & 15 for j in range(8)], 1).reshape(outputs, -1)
same = torch.equal(along_outputs - 8, zero.to(torch.int64))
print("zero points lie along outputs:", same)
sys.exit(0 if same and packed["weight_packed"].shape == (outputs, inputs // 8) and tuple(words.shape) == (2, 2) else 1)
PYTHON
