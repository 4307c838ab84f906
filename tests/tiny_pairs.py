"""Tiny random encoder-decoders, for training. Unequal dimensions everywhere: heads times their size is not the width,
and the two stacks differ in depth.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from qia3.base.quantise import Grid, quantise_model
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import Scaled, attach

T5 = {
    "vocab_size": 101, "d_model": 96, "d_kv": 24, "d_ff": 160, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 6,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "dropout_rate": 0.1,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": 101, "d_model": 96, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 6,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 160, "decoder_ffn_dim": 224, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 1, "decoder_start_token_id": 1, "forced_bos_token_id": 3,
}  # fmt: skip
PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", T5 | {"feed_forward_proj": "relu"}),
    "t5-gated": ("t5", T5 | {"feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False}),
    "mt5": ("mt5", T5 | {"feed_forward_proj": "gated-gelu"}),
    "umt5": ("umt5", T5 | {"feed_forward_proj": "gated-gelu"}),
    "bart": ("bart", BART),
    "marian": ("marian", BART | {"decoder_start_token_id": 0, "forced_bos_token_id": None}),
}
RELATIVE = ["t5", "t5-gated", "mt5", "umt5"]
ABSOLUTE = ["bart", "marian"]
START = (0,)


def tiny_pair(name: str, seed: int = 0, **changed: Any) -> PreTrainedModel:
    """A float model whose weights, norms and biases are random and large enough to matter."""
    kind, settings = PAIRS[name]
    torch.manual_seed(seed)
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **(settings | changed))).eval()
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif "relative_attention_bias" in part:
                parameter.copy_(torch.randn_like(parameter) * 0.7)
            elif "shared" in part or "embed" in part:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.08)
    return model


def adapted_pair(name: str) -> tuple[PreTrainedModel, dict[str, Scaled]]:
    """On a 4-bit grid, with vectors of ones."""
    model = tiny_pair(name)
    quantise_model(model, Grid(32, False))
    return model, attach(model, find_roles(model).sites)
