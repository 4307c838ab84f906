#!/usr/bin/env bash
# peft 0.21.2, IA³: a misspelt name is an error in one form of the configuration and another model in the other three, without a word.
#   list, `feedforward_modules` with a name that is not in `target_modules`: refused ("should be a subset of")
#   list, `target_modules` with one good name and one that matches nothing: the good one is adapted, values get no vector
#   regular expressions, `feedforward_modules` that matches nothing: not compared; the feed-forward's vector moves from the inputs of
#     down_proj (1, d_ff) to its outputs (d_model, 1), another adapter of another size
# Who meets it: anybody who writes IA³ for a family that PEFT has no table for, or by expression; training runs and only the count of
# parameters tells.
#
# Output seen on 2026-11-28:
#   right: k_proj (16, 1), v_proj (16, 1), down_proj (1, 48)
#   one name of the list matches nothing: k_proj (16, 1), down_proj (1, 48)
#   list, feed-forward misspelt: ValueError
#   expression, feed-forward misspelt: k_proj (16, 1), v_proj (16, 1), down_proj (32, 1)
# Exits 0 where it still is so, 1 where it has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - <<'PY' 2>/dev/null
import sys

from peft import IA3Config, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, vocab_size=64
)


def vectors(targets, inner):
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    try:
        adapted = get_peft_model(model, IA3Config(target_modules=targets, feedforward_modules=inner))
    except ValueError as error:
        return type(error).__name__ if "subset" in str(error) else str(error)
    found = [(n.split(".")[-3], tuple(p.shape)) for n, p in adapted.named_parameters() if "ia3_l" in n]
    return ", ".join(f"{name} {shape}" for name, shape in found)


seen = {
    "right": vectors(["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "one name of the list matches nothing": vectors(["k_proj", "v_prj", "down_proj"], ["down_proj"]),
    "list, feed-forward misspelt": vectors(["k_proj", "v_proj", "down_proj"], ["dwn_proj"]),
    "expression, feed-forward misspelt": vectors(r".*\.(k|v|down)_proj", r".*\.dwn_proj"),
}
for case, found in seen.items():
    print(f"{case}: {found}")
sys.exit(
    seen
    != {
        "right": "k_proj (16, 1), v_proj (16, 1), down_proj (1, 48)",
        "one name of the list matches nothing": "k_proj (16, 1), down_proj (1, 48)",
        "list, feed-forward misspelt": "ValueError",
        "expression, feed-forward misspelt": "k_proj (16, 1), v_proj (16, 1), down_proj (32, 1)",
    }
)
PY
