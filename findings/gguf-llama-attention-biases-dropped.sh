#!/usr/bin/env bash
# transformers 5.23.0: a GGUF file of the llama architecture that holds attention biases (attn_q.bias and so on) loads without
# them. Nothing is raised; the model computes what it would with biases of zero. The config of such a file has no
# attention_bias, so there is no place for the tensors and they are left over.
#
# The same holds for rope_freqs.weight, by which Llama 3.1 and 3.2 files carry their long-context scaling: the tensor is left
# over, and rope_type stays "default".
#
# Output seen on 2026-11-28: biases in the file 4, in the model 0; rope_type default.
# Exits 0 where it still is so, 1 where it has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0
"$place/venv/bin/pip" install --quiet transformers==5.23.0 gguf==0.19.0 numpy==2.4.6 accelerate==1.15.0
cd "$place" && "$place/venv/bin/python" - <<'PYTHON'
import sys
import gguf
import numpy as np
import transformers
from transformers import AutoModelForCausalLM

H, F, HEADS, KV, V = 64, 96, 4, 2, 40
draw = np.random.default_rng(0)
w = gguf.GGUFWriter("tiny.gguf", "llama")
w.add_context_length(64), w.add_embedding_length(H), w.add_block_count(1), w.add_feed_forward_length(F)
w.add_head_count(HEADS), w.add_head_count_kv(KV), w.add_layer_norm_rms_eps(1e-5), w.add_rope_freq_base(10000.0)
w.add_vocab_size(V), w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre("gpt-2")
w.add_token_list([chr(65 + i) for i in range(V)]), w.add_token_merges([]), w.add_eos_token_id(1)
SIZE = H // HEADS
shapes = {
    "token_embd.weight": (V, H), "output.weight": (V, H), "output_norm.weight": (H,), "rope_freqs.weight": (SIZE // 2,),
    "blk.0.attn_norm.weight": (H,), "blk.0.ffn_norm.weight": (H,), "blk.0.attn_q.weight": (H, H),
    "blk.0.attn_k.weight": (KV * SIZE, H), "blk.0.attn_v.weight": (KV * SIZE, H), "blk.0.attn_output.weight": (H, H),
    "blk.0.ffn_gate.weight": (F, H), "blk.0.ffn_up.weight": (F, H), "blk.0.ffn_down.weight": (H, F),
    "blk.0.attn_q.bias": (H,), "blk.0.attn_k.bias": (KV * SIZE,), "blk.0.attn_v.bias": (KV * SIZE,), "blk.0.attn_output.bias": (H,),
}
for name, shape in shapes.items():
    w.add_tensor(name, draw.normal(1, 0.3, shape).astype(np.float32))
w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()

model = AutoModelForCausalLM.from_pretrained(".", gguf_file="tiny.gguf", dtype="float32")
biases = [name for name, _ in model.named_parameters() if name.endswith(".bias")]
kind = (model.config.rope_parameters or {}).get("rope_type")
print("transformers", transformers.__version__)
print(f"biases in the file 4, in the model {len(biases)}; rope_type {kind}")
sys.exit(0 if not biases and kind == "default" else 1)
PYTHON
