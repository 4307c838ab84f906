"""A model's sizes from its configuration alone, held against the model itself and against published counts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from families import FAMILIES, label, random_model
from tiny import ALL, DECODERS, tiny
from tiny_encoders import ENCODERS, tiny_encoder
from tiny_seq2seq import SEQ2SEQ, tiny_seq2seq

from qia3.base.family import auto_class, stays_float
from qia3.base.modules import GridEmbedding
from qia3.base.quantise import Grid, quantise_model
from qia3.base.stages import prompt_only
from qia3.describe import dense_layers, linear_layers
from qia3.errors import BaseModelError
from qia3.footprint.shapes import Form, total
from qia3.graph.attention import forms_of
from qia3.graph.watch import watch
from qia3.ia3 import shapes
from qia3.ia3.roles import find_roles
from qia3.ia3.shapes import read_shapes

QUICK = ["llama", "phi3", "gpt2", "gpt_neox", "t5", "t5 v1.1", "bart", "bert", "modernbert"]
LLAMA = {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
         "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True}  # fmt: skip
FLAN = {"model_type": "t5", "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True, "tie_word_embeddings": False}  # fmt: skip
MT5 = FLAN | {"model_type": "mt5", "d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "vocab_size": 250112}
PHI4 = {"model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 24,
        "num_key_value_heads": 8, "vocab_size": 200064, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75, "tie_word_embeddings": True, "pad_token_id": 199999,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48}}  # fmt: skip


def write(folder: Path, settings: dict) -> str:
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


def made(family: str):
    """As load_base makes it: an encoder without what its training put on top."""
    if family in ENCODERS:
        return auto_class(config := tiny_encoder(family).config).from_config(config)
    return tiny_seq2seq(family) if family in SEQ2SEQ else tiny(family)


@pytest.mark.parametrize("family", [*DECODERS, *SEQ2SEQ, *ENCODERS] if ALL else QUICK)
def test_a_configuration_tells_what_the_model_does(family, tmp_path, monkeypatch):
    """Every layer of the base that a build would make, its role, when it runs, its block; vectors, rows, and numbers."""
    monkeypatch.setattr(shapes, "WIDE", 8)  # so that these are narrowed, too
    model = made(family)
    (model if family in SEQ2SEQ else model.config).save_pretrained(tmp_path)  # a head's own table is only in the files
    found = read_shapes(str(tmp_path))
    roles, once, floats = find_roles(model), prompt_only(model), stays_float(model)
    assert found.sites == roles.sites
    assert {m.name for m in found.matrices if m.stays_float} == floats
    assert found.parameters == sum(p.numel() for p in model.parameters())
    quantise_model(model, Grid(32, False))
    linears, dense = Form("int4", 32).layers(found)
    assert linears == linear_layers(model, roles, once)
    assert dense == dense_layers(model, roles, once)
    tables = {id(m.store): m.store for m in model.modules() if isinstance(m, GridEmbedding)}
    assert [Form("int4", 32).block_of(t) for t in found.tables if t.quantisable] == [
        s.block_size for s in tables.values()
    ]


@pytest.mark.parametrize("family", [*ENCODERS] if ALL else ["bert", "electra", "modernbert"])
def test_an_encoders_attention_has_its_output_wherever_that_lies(family, tmp_path):
    """BERT's lies beside the module that attends, and ELECTRA projects its embedding, which is no part of attention."""
    model = made(family)
    model.config.save_pretrained(tmp_path)
    found = read_shapes(str(tmp_path))
    layers = {name: p for name, p in model.named_parameters() if name.endswith(".weight") and p.dim() == 2}
    inside = [p.numel() for name, p in layers.items() if re.search(r"\b(attention|attn|self_attn)\.", name)]
    assert found.parts()["attention"] == sum(inside)
    others = {m.name for m in found.matrices if m.part == "other_linear"}
    assert others == ({"embeddings_project"} if family == "electra" else set())


@pytest.mark.parametrize(
    "name", ["llama", "falcon, new decoder architecture", "gpt_bigcode, one key head", "minicpm3, latent attention"]
)
def test_heads_are_those_that_the_graph_keeps(name, tmp_path, monkeypatch):
    """Repeated by the model itself, or made of something smaller: what the configuration calls them is another matter."""
    monkeypatch.setattr(shapes, "WIDE", 8)
    model = random_model(next(f for f in FAMILIES if label(f) == name))
    model.config.save_pretrained(tmp_path)
    shape, form = read_shapes(str(tmp_path)).architecture, next(iter(forms_of(model, watch(model)).values()))
    assert (shape.kv_heads, shape.head_size) == (form.kv_heads, form.size)


@pytest.mark.parametrize(
    ("settings", "parameters", "vectors"),
    [
        (LLAMA, 1_235_814_400, 16 * (512 + 512 + 8192)),  # Llama-3.2-1B
        (FLAN, 247_577_856, 36 * 2 * 768 + 24 * 2048),  # flan-t5-base
        (MT5, 300_176_768, 24 * 2 * 384 + 16 * 1024),  # mt5-small
        (PHI4, 3_836_021_760, 32 * (1024 + 1024 + 8192)),  # Phi-4-mini
    ],
)
def test_parameters_are_those_of_the_model_cards(settings, parameters, vectors, tmp_path):
    found = read_shapes(write(tmp_path, settings))
    assert found.parameters == parameters
    assert sum(site.parameters for site in found.sites) == vectors
    assert total(Form("bfloat16").bytes_by_part(found)) == 2 * parameters


def test_what_is_no_model_is_told_in_one_line(tmp_path):
    for settings, line in (
        ({"model_type": "llama", "hidden_size": 12, "num_attention_heads": 4}, "does not run on a text"),
        ({"model_type": "llama", "hidden_size": 10, "num_attention_heads": 3}, "cannot load the base model"),
        ({"model_type": "whisper"}, "for speech or images"),
        ({"model_type": "none such"}, "cannot load the base model"),
    ):  # fmt: skip
        with pytest.raises(BaseModelError, match=line) as told:
            read_shapes(write(tmp_path, settings))
        assert "\n" not in str(told.value)
