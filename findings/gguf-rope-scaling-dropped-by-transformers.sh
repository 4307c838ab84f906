#!/usr/bin/env bash
# transformers 5.23.0 with gguf 0.19.0: the rope scaling that a GGUF file states is dropped in silence. A file with
# `llama.rope.scaling.type` = linear or yarn, `.factor` = 4 and `.original_context_length` = 2048 becomes a configuration with the long
# context (max_position_embeddings 8192) and rope of type "default": the model is loaded with rotations that it was not trained with.
#
# Who meets it: anybody who loads a context-extended model (the usual "-32k" and "-128k" files) from GGUF; it answers well in short
# prompts, where linear scaling by 4 shows least, and worse the longer they are. Nothing is logged.
#
# Output seen on 2026-11-28:
#   llama linear: context 8192, rope {'rope_theta': 10000.0, 'rope_type': 'default'}, told nothing
#   llama yarn: context 8192, rope {'rope_theta': 10000.0, 'rope_type': 'default'}, told nothing
#   qwen2 linear: context 8192, rope {'rope_theta': 10000.0, 'rope_type': 'default'}, told nothing
#   qwen2 yarn: context 8192, rope {'rope_theta': 10000.0, 'rope_type': 'default'}, told nothing
# Exits 0 where it still is so, 1 where it has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 gguf==0.19.0 numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - <<'PY'
import contextlib
import io
import logging
import sys
import warnings

import gguf
import numpy as np
from transformers import AutoConfig


def write(arch, kind):
    w = gguf.GGUFWriter("model.gguf", arch)
    w.add_context_length(8192)
    w.add_embedding_length(32)
    w.add_block_count(1)
    w.add_feed_forward_length(48)
    w.add_head_count(4)
    w.add_head_count_kv(2)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(64)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(8)
    w.add_rope_scaling_type(gguf.RopeScalingType(kind))
    w.add_rope_scaling_factor(4.0)
    w.add_rope_scaling_orig_ctx_len(2048)
    w.add_tensor("token_embd.weight", np.zeros((64, 32), np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


same = True
for arch in ("llama", "qwen2"):
    for kind in ("linear", "yarn"):
        write(arch, kind)
        said = io.StringIO()
        logging.getLogger("transformers").addHandler(logging.StreamHandler(said))
        with contextlib.redirect_stderr(said), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            config = AutoConfig.from_pretrained(".", gguf_file="model.gguf")
        words = said.getvalue() + " ".join(str(w.message) for w in caught)
        told = "told of it" if "scaling" in words else "told nothing"
        print(f"{arch} {kind}: context {config.max_position_embeddings}, rope {config.rope_parameters}, {told}")
        same &= config.rope_parameters["rope_type"] == "default" and told == "told nothing"
sys.exit(not same)
PY
