"""Writes tests/golden/foreign.safetensors: one layer packed by each of the libraries whose files we read, and what they
make of it again.

    (beside torch 2.13.0 and transformers 5.23.0)
    BUILD_CUDA_EXT=0 pip install --no-deps --no-build-isolation auto-gptq==0.7.1 autoawq==0.2.9 gptqmodel==7.7.0
    pip install --no-deps pypcre logbar device-smi tokenicer defuser threadpoolctl dill torchao && pip install pillow datasets
    python tests/golden/foreign.py

The libraries' packages do more at import than their packing needs (kernels, patches of transformers), so single source
files of theirs are run. 32 outputs, 96 inputs, groups of 32. Names: FORMAT.{qweight,qzeros,scales,dense}; `dense` [96,
32] is the library's own dequantised weight.
"""

import importlib.util
import re
import sys
import types
from pathlib import Path

import torch
import transformers  # auto-gptq's file names it in full
from safetensors.torch import save_file

OUTPUTS, INPUTS, GROUP = 32, 96, 32


def source(package, file):
    root = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    return (root / file).read_text()


def run(text, name, **given):
    """The definitions of a source file; `given` stands in for what it imports from its own package."""
    module = types.ModuleType(name)
    module.__dict__.update(transformers=transformers, torch=torch, **given)
    exec(compile(text, name, "exec"), module.__dict__)
    return module


def grid(low):
    """A layer on the grid: its zero points from `low` up, float16 scales, and a linear layer that holds just these
    values.
    """
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (OUTPUTS, INPUTS), generator=generator)
    zeros = torch.randint(low, 16, (OUTPUTS, INPUTS // GROUP), generator=generator).float()
    scales = (torch.rand(OUTPUTS, INPUTS // GROUP, generator=generator) * 0.1 + 0.01).half().float()
    linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    linear.weight.data = (codes - zeros.repeat_interleave(GROUP, 1)) * scales.repeat_interleave(GROUP, 1)
    return linear, scales, zeros


def auto_gptq():
    """The v1 convention. Zero points from 1: packing a zero point of 0 spoils its neighbours there."""
    text = source("auto_gptq", "nn_modules/qlinear/qlinear_cuda_old.py")
    layer = run(text, "qlinear_cuda_old").QuantLinear(4, GROUP, INPUTS, OUTPUTS, False, use_cuda_fp16=False)
    linear, scales, zeros = grid(1)
    layer.pack(linear, scales, zeros.clone(), None)
    return layer, layer(torch.eye(INPUTS))


def gptqmodel():
    """The v2 convention, by the function that packs and the one that dequantises."""
    import gptqmodel.nn_modules.qlinear.torch as found

    layer = found.TorchLinear(4, GROUP, False, False, INPUTS, OUTPUTS, bias=False, register_buffers=True)
    linear, scales, zeros = grid(0)
    layer.pack_original(linear, scales, zeros, g_idx=torch.arange(INPUTS, dtype=torch.int32) // GROUP)
    return layer, layer.dequantize_weight()


def autoawq():
    packing = run(source("awq", "utils/packing_utils.py"), "packing_utils")
    text = re.sub(r"from awq\.\S+ import .*", "pass", source("awq", "modules/linear/gemm.py"))
    module = run(text, "gemm", try_import=lambda name: (None, name), get_best_device=lambda: "cpu")
    linear, scales, zeros = grid(0)
    layer = module.WQLinear_GEMM.from_linear(linear, 4, GROUP, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
    return layer, packing.dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, GROUP)


if __name__ == "__main__":
    found = {}
    for name, make in {"gptq": auto_gptq, "gptq_v2": gptqmodel, "awq": autoawq}.items():
        layer, dense = make()
        for kind in ("qweight", "qzeros", "scales"):
            found[f"{name}.{kind}"] = getattr(layer, kind).contiguous()
        found[f"{name}.dense"] = dense.detach().float().contiguous()
        print(name, {k: tuple(v.shape) for k, v in found.items() if k.startswith(f"{name}.")}, file=sys.stderr)
    save_file(found, Path(__file__).with_name("foreign.safetensors"))
