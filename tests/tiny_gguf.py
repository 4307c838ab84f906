"""Tiny models of many families, and GGUF files of them as llama.cpp's converter writes them: its names, its entries,
its orders of rows. Written from conversion/*.py of llama.cpp; what they make was compared with what that makes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tiny_build import CHAT, END, tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SHAPE = {
    "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 24,
    "max_position_embeddings": 128, "rms_norm_eps": 2e-5,
}  # fmt: skip
PLAIN = {k: v for k, v in SHAPE.items() if k != "head_dim"}
BARE = {k: v for k, v in PLAIN.items() if k != "rms_norm_eps"}
WIDE = {k: v for k, v in PLAIN.items() if k not in ("num_key_value_heads", "rms_norm_eps")} | {"intermediate_size": 384}
GEMMA = SHAPE | {"sliding_window": 7, "query_pre_attn_scalar": 24, "num_hidden_layers": 3}
ROPE = {"rope_type": "default", "rope_theta": 777.0}
LLAMA3 = ROPE | {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMA32 = LLAMA3 | {"rope_theta": 500000.0, "factor": 32.0, "original_max_position_embeddings": 8192}
YARN = ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = ROPE | {"rope_type": "linear", "factor": 4.0}
LONG = ROPE | {
    "rope_type": "longrope", "original_max_position_embeddings": 32, "partial_rotary_factor": 1.0,
    "short_factor": [1 + i / 10 for i in range(8)], "long_factor": [1.0 + i for i in range(8)],
}  # fmt: skip
FALCON = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6, "bias": False}
# name -> architecture in the file, transformers' type, its configuration
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "llama", SHAPE | {"rope_parameters": ROPE}),
    "llama, a head of its own": ("llama", "llama", SHAPE | {"tie_word_embeddings": False}),
    "llama, biases": ("llama", "llama", SHAPE | {"attention_bias": True}),
    "llama, feed-forward biases": ("llama", "llama", SHAPE | {"mlp_bias": True}),
    "llama, linear": ("llama", "llama", SHAPE | {"rope_parameters": LINEAR}),
    "llama, yarn": ("llama", "llama", SHAPE | {"rope_parameters": YARN}),
    "llama 3.1": ("llama", "llama", SHAPE | {"rope_parameters": LLAMA3}),
    "llama 3.2": ("llama", "llama", SHAPE | {"rope_parameters": LLAMA32, "head_dim": 64, "max_position_embeddings": 131072}),
    "qwen2": ("qwen2", "qwen2", PLAIN),
    "qwen3": ("qwen3", "qwen3", SHAPE),
    "gemma": ("gemma", "gemma", SHAPE),
    "gemma2": ("gemma2", "gemma2", GEMMA | {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 9.0}),
    "gemma3": ("gemma3", "gemma3_text", GEMMA | {"num_hidden_layers": 7, "rope_parameters": {"full_attention": LINEAR, "sliding_attention": ROPE}}),
    "phi2": ("phi2", "phi", WIDE | {"num_key_value_heads": 6, "layer_norm_eps": 3e-5}),
    "phi3": ("phi3", "phi3", PLAIN | {"original_max_position_embeddings": 128, "sliding_window": 7}),
    "phi3, half a rotation": ("phi3", "phi3", PLAIN | {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}),
    "phi3, long": ("phi3", "phi3", PLAIN | {"original_max_position_embeddings": 32, "rope_parameters": LONG}),
    "gpt2": ("gpt2", "gpt2", {"n_embd": 96, "n_layer": 2, "n_head": 6, "n_positions": 64, "layer_norm_epsilon": 3e-5}),
    "falcon 7B": ("falcon", "falcon", FALCON | {"num_kv_heads": 1, "multi_query": True, "new_decoder_architecture": False}),
    "falcon 40B": ("falcon", "falcon", FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True}),
    "stablelm": ("stablelm", "stablelm", BARE | {"use_qkv_bias": True, "rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}),
    "stablelm, parallel": ("stablelm", "stablelm", BARE | {"use_parallel_residual": True, "layer_norm_eps": 3e-5}),
    "starcoder2": ("starcoder2", "starcoder2", BARE | {"rope_parameters": ROPE, "norm_epsilon": 3e-5}),
    "bloom": ("bloom", "bloom", {"hidden_size": 96, "n_layer": 2, "n_head": 6}),
    "nemotron": ("nemotron", "nemotron", BARE | {"head_dim": 24, "norm_eps": 3e-5}),
    "granite": ("granite", "granite", PLAIN | {
        "logits_scaling": 3.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.3, "residual_multiplier": 0.7,
    }),
    "olmo2": ("olmo2", "olmo2", PLAIN),
    "smollm3": ("smollm3", "smollm3", PLAIN | {"num_hidden_layers": 5}),
    "command-r": ("command-r", "cohere", BARE | {"logit_scale": 0.3}),
}  # fmt: skip


def words(**changes: Any) -> PreTrainedTokenizerFast:
    settings = {"eos_token": END, "pad_token": "<pad>", "chat_template": CHAT} | changes
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer(), **settings)


def tiny_of(name: str) -> Any:
    """The model of a case, every weight and bias of its own."""
    _, family, settings = CASES[name]
    torch.manual_seed(0)
    ids = {"vocab_size": len(words()), "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **ids, **settings)).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            norm = p.dim() == 1 and not key.endswith("bias")
            p.copy_(1 + 0.2 * torch.randn_like(p) if norm else 0.12 * torch.randn_like(p))
    return model


def entries(arch: str, config: Any) -> dict[str, Any]:
    """What the converter writes of a configuration."""
    c = config.to_dict() | {name: getattr(config, name, None) for name in config.attribute_map}
    heads, hidden = c["num_attention_heads"], c["hidden_size"]
    ropes = c.get("rope_parameters") or {}
    rope = ropes.get("full_attention", ropes)
    size = c.get("head_dim") or hidden // heads
    said = {
        "context_length": c.get("max_position_embeddings"),
        "embedding_length": hidden,
        "block_count": c["num_hidden_layers"],
        "feed_forward_length": c.get("intermediate_size") or c.get("ffn_hidden_size") or 4 * hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": c.get("num_key_value_heads") or c.get("num_kv_heads"),
        "attention.key_length": c.get("head_dim"),
        "attention.value_length": c.get("head_dim"),
        "attention.layer_norm_rms_epsilon": c.get("rms_norm_eps") or c.get("norm_eps"),
        "attention.layer_norm_epsilon": next((c[k] for k in ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps") if k in c), None),
        "attention.sliding_window": c.get("sliding_window"),
        "attn_logit_softcapping": c.get("attn_logit_softcapping"),
        "final_logit_softcapping": c.get("final_logit_softcapping"),
        "attention.scale": c.get("attention_multiplier"),
        "embedding_scale": c.get("embedding_multiplier"),
        "residual_scale": c.get("residual_multiplier"),
        "logit_scale": c.get("logits_scaling") or c.get("logit_scale"),
        "use_parallel_residual": c.get("use_parallel_residual"),
        "rope.freq_base": rope.get("rope_theta"),
        "rope.freq_base_swa": ropes.get("sliding_attention", {}).get("rope_theta"),
        "rope.dimension_count": int(size * rope.get("partial_rotary_factor", 1)) if rope else None,
    }  # fmt: skip
    if rope.get("rope_type") in ("linear", "yarn", "longrope"):
        said |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope.get("factor")}
    if arch == "phi3" or rope.get("rope_type") == "yarn":
        said["rope.scaling.original_context_length"] = (
            rope.get("original_max_position_embeddings") or c["original_max_position_embeddings"]
        )
    if rope.get("rope_type") == "longrope":
        scale = c["max_position_embeddings"] / rope["original_max_position_embeddings"]
        said["rope.scaling.attn_factor"] = float(
            np.sqrt(1 + np.log(scale) / np.log(rope["original_max_position_embeddings"]))
        )
    if arch == "phi2":
        said.pop("attention.layer_norm_rms_epsilon")
    return {name: value for name, value in said.items() if value is not None}


def tensors(arch: str, model: Any) -> dict[str, np.ndarray]:
    """Every tensor by its name in the file."""
    kind = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    table, found = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers), {}
    for name, p in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        module, _, end = name.rpartition(".")
        place = table.get_name(module) or table.get_name(module.partition(".")[2])
        found[f"{place}.{end}"] = np.ascontiguousarray(_changed(arch, name, p.float().numpy(), model.config))
    return found | _factors(model.config)


def _changed(arch: str, name: str, a: np.ndarray, c: Any) -> np.ndarray:
    heads = {"q_proj": c.num_attention_heads, "k_proj": getattr(c, "num_key_value_heads", 0)}.get(name.split(".")[-2])
    if arch in ("llama", "granite", "smollm3") and heads:
        return a.reshape(heads, 2, -1, *a.shape[1:]).swapaxes(1, 2).reshape(a.shape)
    if (arch.startswith("gemma") or arch == "nemotron") and name.endswith("norm.weight"):
        return a + 1
    if arch == "gpt2" and a.ndim == 2 and any(part in name for part in ("c_attn", "c_proj", "c_fc")):
        return a.T
    if "query_key_value" in name:
        groups = c.num_attention_heads if arch == "bloom" else c.num_kv_heads
        size = c.hidden_size // c.num_attention_heads
        qkv = a.reshape(groups, c.num_attention_heads // groups + 2, size, *a.shape[1:])
        return np.concatenate(
            [qkv[:, :-2].reshape(-1, *a.shape[1:]), *(qkv[:, i].reshape(-1, *a.shape[1:]) for i in (-2, -1))]
        )
    return a


def _factors(c: Any) -> dict[str, np.ndarray]:
    """rope_freqs.weight by the converter's loop; longrope's two lists as they are."""
    rope = getattr(c, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return {f"rope_factors_{k}.weight": np.array(rope[f"{k}_factor"], np.float32) for k in ("short", "long")}
    if rope.get("rope_type") != "llama3":
        return {}
    low, high, old = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    found = []
    for i in range(0, c.head_dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (i / c.head_dim)
        smooth = (old / wavelength - low) / (high - low)
        inside = 1 / ((1 - smooth) / rope["factor"] + smooth)
        found.append(1 if wavelength < old / high else rope["factor"] if wavelength > old / low else inside)
    return {"rope_freqs.weight": np.array(found, np.float32)}


def write(
    path: Path,
    name: str = "llama",
    change: Callable[[dict[str, Any]], Any] = lambda said: None,
    keep: Callable[[str], bool] = lambda tensor: True,
    more: Iterable[tuple[str, np.ndarray]] = (),
    general: Callable[[gguf.GGUFWriter], Any] = lambda writer: None,
    own: PreTrainedTokenizerFast | None = None,
    pre: str | None = "gpt-2",
    **settings: Any,
) -> Any:
    """A case's file in float32.

    `change` edits the entries, `keep` says which tensors, `more` adds some. Returns the model.
    """
    arch, model = CASES[name][0], tiny_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), arch, **settings)
    said = entries(arch, model.config)
    change(said)
    for entry, value in said.items():
        kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        kinds.get(type(value), writer.add_array)(f"{arch}.{entry}", value)
    _vocabulary(writer, own or words(), pre)
    general(writer)
    for place, a in [*((t, a) for t, a in tensors(arch, model).items() if keep(t)), *more]:
        writer.add_tensor(place, np.ascontiguousarray(a))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _vocabulary(writer: gguf.GGUFWriter, own: PreTrainedTokenizerFast, pre: str | None) -> None:
    state = json.loads(own.backend_tokenizer.to_str())
    listed = [token for token, _ in sorted(own.get_vocab().items(), key=lambda item: item[1])]
    special = {t["content"] for t in state["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(listed)
    writer.add_token_types([3 if token in special else 1 for token in listed])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]])
    if own.eos_token_id is not None:
        writer.add_eos_token_id(own.eos_token_id)
    writer.add_pad_token_id(own.pad_token_id)
    writer.add_chat_template(CHAT)
