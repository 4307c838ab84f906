"""Writes tests/golden/compressed.safetensors: layers packed and decompressed by compressed-tensors, and
tests/golden/compressed/: a tiny llama that the library compressed and saved, with what transformers makes of it once
the library has decompressed it.

    (beside torch 2.13.0 and transformers 5.23.0)
    pip install --no-deps compressed-tensors==0.20.0 loguru
    PYTHONPATH=. python tests/golden/foreign_compressed.py

Names: KIND.TYPE.{weight_packed,weight_scale,weight_zero_point,weight_shape} as in a checkpoint, `codes` and
`zero_points` as the library counts them (from -8), `dense` its decompressed weight in TYPE, the scale's.
"""

import json
import shutil
from pathlib import Path

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).parent
ARGS = {
    "symmetric": QuantizationArgs(num_bits=4, symmetric=True, strategy="group", group_size=32),
    "asymmetric": QuantizationArgs(num_bits=4, symmetric=False, strategy="group", group_size=32),
    "channel": QuantizationArgs(num_bits=4, symmetric=False, strategy="channel"),
}
TINY = {
    "vocab_size": 101, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 24,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False, "eos_token_id": 2,
}  # fmt: skip


def parameters(weight, args):
    """Scale and zero point by the library's own rule, zero points in int8."""
    groups = weight.float().reshape(len(weight), -1, args.group_size or weight.shape[1])
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    return scale.to(weight.dtype), zero.round().to(torch.int8)


def layer(weight, args):
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    scale, zero = parameters(weight, args)
    codes = quantize(x=weight, scale=scale, zero_point=zero, args=args, dtype=torch.int8)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    packed = PackedQuantizationCompressor.compress(state, scheme)
    dense = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
    return packed | {"dense": dense, "codes": codes} | ({} if args.symmetric else {"zero_points": zero})


def layers():
    """13 outputs do not fill words of zero points; a row of 80 inputs is no whole number of groups of 32, but one."""
    generator, found = torch.Generator().manual_seed(0), {}
    for kind, args in ARGS.items():
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            weight = (torch.randn(13, 80 if kind == "channel" else 96, generator=generator) * 0.05).to(dtype)
            name = f"{kind}.{str(dtype).removeprefix('torch.')}"
            found |= {f"{name}.{part}": tensor.contiguous() for part, tensor in layer(weight, args).items()}
    return found


def checkpoint(folder):
    """Attention asymmetric in groups of 32, one projection ignored; the rest symmetric, a group a row. Scales are
    float32, so that the library's decompressed weights are not rounded to a shorter type.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TINY)).float().eval()
    groups = {
        "group_0": QuantizationScheme(targets=[r"re:.*self_attn\.[qkvo]_proj$"], weights=ARGS["asymmetric"]),
        "group_1": QuantizationScheme(
            targets=["Linear"], weights=QuantizationArgs(num_bits=4, symmetric=True, strategy="channel")
        ),
    }
    ignore = ["lm_head", "re:.*layers.1.self_attn.v_proj"]
    apply_quantization_config(model, QuantizationConfig(config_groups=groups, ignore=ignore))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".weight") and parameter.dim() == 2:
                parameter.normal_(0, 0.12)
        for module in model.modules():
            if (scheme := getattr(module, "quantization_scheme", None)) is not None:
                scale, zero = parameters(module.weight, scheme.weights)
                module.weight_scale.copy_(scale)
                module.weight_zero_point.copy_(zero)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    compressor.decompress_model(model)
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TINY), attn_implementation="eager")
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    with torch.no_grad():
        logits = plain.float().eval()(torch.arange(3, 24)[None]).logits
    save_file({"logits": logits.contiguous()}, folder / "logits.safetensors")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    save_file(layers(), HERE / "compressed.safetensors")
    checkpoint(HERE / "compressed")
