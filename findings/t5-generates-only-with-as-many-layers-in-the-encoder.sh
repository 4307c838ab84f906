#!/usr/bin/env bash
# transformers 5.23.0: generate() of a T5 whose decoder has more layers than its encoder ends in an IndexError, for the cache is made
# with as many layers as the encoder has (config.num_hidden_layers is num_layers, the encoder's). With use_cache=False it generates;
# a decoder with fewer layers than the encoder generates either way. num_decoder_layers is a documented setting, and T5s with a
# deep encoder and a shallow decoder are made for speed: those work, the other way round does not.
#
# Who meets it: anybody who tests an export of T5 on a model with unequal stacks, which is how one tells an exchange of the two.
#
# Output seen on 2026-11-28: "2 and 3 layers, with a cache: IndexError", the other five fine.
# Exits 0 where it still is so, 1 where it has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0
"$place/venv/bin/pip" install --quiet transformers==5.23.0 numpy==2.4.6
"$place/venv/bin/python" - <<'PYTHON'
import sys
import torch
from transformers import T5Config, T5ForConditionalGeneration


def generated(encoder, decoder, cache):
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_heads=2, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(T5Config(**sizes, num_layers=encoder, num_decoder_layers=decoder)).eval()
    try:
        model.generate(torch.tensor([[3, 4, 5, 6]]), max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=cache)
    except Exception as error:
        return type(error).__name__
    return "fine"


found = {(e, d, c): generated(e, d, c) for e, d in ((2, 2), (3, 2), (2, 3)) for c in (True, False)}
for (encoder, decoder, cache), end in found.items():
    print(f"{encoder} and {decoder} layers, {'with' if cache else 'without'} a cache: {end}")
bad = [key for key, end in found.items() if end != "fine"]
sys.exit(0 if bad == [(2, 3, True)] else 1)
PYTHON
