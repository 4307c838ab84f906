"""Tiny random encoder-decoders of the real families. Unequal dimensions everywhere: heads times their size is not the
width, the stacks have different depths, and source and target have different lengths.

    base = load_base(Asked(str(write_seq2seq(folder, "t5 v1.1")), block_size=32))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import ALL
from tiny_bundle import END, tokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerFast

IDS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
T5 = {"d_model": 96, "d_kv": 16, "d_ff": 224, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 5,
      "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, **IDS}  # fmt: skip
BART = {"d_model": 96, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 6, "decoder_attention_heads": 6,
        "encoder_ffn_dim": 160, "decoder_ffn_dim": 224, "max_position_embeddings": 64, **IDS}  # fmt: skip
STACK = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
         "head_dim": 16, "max_position_embeddings": 64, "query_pre_attn_scalar": 16, "sliding_window": 7,
         "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}  # fmt: skip
GATED = {"feed_forward_proj": "gated-gelu"}

# transformers' name of the family, its configuration, and whether its head is a table of its own
SEQ2SEQ: dict[str, tuple[str, dict[str, Any], bool]] = {
    "t5": ("t5", T5, False),
    "t5 v1.1": ("t5", T5 | GATED | {"tie_word_embeddings": False}, True),
    "mt5": ("mt5", T5 | GATED, True),
    "umt5": ("umt5", T5 | GATED, True),
    "bart": ("bart", BART | {"scale_embedding": True}, False),
    "marian": ("marian", BART | {"scale_embedding": True}, False),
    "t5gemma": ("t5gemma", {"encoder": STACK, "decoder": STACK | {"intermediate_size": 224, "num_hidden_layers": 3}}, False),
}  # fmt: skip
T5S = ["t5", "t5 v1.1", "mt5", "umt5"]
EXPORTED = [*SEQ2SEQ] if ALL else ["t5 v1.1", "t5gemma"]  # whose graphs `make test` makes; it builds a T5 v1.1, too


def tiny_seq2seq(name: str, vocabulary: int = 101, seed: int = 0, **changed: Any) -> PreTrainedModel:
    """A float model with random weights that are large enough to matter; `changed` are settings of its configuration."""
    family, settings, own_head = SEQ2SEQ[name]
    if family == "t5gemma":
        settings = {part: {"vocab_size": vocabulary} | settings[part] for part in ("encoder", "decoder")}
    config = AutoConfig.for_model(family, **{"vocab_size": vocabulary, **settings, **changed})
    torch.manual_seed(seed)
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").eval()
    if own_head:
        model.lm_head.weight = nn.Parameter(torch.empty(model.shared.weight.shape))
    with torch.no_grad():
        for path, p in model.named_parameters():
            if p.dim() == 1:  # norms and biases of exactly one and zero hide mistakes
                p.add_(torch.randn_like(p) * 0.2)
            elif "relative_attention_bias" in path:
                p.copy_(torch.randn_like(p))
            elif "embed_positions" not in path or family != "marian":  # whose positions are computed
                p.copy_(torch.randn_like(p) * 0.1)
        for path, buffer in model.named_buffers():
            if path == "final_logits_bias":
                buffer.copy_(torch.randn_like(buffer))
    return model


def write_seq2seq(folder: Path, name: str = "t5", dtype: torch.dtype = torch.float32, **changed: Any) -> Path:
    """A model folder as people have them: config, safetensors, tokenizer, whose end is </s>'s counterpart here."""
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer(), eos_token=END, pad_token="<pad>")
    tiny_seq2seq(name, len(words), **changed).to(dtype).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def pair(
    rows: int = 2, source: int = 9, target: int = 5, seed: int = 1, vocabulary: int = 101
) -> dict[str, torch.Tensor]:
    """What a model is called with; the second row's source is padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    given = torch.randint(3, vocabulary, (rows, source), generator=generator)
    mask = torch.ones_like(given)
    if rows > 1:
        given[1, -3:], mask[1, -3:] = 0, 0
    answer = torch.randint(3, vocabulary, (rows, target), generator=generator)
    answer[:, 0] = 0
    return {"input_ids": given, "attention_mask": mask, "decoder_input_ids": answer}
