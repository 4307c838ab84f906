"""Tiny random models of the real families. Unequal dimensions everywhere, so that a transposed axis cannot pass."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

ALL = (
    os.environ.get("QIA3_ALL_FAMILIES") == "1"
)  # `make families`: those, too, that have nothing of their own beside another
SHAPE = {
    "vocab_size": 101, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {
    "vocab_size": 101,
    "n_embd": 96,
    "n_layer": 2,
    "n_head": 6,
    "n_positions": 64,
    "n_inner": 160,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE = {k: v for k, v in SHAPE.items() if k not in ("num_key_value_heads", "head_dim")}
T5 = {
    "vocab_size": 101,
    "d_model": 96,
    "d_kv": 16,
    "d_ff": 160,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 6,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "mistral": SHAPE | {"sliding_window": 7},
    "qwen2": SHAPE,
    "qwen3": SHAPE,
    "olmo2": SHAPE,
    "gemma2": SHAPE | {"sliding_window": 7, "query_pre_attn_scalar": 16},
    "gemma3_text": SHAPE | {"sliding_window": 7, "query_pre_attn_scalar": 16},
    "phi3": SHAPE,
    "phi": SHAPE,
    "granite": SHAPE | {"logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "smollm3": SHAPE,
    "gpt2": GPT2,
    "gpt_neox": WIDE,
    "opt": {"vocab_size": 101, "hidden_size": 96, "ffn_dim": 160, "num_hidden_layers": 2, "num_attention_heads": 6, "max_position_embeddings": 64,
            "word_embed_proj_dim": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "t5": T5 | {"feed_forward_proj": "gated-gelu"},
    "mt5": T5 | {"feed_forward_proj": "gated-gelu"},
}  # fmt: skip
GATED = ["llama", "qwen2", "qwen3", "phi3"]
DECODERS = [f for f in FAMILIES if f not in ("t5", "mt5")]


def tiny(family: str, seed: int = 0) -> PreTrainedModel:
    """A float model with random weights that are large enough to matter."""
    config = AutoConfig.for_model(family, **FAMILIES[family])
    torch.manual_seed(seed)
    model = (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_config(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:  # norms and biases of exactly one and zero hide mistakes
                p.add_(torch.randn_like(p) * 0.2)
            elif "norm" not in name:
                p.copy_(torch.randn_like(p) * 0.08)
    return model


def ids(rows: int = 2, length: int = 9, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 101, (rows, length), generator=torch.Generator().manual_seed(seed))


def random_vectors(scaled: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Vectors around one, with a negative and a zero entry, ones where a site does not train."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, layer in scaled.items():
        vector = torch.ones(layer.site.size)
        rows = torch.arange(layer.site.size) if layer.site.rows is None else torch.tensor(layer.site.rows)
        vector[rows] = 1 + 0.5 * torch.randn(len(rows), generator=generator)
        vector[rows[0]], vector[rows[1]] = 0.0, -1.5
        found[name] = vector.numpy()
    return found
