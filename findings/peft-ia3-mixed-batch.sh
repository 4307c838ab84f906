#!/usr/bin/env bash
# peft 0.21.2: model(..., adapter_names=[...]), the documented way to give each row of a batch its own adapter, is ignored by
# IA³ layers without an error or a warning: every row gets the active adapter. The same call on LoRA layers mixes as documented.
#
# Who meets it: anybody who serves several IA³ tasks in one batch with PEFT. Rows come out plausible and belong to another task.
#
# Output seen on 2026-11-28: LoRA rows differ from the active adapter's by more than 0.1 where they should; IA³ rows by 0.
# Exits 0 where it still is so, 1 where it has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0
"$place/venv/bin/pip" install --quiet peft==0.21.2 transformers==5.23.0 numpy==2.4.6
"$place/venv/bin/python" - <<'PYTHON'
import sys
import peft
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def moved(config):
    """How far row 1, which asks for adapter "b", is from what the active adapter "a" gives it; how far it should be."""
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**SHAPE)), config, adapter_name="a")
    model.add_adapter("b", config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ia3_" in name or "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.5)
    model.eval()
    ids = torch.tensor([[3, 4, 5, 6], [3, 4, 5, 6]])
    with torch.no_grad():
        model.set_adapter("b")
        wanted = model(input_ids=ids).logits
        model.set_adapter("a")
        active = model(input_ids=ids).logits
        mixed = model(input_ids=ids, adapter_names=["a", "b"]).logits
    return float((mixed[1] - active[1]).abs().max()), float((wanted[1] - active[1]).abs().max())


lora = moved(LoraConfig(r=4, target_modules=["k_proj", "v_proj", "down_proj"]))
ia3 = moved(IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]))
print("peft", peft.__version__)
print(f"LoRA: row 1 moved by {lora[0]:.3f}, should by {lora[1]:.3f}")
print(f"IA3:  row 1 moved by {ia3[0]:.3f}, should by {ia3[1]:.3f}")
sys.exit(0 if abs(lora[0] - lora[1]) < 1e-4 and lora[1] > 0.01 and ia3[0] == 0 and ia3[1] > 0.01 else 1)
PYTHON
