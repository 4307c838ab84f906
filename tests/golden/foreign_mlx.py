"""Writes tests/golden/mlx.safetensors: layers quantised and dequantised by MLX, and tests/golden/mlx/: a tiny llama as
mlx-lm saves it, with what transformers makes of MLX's own dequantised weights.

    (beside torch 2.13.0 and transformers 5.23.0)
    pip install --no-deps mlx==0.32.4 mlx-cpu==0.32.4
    PYTHONPATH=. python tests/golden/foreign_mlx.py

Names: KIND.{weight,scales,biases,dense}; `dense` float32 is mx.dequantize of scales and biases in float32. In bfloat16
and float16 MLX rounds the product and the sum once more each, which is not part of the format.
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).parent
TYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
TINY = {
    "vocab_size": 101, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 24,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True, "eos_token_id": 2,
}  # fmt: skip


def torched(array):
    """An mx.array as a tensor, bit for bit."""
    if array.dtype == mx.bfloat16:
        return torch.from_numpy(np.array(array.view(mx.uint16)).view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def quantised(weight, dtype="float32", group=32, bits=4):
    """weight, scales and biases by MLX, and `dense`."""
    words, scales, biases = mx.quantize(mx.array(weight).astype(TYPES[dtype]), group_size=group, bits=bits)
    dense = mx.dequantize(words, scales.astype(mx.float32), biases.astype(mx.float32), group_size=group, bits=bits)
    found = {"weight": words, "scales": scales, "biases": biases, "dense": dense}
    return {name: torched(array) for name, array in found.items()}


def layers():
    rng = np.random.default_rng(0)
    weight = (0.05 * rng.standard_normal((6, 128))).astype(np.float32)
    kinds = {f"{dtype}.{group}": (dtype, group, 4) for dtype in TYPES for group in (32, 64)}
    kinds |= {f"{bits}bits": ("bfloat16", 64, bits) for bits in (2, 3, 5, 6, 8)}
    found = {kind: quantised(weight, *how) for kind, how in kinds.items()}
    found["one-sign"] = quantised(1 + np.abs(weight))  # every zero point far beyond 15
    found["zeros"] = quantised(0 * weight)
    return {f"{kind}.{name}": tensor for kind, parts in found.items() for name, tensor in parts.items()}


def checkpoint(folder):
    """mlx-lm's nn.quantize takes linear layers and the embedding; the head is tied.

    One layer at 8 bits, one in float.
    """
    torch.manual_seed(0)
    model = (
        AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TINY), attn_implementation="eager")
        .float()
        .eval()
    )
    eight, plain = "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.v_proj"
    tensors = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding) and name not in ("lm_head", plain):
                module.weight.normal_(0, 0.12)
                parts = quantised(module.weight.numpy(), "bfloat16", 32, 8 if name == eight else 4)
                module.weight.copy_(parts.pop("dense"))
                tensors |= {f"{name}.{kind}": tensor for kind, tensor in parts.items()}
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or name == f"{plain}.weight":
                parameter.copy_((parameter + 0.2 * torch.randn_like(parameter)).bfloat16())
                tensors[name] = parameter.detach().bfloat16()
        logits = model(torch.arange(3, 24)[None]).logits
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "mlx"})
    save_file({"logits": logits.contiguous()}, folder / "logits.safetensors")
    widths = {"group_size": 32, "bits": 4, eight: {"group_size": 32, "bits": 8}}
    config = json.loads(model.config.to_json_string(use_diff=False)) | {"architectures": ["LlamaForCausalLM"]}
    keep = ("architectures", "model_type", "hidden_act", "rms_norm_eps", "rope_parameters", *TINY)
    config = {key: config[key] for key in keep} | {"quantization": widths, "quantization_config": widths}
    (folder / "config.json").write_text(json.dumps(config, indent=4, sort_keys=True) + "\n")


if __name__ == "__main__":
    save_file(layers(), HERE / "mlx.safetensors")
    checkpoint(HERE / "mlx")
