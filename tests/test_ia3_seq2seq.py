"""IA³ on encoder-decoders: PEFT's checkpoints both ways with PEFT's own logits, vectors unmerged and folded."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import IA3Config, PeftModel, PeftModelForSeq2SeqLM, get_peft_model
from test_bundle_peft import BASE
from tiny import random_vectors
from tiny_seq2seq import SEQ2SEQ, T5S, pair, tiny_seq2seq
from torch import nn

from qia3.base.complete import note_untied
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.quantise import Form, Grid, quantise_model
from qia3.bundle.adapter import Adapter
from qia3.bundle.peft import read_peft, write_peft
from qia3.bundle.sites import Site
from qia3.errors import AdapterError
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, detach, fold, set_vectors

# PEFT's own for the family, or as its users write them where it has none
NAMED = {"umt5": (["k", "v", "wo"], ["wo"]), "marian": (["k_proj", "v_proj", "fc2"], ["fc2"]),
         "t5gemma": (["k_proj", "v_proj", "down_proj"], ["down_proj"])}  # fmt: skip


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**pair()).logits


def on_grid(name: str):
    """A model on int4, and the same in transformers' own layers with the dequantised weights."""
    model, oracle = tiny_seq2seq(name), tiny_seq2seq(name)
    for loaded in (model, oracle):
        note_untied(loaded)
    quantise_model(model, Grid(32, False))
    with torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, GridLinear | GridEmbedding):
                oracle.get_submodule(path).weight = nn.Parameter(module.weight)
    return model, oracle


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_law_9_our_adapter_loads_in_peft_with_the_same_logits(name, tmp_path):
    model, oracle = on_grid(name)
    sites = find_roles(model).sites
    plain, scaled = logits(model), attach(model, sites)
    set_vectors(scaled, vectors := random_vectors(scaled))
    write_peft(tmp_path, Adapter(vectors, BASE), sites, "tiny")
    theirs = PeftModel.from_pretrained(oracle, str(tmp_path)).eval()
    assert isinstance(theirs, PeftModelForSeq2SeqLM)
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-4, atol=1e-4)
    assert (logits(model) - plain).abs().max() > 0.05


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_law_9_an_adapter_of_peft_imports_with_the_same_logits(name, tmp_path):
    model, oracle = on_grid(name)
    targets, feed_forward = NAMED.get(name, (None, None))
    torch.manual_seed(3)
    theirs = get_peft_model(
        oracle,
        IA3Config(
            task_type="SEQ_2_SEQ_LM",
            target_modules=targets,
            feedforward_modules=feed_forward,
            init_ia3_weights=False,
        ),
    ).eval()
    theirs.save_pretrained(str(tmp_path))
    roles = find_roles(model)
    sites = (*roles.queries, *roles.sites) if name == "bart" else roles.sites  # PEFT's own for BART are queries
    scaled = attach(model, sites)
    set_vectors(scaled, read_peft(tmp_path, sites, None, roles.linears).vectors)
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-4, atol=1e-4)
    named = json.loads((tmp_path / "adapter_config.json").read_text())
    wanted = {"t5": ["k", "v", "wo"], "t5 v1.1": ["k", "v", "wo"], "mt5": ["k", "v", "wi_1"]}
    assert sorted(named["target_modules"]) == wanted.get(name, sorted(named["target_modules"]))
    if name in T5S:
        assert theirs.get_nb_trainable_parameters()[0] == sum(site.parameters for site in sites) == 2400


def test_the_task_type_is_of_the_kind_of_model(tmp_path):
    sites = find_roles(tiny_seq2seq("bart")).sites
    write_peft(tmp_path, Adapter({}, BASE), sites, "tiny")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    assert {site.in_encoder for site in sites if "encoder_attn" in site.module} == {False}
    assert sum(site.in_encoder for site in sites) == 2 * 3


@pytest.mark.parametrize("name", [*T5S, "t5gemma"])
def test_law_2_folded_and_side_agree_and_only_scales_and_a_float_wo_differ(name, tmp_path):
    """And PEFT's own merge agrees, into the dequantised weights."""
    model, oracle = on_grid(name)
    scaled = attach(model, sites := find_roles(model).sites)
    set_vectors(scaled, vectors := random_vectors(scaled))
    write_peft(tmp_path, Adapter(vectors, BASE), sites, "tiny")
    side, before = logits(model), {n: t.clone() for n, t in model.state_dict().items()}
    fold(scaled)
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n]) and ".delta" not in n}
    kinds = {n.rpartition(".")[2] for n in changed}
    assert kinds == ({"scales", "weight"} if name == "t5" else {"scales"})
    assert {n for n in changed if n.endswith(".weight")} == {
        n for n in before if n.endswith("wo.base.weight") and name == "t5"
    }
    detach(model, scaled)
    torch.testing.assert_close(logits(model), side, rtol=1e-4, atol=1e-4)
    merged = PeftModel.from_pretrained(oracle, str(tmp_path)).merge_and_unload().eval()
    torch.testing.assert_close(logits(model), logits(merged), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("twice", [False, True])
def test_law_2_a_float_layer_folds_on_either_side(twice):
    """fold(1) is the identity, fold(a) then fold(b) is fold(a b), bias and all."""
    for placement, size in (("input", 7), ("output", 5)):
        holder = nn.ModuleDict({"a": nn.Linear(7, 5)})
        plain, x = copy.deepcopy(holder["a"]), torch.randn(3, 7)
        vector = torch.linspace(-2, 2, size)
        for v in (vector, vector) if twice else (vector,):
            scaled = attach(holder, [Site("a", "value", placement, size)])
            set_vectors(scaled, {"a.ia3_l": v.numpy()})
            fold(scaled)
            detach(holder, scaled)
        full = vector * vector if twice else vector
        with torch.no_grad():
            wanted = plain(x * full) if placement == "input" else plain(x) * full
            torch.testing.assert_close(holder["a"](x), wanted)


def test_a_wo_that_was_put_on_the_grid_takes_no_vector_in():
    model = tiny_seq2seq("t5")
    down = [n for n in find_roles(model).linears if n.endswith(".wo")]
    quantise_model(model, Grid(32, False, dict.fromkeys(down, Form(8, 32))))
    scaled = attach(model, find_roles(model).sites)
    set_vectors(scaled, random_vectors(scaled))
    before = logits(model)
    with pytest.raises(AdapterError, match="5 vectors cannot be folded"):
        fold(scaled)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
