"""What a step keeps, counted without numbers, is what a step keeps with them."""

from __future__ import annotations

import pytest
import torch
from tiny import ALL, tiny
from tiny_encoders import ENCODERS, tiny_encoder
from tiny_seq2seq import SEQ2SEQ, tiny_seq2seq

from qia3.base.complete import empty
from qia3.base.quantise import Grid, quantise_model
from qia3.ia3.activations import saved_bytes
from qia3.ia3.roles import attention, find_roles
from qia3.ia3.vectors import attach

ROWS, LENGTH = 2, 24
FAMILIES = ["llama", "gpt2", "gemma3_text", "t5 v1.1", "bart", "modernbert"]


@pytest.mark.parametrize("family", FAMILIES if ALL else ["llama", "t5 v1.1"])
def test_what_a_step_of_a_quantised_model_keeps_is_counted_without_numbers(family):
    model = tiny_encoder(family) if family in ENCODERS else tiny_seq2seq(family) if family in SEQ2SEQ else tiny(family)
    sites = find_roles(model).sites
    hollow = empty(model.config)
    hollow.config._attn_implementation = "eager"
    counted = saved_bytes(hollow, sites, "ia3", ROWS, LENGTH, torch.float32)
    quantise_model(model, Grid(32, False))
    attach(model, sites)
    with attention(model, "eager"):
        kept = really_kept(model.eval())
    assert counted == pytest.approx(kept, rel=0.02)


def test_more_trains_more_is_kept():
    model = tiny("llama")
    sites = find_roles(model).sites

    def kept(method, rows=ROWS, dtype=torch.float32):
        hollow = empty(model.config)
        hollow.config._attn_implementation = "eager"
        return saved_bytes(hollow, sites, method, rows, LENGTH, dtype)

    assert kept("ia3") < kept("lora") < kept("full")
    assert kept("ia3", 2 * ROWS) == pytest.approx(2 * kept("ia3"), rel=0.02)
    assert kept("ia3", dtype=torch.bfloat16) < 0.8 * kept("ia3")  # norms keep float32


def really_kept(model) -> int:
    """Bytes of what autograd packs, each storage once, without what the model holds anyway."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(3, 101, (ROWS, LENGTH))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        given |= {"decoder_input_ids": ids, "decoder_attention_mask": torch.ones_like(ids)}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(**given, use_cache=False)
    assert out[0].requires_grad
    return sum(t.untyped_storage().nbytes() for storage, t in kept.items() if storage not in own)
