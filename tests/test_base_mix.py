"""Layers at 8 bits and in other blocks: found by role in every family, quantised beside the rest, and kept."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tiny import DECODERS, ids, tiny
from tiny_build import write_base
from tiny_encoders import tiny_encoder

from qia3.base import load
from qia3.base.int8 import Int8Weight
from qia3.base.load import Asked, load_base
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.quantise import Grid, float_weight, quantise_model
from qia3.base.weights import GridWeight, Int4Weight
from qia3.config import LAYER_ROLES
from qia3.errors import BaseModelError
from qia3.grids import int8
from qia3.ia3.mix import MEANS, named
from qia3.ia3.roles import Roles, find_roles

GRID = Grid(32, symmetric=False)


@pytest.mark.parametrize(("block", "symmetric"), list(itertools.product((16, 32, 128), (False, True))))
def test_modules_dequantise_as_the_grid_does(block, symmetric):
    store = Int8Weight.from_float(torch.randn(7, 50), block, symmetric)
    np.testing.assert_array_equal(store.dense(torch.float32).numpy(), int8.dequantise(store.grid))
    rows = torch.tensor([[3, 0], [6, 3]])
    np.testing.assert_array_equal(
        GridEmbedding(store, torch.float32)(rows).numpy(), int8.dequantise(store.grid)[rows.numpy()]
    )
    layer, x = GridLinear(store, torch.randn(7)), torch.randn(3, 50)
    before, vector = layer(x), torch.linspace(-2, 2, 7)
    layer.fold(vector)
    torch.testing.assert_close(layer(x), before * vector)


@pytest.mark.parametrize("family", DECODERS)
def test_roles_are_found_in_the_float_model_and_those_layers_are_at_eight_bits(family):
    model = tiny(family)
    own = named(("head", "down", "value")).find(model, GRID, None).own
    quantise_model(model, Grid(32, False, own=own))
    roles = find_roles(model).linears
    for name, layer in model.named_modules():
        if isinstance(layer, GridLinear):
            assert layer.store.bits == (8 if roles[name] in ("head", "feed_forward_down", "value", "qkv") else 4), name
    assert len({roles[n] for n in own}) == 3


def test_an_encoders_attention_output_is_named_like_a_decoders():
    """BERT's stands outside its attention module."""
    own = named(("output",)).find(tiny_encoder("bert"), GRID, None).own
    assert own
    assert all(name.endswith("attention.output.dense") for name in own)


def test_the_names_of_a_build_file_are_those_that_are_known_here():
    assert set(LAYER_ROLES) == set(MEANS)


def test_a_role_that_a_model_has_no_layer_of_is_told(monkeypatch):
    roles = Roles((), (), {"out": "head", "a": "attention_output", "b": "feed_forward"})
    monkeypatch.setattr("qia3.ia3.mix.find_roles", lambda model: roles)
    with pytest.raises(BaseModelError, match='no layer of the role "key" in eight_bit; it has: head, output, up'):
        named(("up", "key")).find(tiny("llama"), GRID, None)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_role_may_be_named_in_some_layers_only(family):
    every = named(("down",)).find(tiny(family), GRID, None).own.keys()
    assert len(every) == 2
    parts = [named((f"down@{n}",)).find(tiny(family), GRID, None).own.keys() for n in ("0", "1", "0-1", "1,0")]
    assert parts[0] | parts[1] == parts[2] == parts[3] == every
    assert all(".0." in name for name in parts[0])
    for asked, said in (
        ("down@1-3", '"down" in layer 2, 3; it is in layers 0 to 1'),
        ("head@0", "it is in no numbered layer"),
    ):
        with pytest.raises(BaseModelError, match=said):
            named((asked,)).find(tiny(family), GRID, None)


def test_layers_may_be_in_other_blocks():
    model = tiny("llama")
    chosen = named(("head",), [(16, ("up@1", "down")), (32, ("key",))]).find(model, Grid(16, False), None)
    assert chosen.blocks == {"16": ["down", "up@1"], "32": ["key"]}
    quantise_model(model, Grid(16, False, own=chosen.own))
    for name, layer in model.named_modules():
        if isinstance(layer, GridLinear):
            assert layer.store.block_size == (32 if "k_proj" in name or "head" in name else 16), name


def test_a_layer_has_one_form():
    with pytest.raises(
        BaseModelError, match=r"name 2 layers twice \(the first is model.layers.1.mlp.gate_proj\); name each once"
    ):
        named(("up@1",), [(16, ("up",))]).find(tiny("llama"), GRID, None)
    with pytest.raises(BaseModelError, match='blocks names "up" in layer 2'):
        named((), [(16, ("up@2",))]).find(tiny("llama"), GRID, None)


@pytest.mark.parametrize("block", [16, 32])
def test_a_tied_embedding_is_in_its_heads_blocks(block, tmp_path):
    base = load_base(
        Asked(str(write_base(tmp_path / "base", tied=True)), block_size=16, mix=named((), [(block, ("head",))]))
    )
    assert base.model.get_input_embeddings().store is base.model.get_output_embeddings().store
    assert base.model.get_input_embeddings().store.block_size == block
    assert base.blocks == {str(block): ["head"]}


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_embedding_is_at_eight_bits_with_its_head_and_another_stays_at_four(tied, tmp_path):
    base = load_base(Asked(str(write_base(tmp_path / "base", tied=tied)), block_size=16, mix=named(("head",))))
    embedding, head = base.model.get_input_embeddings().store, base.model.get_output_embeddings().store
    assert isinstance(head, Int8Weight)
    assert (embedding is head) is tied
    assert tied or isinstance(embedding, Int4Weight)
    assert base.eight_bit == ("head",)


def test_what_is_calibrated_is_four_bit_layers_and_the_others_are_rounded_to_nearest():
    model, reference = tiny("llama"), tiny("llama")
    own = named(("head", "down", "query")).find(model, GRID, None).own
    quantise_model(model, Grid(32, False, own=own), windows=ids(4, 16))
    plain = tiny("llama")
    quantise_model(plain, Grid(32, False))
    for name, layer in model.named_modules():
        if isinstance(layer, GridLinear) and name in own:
            weight = float_weight(reference.get_submodule(name)).detach().numpy()
            np.testing.assert_array_equal(layer.store.codes.numpy(), int8.quantise(weight, 32).codes)
        elif isinstance(layer, GridLinear):
            assert not torch.equal(layer.store.codes, plain.get_submodule(name).store.codes)
    assert torch.isfinite(model(input_ids=ids()).logits).all()


def test_a_kept_base_has_its_eight_bit_layers_and_another_choice_is_another_base(tmp_path, monkeypatch):
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(load, "LEAST_KEPT", 0)
    folder = str(write_base(tmp_path / "base"))
    made = load_base(Asked(folder, block_size=16, mix=named(("down", "head"))))
    again = load_base(Asked(folder, block_size=16, mix=named(("head", "down"))))
    other = load_base(Asked(folder, block_size=16))
    assert len(list((tmp_path / "cache" / "bases").iterdir())) == 2
    assert made.fingerprint == again.fingerprint != other.fingerprint
    assert (made.eight_bit, again.eight_bit, other.eight_bit) == (("down", "head"), ("down", "head"), ())
    kinds = [{n: type(m) for n, m in b.model.named_modules() if isinstance(m, GridWeight)} for b in (made, again)]
    assert kinds[0] == kinds[1]
    torch.testing.assert_close(again.model(input_ids=ids()).logits, made.model(input_ids=ids()).logits)
