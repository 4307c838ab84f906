#!/usr/bin/env bash
# optimum-onnx 0.1.0 (transformers 4.57.6, onnxruntime 1.32.0) cannot run some of what it exported, because it guesses the size of the empty
# cache that it begins with from the configuration, and not from the graph. Decoders: as many heads as there are queries, unless the model's
# type is in a list (Llama's is), so Phi-3, Gemma 2 and OLMo 2 with fewer key heads fail. T5, its decoder merged: d_model / num_heads numbers
# per head, where the model has d_kv: flan-t5-small (512 / 6 = 85, d_kv 64) is such a shape.
#
# Who meets it: anyone who serves one of these by optimum with a cache (the default). A graph whose empty past may be of any size runs.
#
# Output seen on 2026-11-29 (tiny random models, four heads of queries, two of keys; T5 of width 64 with d_kv = 8):
#   llama: same tokens as torch
#   phi3: past_key_values.1.key, Got: 4 Expected: 2
#   gemma2: past_key_values.1.key, Got: 4 Expected: 2
#   olmo2: past_key_values.1.key, Got: 4 Expected: 2
#   t5, 8 heads: same tokens as torch
#   t5, 6 heads: past_key_values.0.encoder.key, Got: 10 Expected: 8
# Exits 0 where it still is so, 1 where it has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet optimum==2.1.0 optimum-onnx==0.1.0 transformers==4.57.6 onnxruntime==1.32.0 onnx==1.22.0 torch==2.13.0 numpy==2.4.6
cd "$place"
venv/bin/python 2> "$place/errors" - <<'PY'
import re
import sys

import torch
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM
from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

shape = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
shape |= {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ids, told, same = torch.tensor([[5, 6, 7, 8]]), {}, "same tokens as torch"


def ask(name, model, loaded):
    expected = model.generate(ids, max_new_tokens=4, do_sample=False)
    try:
        found = loaded.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
        told[name] = same if torch.equal(found, expected) else "other tokens"
    except Exception as error:
        told[name] = ", ".join(re.findall(r"past_key_values[\w.]+|Got: \d+ Expected: \d+", str(error)))
    print(f"{name}: {told[name]}")


for family in ("llama", "phi3", "gemma2", "olmo2"):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape)).eval()
    model.save_pretrained(family)
    ask(family, model, ORTModelForCausalLM.from_pretrained(family, export=True))
for heads in (8, 6):
    sizes = {"vocab_size": 100, "d_model": 64, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": heads, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(**sizes)).eval()
    model.save_pretrained(f"t5-{heads}")
    main_export(f"t5-{heads}", output=f"graph-{heads}", task="text2text-generation-with-past", do_validation=False, library_name="transformers")
    ask(f"t5, {heads} heads", model, ORTModelForSeq2SeqLM.from_pretrained(f"graph-{heads}"))
right = {name for name, text in told.items() if text == same}
sys.exit(right != {"llama", "t5, 8 heads"} or not all("Got:" in text for name, text in told.items() if name not in right))
PY
