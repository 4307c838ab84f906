"""Mixtures of experts on the grid: transformers' own module on the dequantised weights, its gradients, a kept base."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import FAMILIES, label, random_model
from tiny import ids
from tiny_bundle import tokenizer
from transformers import PreTrainedTokenizerFast

from qia3.base.experts import GridExperts, fits, float_experts
from qia3.base.frozen import BaseModel, fingerprint
from qia3.base.kept import keep, open_kept
from qia3.base.quantise import Grid, quantise_model
from qia3.errors import BaseModelError
from qia3.footprint.before import _three_per_layer, ia3_of
from qia3.graph.export import export_decoder
from qia3.graph.external import write_graph
from qia3.ia3.roles import find_roles
from qia3.ia3.shapes import shapes_of


def model_of(name="qwen3_moe, experts"):
    return random_model(next(f for f in FAMILIES if label(f) == name))


@pytest.fixture(scope="module")
def pair():
    """transformers' module with the dequantised weights, and ours."""
    model = model_of()
    name, own = next(iter(float_experts(model).items()))
    quantise_model(model, Grid(32, False))
    ours = model.get_submodule(name)
    up, down = (weight.store.dense(torch.float32) for weight in (ours.gate_up_proj, ours.down_proj))
    with torch.no_grad():
        for e in range(4):  # gate and up lie in turn
            mine = up[e * 64 : (e + 1) * 64]
            own.gate_up_proj[e] = torch.cat([mine[0::2], mine[1::2]])
            own.down_proj[e] = down[e * 96 : (e + 1) * 96]
    return own, ours, model


def test_experts_on_the_grid_are_transformers_own_on_the_dequantised_weights(pair):
    own, ours, _ = pair
    x = torch.randn(7, 96, generator=torch.Generator().manual_seed(3))
    chosen = torch.tensor([[0, 3], [3, 1], [2, 0], [1, 2], [3, 2], [0, 1], [3, 0]])
    weights = torch.rand(7, 2, generator=torch.Generator().manual_seed(4))
    found = []
    for module in (own, ours):
        inputs = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
        out = module(inputs[0], chosen, inputs[1])
        found.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for theirs, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_what_trains_is_what_ships_experts_included(pair, tmp_path):
    _, ours, model = pair
    graph = export_decoder(model, 4, 64, "last")
    routers = [4 * p.numel() for name, p in model.named_parameters() if name.endswith("mlp.gate.weight")]
    assert [r.bytes for r in write_graph(graph, tmp_path, ["model.embed_tokens"]) if r.part == "other"] == routers
    nodes = [n for n in graph.graph if n.op_type == "QMoE"]
    assert len(nodes) == 2
    assert nodes[0].attributes["accuracy_level"].as_int() == 4
    for place, store in ((2, ours.gate_up_proj.store), (5, ours.down_proj.store)):
        shipped = [nodes[0].inputs[i].const_value.numpy() for i in (place, place + 1, 11 if place == 2 else 12)]
        for mine, held in zip((store.codes, store.scales, store.zero_points), shipped, strict=True):
            assert held.tobytes() == np.ascontiguousarray(mine.numpy()).tobytes()
    assert {s.role for s in find_roles(model).sites} == {"key", "value"}


def test_sizes_before_the_build_count_experts():
    model = model_of()
    shapes = shapes_of(model.config, "a mixture")
    experts = sorted((m.inputs, m.outputs) for m in shapes.matrices if m.role == "experts")
    assert experts == [(32, 4 * 96)] * 2 + [(96, 4 * 64)] * 2
    counted = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    assert shapes.parts()["experts"] == counted
    assert "other_linear" not in shapes.parts()
    assert _three_per_layer(shapes, ia3_of(shapes)).why.endswith("; experts have no vectors")


def test_a_kept_base_has_its_experts(tmp_path, pair):
    *_, model = pair
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer(), pad_token="<pad>")
    made = BaseModel(
        reference="tiny",
        model=model,
        tokenizer=words,
        fingerprint=fingerprint(model),
        block_size=32,
        symmetric=False,
        parameters=1,
    )
    keep(made, tmp_path / "base")
    read = open_kept(tmp_path / "base", "tiny").model
    assert sum(isinstance(m, GridExperts) for m in read.modules()) == 2
    with torch.no_grad():
        torch.testing.assert_close(read(ids(2, 7)).logits, model(ids(2, 7)).logits, rtol=1e-4, atol=1e-5)  # sdpa, eager


def test_the_layers_beside_experts_are_calibrated():
    model, plain = model_of(), model_of()
    quantise_model(model, Grid(32, False), windows=ids(8, 40))
    quantise_model(plain, Grid(32, False))
    layer = "model.layers.1.self_attn.o_proj"
    assert not torch.equal(model.get_submodule(layer).store.codes, plain.get_submodule(layer).store.codes)
    experts = "model.layers.1.mlp.experts.gate_up_proj"
    assert torch.equal(model.get_submodule(experts).store.codes, plain.get_submodule(experts).store.codes)


def test_experts_of_another_formula_stay_float_and_are_refused():
    model = model_of()
    experts = next(iter(float_experts(model).values()))
    assert fits(experts)
    experts.act_fn = torch.nn.GELU()
    assert not fits(experts)
    quantise_model(model, Grid(32, False))
    assert sum(isinstance(m, GridExperts) for m in model.modules()) == 1
    with pytest.raises(
        BaseModelError, match=r"mixtures of experts \(Qwen3MoeExperts\) of a form that ONNX Runtime's QMoE"
    ):
        find_roles(model)
    with pytest.raises(BaseModelError, match="only supported on the int4 grid"):
        quantise_model(model_of(), Grid(64, False, name="nf4"))
    assert torch.isfinite(model(ids(1, 5)).logits).all()
