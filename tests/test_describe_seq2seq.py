"""What a manifest says of an encoder-decoder: counts of both stacks, which layers run for the prompt alone, which vectors
each graph has.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tiny_seq2seq import tiny_seq2seq
from torch import nn

from qia3.base.modules import grid_linears
from qia3.base.quantise import Grid, quantise_model
from qia3.base.stages import prompt_only
from qia3.bundle.layout import DECODER_GRAPH, ENCODER_GRAPH, SHARED_DATA
from qia3.config import Export
from qia3.describe import _architecture, _graphs, dense_layers, linear_layers, places
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach

# heads, their size and what stays in float; all have 2 layers in the encoder and 3 in the decoder
FAMILIES = {"t5": (5, 5, 16, 5), "t5 v1.1": (5, 5, 16, 5), "bart": (6, 6, 16, 0), "t5gemma": (6, 2, 16, 0)}
CROSS = {"t5": "EncDecAttention", "t5 v1.1": "EncDecAttention", "bart": "encoder_attn", "t5gemma": "cross_attn"}
PLAN = SimpleNamespace(export=Export(target="ort-cpu"))


@pytest.fixture(scope="module", params=FAMILIES)
def described(request):
    model = tiny_seq2seq(request.param)
    model.generation_config.decoder_start_token_id = 0
    kept = {
        n: m
        for n, m in model.named_modules()
        if n.endswith(".wo") and request.param.startswith("t5 ") | (request.param == "t5")
    }
    quantise_model(model, Grid(32, False))
    for name, module in kept.items():
        model.set_submodule(name, module)
    roles = find_roles(model)
    attach(model, roles.sites)
    return SimpleNamespace(name=request.param, model=model, roles=roles)


def test_the_prompts_layers_are_the_encoders_and_the_keys_and_values_of_its_states(described):
    once, model = prompt_only(described.model), described.model
    for layer in (*linear_layers(model, described.roles, once), *dense_layers(model, described.roles, once)):
        ours = layer.role in ("key", "value") and CROSS[described.name] in layer.name
        in_encoder = layer.name.removeprefix("model.").startswith("encoder.")
        assert layer.once == (in_encoder or ours) == (layer.name in once), layer.name
    assert sum(x.once for x in linear_layers(model, described.roles, once)) > 10
    assert {n for n, _ in grid_linears(model)} == {x.name for x in linear_layers(model, described.roles, once)}


def test_counts_are_those_of_both_stacks(described):
    heads, kv_heads, size, dense = FAMILIES[described.name]
    shape = _architecture(described, 40, None)
    assert (shape.layers, shape.encoder_layers, shape.decoder_start) == (3, 2, (0,))
    assert (shape.heads, shape.kv_heads, shape.head_size, shape.hidden_size) == (heads, kv_heads, size, 96)
    found = dense_layers(described.model, described.roles, prompt_only(described.model))
    assert len(found) == dense
    assert all(x.role == "feed_forward_down" for x in found)
    assert sum(isinstance(m, nn.Linear) for m in described.model.modules()) == dense


def test_each_graph_has_the_vectors_of_its_own_layers(described):
    sites = described.roles.sites
    graphs = _graphs(PLAN, described, sites, 4, places(described.model), [])
    encoder, decoder = graphs["encoder"], graphs["decoder"]
    assert (encoder.file, decoder.file, encoder.data, decoder.data) == (
        *(ENCODER_GRAPH, DECODER_GRAPH),
        *(SHARED_DATA, SHARED_DATA),
    )
    assert [*encoder.sites, *decoder.sites] == sorted(sites, key=lambda s: ".decoder." in f".{s.module}")
    assert all("encoder." in s.module and CROSS[described.name] not in s.module for s in encoder.sites)
    cross = [s for s in decoder.sites if CROSS[described.name] in s.module]
    assert (len(encoder.sites), len(decoder.sites), len(cross)) == (2 * 3, 3 * 5, 3 * 2)
