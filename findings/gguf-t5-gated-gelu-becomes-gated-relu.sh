#!/usr/bin/env bash
# transformers 5.23.0 with gguf 0.19.0: a T5 v1.1 (flan-t5, mT5: gated GELU) out of a GGUF file has every tensor bit for bit and
# computes something else. GGUF's keys for `t5` have no name for the activation, llama.cpp's own graph takes GELU wherever a gate is
# there, and transformers falls back on its default, "relu", which the tensors then make a gated ReLU. No warning.
#
# Who meets it: anybody who loads a quantised flan-t5 with AutoModelForSeq2SeqLM.from_pretrained(..., gguf_file=...), to run it, to
# fine-tune it or to export it: the answers are plausible and wrong. Setting the activation on the modules mends it.
#
# Output seen on 2026-11-28:
#   loaded: feed_forward_proj relu, gated True; tensors that differ: 0
#   logits up to 16.2 differ by 1.8; with GELU put back by 4e-06
# Exits 0 where it still is so, 1 where it has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0 numpy==2.4.6
cd "$place"
HF_HUB_OFFLINE=1 "$place/venv/bin/python" - 2> "$place/err" <<'PY' || { tail -3 "$place/err"; exit 1; }
import sys

import torch
from gguf import GGUFWriter
from transformers import AutoModelForSeq2SeqLM, T5Config

config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_decoder_layers=1, num_heads=4,
                  feed_forward_proj="gated-gelu", tie_word_embeddings=False)
torch.manual_seed(0)
made = AutoModelForSeq2SeqLM.from_config(config).eval()
made.lm_head.weight = torch.nn.Parameter(torch.randn(64, 32))

file = GGUFWriter("t5.gguf", "t5")
file.add_vocab_size(64)
file.add_context_length(512)
file.add_embedding_length(32)
file.add_feed_forward_length(48)
file.add_block_count(1)
file.add_decoder_block_count(1)
file.add_head_count(4)
file.add_key_length(8)
file.add_value_length(8)
file.add_layer_norm_eps(1e-6)
file.add_layer_norm_rms_eps(1e-6)
file.add_relative_attn_buckets_count(32)
file.add_decoder_start_token_id(0)
places = {"shared": "token_embd", "lm_head": "output"}
for stack, short in (("encoder", "enc"), ("decoder", "dec")):
    inside, block = f"{stack}.block.0.layer", f"{short}.blk.0"
    places[f"{stack}.final_layer_norm"] = f"{short}.output_norm"
    places |= {f"{inside}.0.SelfAttention.{x}": f"{block}.attn_{x}" for x in "qkvo"}
    places[f"{inside}.0.SelfAttention.relative_attention_bias"] = f"{block}.attn_rel_b"
    places[f"{inside}.0.layer_norm"] = f"{block}.attn_norm"
    last = 1
    if stack == "decoder":
        places |= {f"{inside}.1.EncDecAttention.{x}": f"{block}.cross_attn_{x}" for x in "qkvo"}
        places[f"{inside}.1.layer_norm"] = f"{block}.cross_attn_norm"
        last = 2
    for name, there in (("wi_0", "ffn_gate"), ("wi_1", "ffn_up"), ("wo", "ffn_down")):
        places[f"{inside}.{last}.DenseReluDense.{name}"] = f"{block}.{there}"
    places[f"{inside}.{last}.layer_norm"] = f"{block}.ffn_norm"
for name, there in places.items():
    file.add_tensor(f"{there}.weight", made.state_dict()[f"{name}.weight"].float().numpy())
file.write_header_to_file()
file.write_kv_data_to_file()
file.write_tensors_to_file()
file.close()

read = AutoModelForSeq2SeqLM.from_pretrained(".", gguf_file="t5.gguf").eval()
mine, theirs = made.state_dict(), read.state_dict()
differ = sum(not torch.equal(mine[name], theirs[name]) for name in mine)
told = read.config.feed_forward_proj
print(f"loaded: feed_forward_proj {told}, gated {read.config.is_gated_act}; tensors that differ: {differ}")
ids = torch.arange(2, 10)[None]


def logits(model):
    with torch.no_grad():
        return model(input_ids=ids, decoder_input_ids=ids).logits


wrong = (logits(made) - logits(read)).abs().max()
for module in read.modules():
    if hasattr(module, "act"):
        module.act = torch.nn.GELU(approximate="tanh")
right = (logits(made) - logits(read)).abs().max()
print(f"logits up to {logits(made).abs().max():.3g} differ by {wrong:.2g}; with GELU put back by {right:.0e}")
sys.exit(not (told == "relu" and differ == 0 and wrong > 0.1 and right < 1e-4))
PY
