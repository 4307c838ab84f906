"""Laws 2, 3 and 7 on whole models, and that bfloat16 training follows float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import DECODERS, GATED, ids, random_vectors, tiny
from torch import nn

from qia3.base.load import fingerprint
from qia3.base.modules import grid_linears
from qia3.base.quantise import Grid, quantise_model
from qia3.bundle.sites import Site
from qia3.errors import AdapterError
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, detach, fold, get_vectors, set_vectors


def adapted(family, symmetric=False, block=32):
    model = tiny(family)
    quantise_model(model, Grid(block, symmetric))
    return model, attach(model, find_roles(model).sites)


@pytest.mark.parametrize("family", DECODERS)
def test_ones_mean_base(family):
    model = tiny(family)
    quantise_model(model, Grid(32, False))
    before = model(input_ids=ids()).logits
    attach(model, find_roles(model).sites)
    torch.testing.assert_close(model(input_ids=ids()).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("family", GATED)
@pytest.mark.parametrize(("symmetric", "block"), [(False, 32), (True, 16), (False, 64)])
def test_folded_and_side_agree_and_only_scales_differ(family, symmetric, block):
    model, scaled = adapted(family, symmetric, block)
    set_vectors(scaled, random_vectors(scaled))
    side = model(input_ids=ids()).logits
    plain = {n: t.clone() for n, t in model.state_dict().items()}
    fold(scaled)
    for name, tensor in model.state_dict().items():
        kind = name.rpartition(".")[2]
        if kind in ("codes", "zero_points") or kind not in ("scales", "bias", "delta"):
            assert torch.equal(tensor, plain[name]), name
    detach(model, scaled)
    torch.testing.assert_close(model(input_ids=ids()).logits, side, rtol=1e-4, atol=1e-4)


def test_a_vector_that_folds_nowhere_is_refused_whole():
    model, scaled = adapted("gpt2")
    set_vectors(scaled, random_vectors(scaled))
    before = model(input_ids=ids()).logits
    with pytest.raises(AdapterError, match="2 vectors cannot be folded"):
        fold(scaled)
    torch.testing.assert_close(model(input_ids=ids()).logits, before, rtol=0, atol=0)


def test_vectors_come_back_as_they_went_in():
    _, scaled = adapted("phi3")
    given = random_vectors(scaled)
    set_vectors(scaled, given)
    for name, vector in get_vectors(scaled).items():
        np.testing.assert_allclose(vector, given[name], rtol=0, atol=1e-7)


def test_every_bad_tensor_is_listed():
    _, scaled = adapted("phi3")
    given = random_vectors(scaled)
    names = list(given)
    given["model.layers.9.mlp.up_proj.ia3_l"] = np.ones(3, np.float32)
    given[names[0]] = np.ones(5, np.float32)
    given[names[1]] = given[names[1]].copy()
    given[names[1]][0] = 2.0
    with pytest.raises(AdapterError, match="3 bad tensors") as caught:
        set_vectors(scaled, given)
    for name in (names[0], names[1], "model.layers.9.mlp.up_proj.ia3_l"):
        assert name in str(caught.value)


def test_the_fingerprint_sees_one_changed_scale():
    model = tiny("llama")
    quantise_model(model, Grid(32, False))
    first = fingerprint(model)
    assert first == fingerprint(model)
    model.model.layers[1].mlp.up_proj.store.scales[0, 0] *= 1.0001
    assert fingerprint(model) != first


def _train(forward, parameter, steps=300, rate=3e-3):
    """Adam on one entry per feature, towards targets a few hundredths away from one."""
    target = 1 + 0.05 * torch.randn(64, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW([parameter], lr=rate, weight_decay=0.0)
    x = torch.randn(steps, 64, generator=torch.Generator().manual_seed(1))
    for i in range(steps):
        optimiser.zero_grad()
        ((forward() - target) * x[i]).pow(2).mean().backward()
        optimiser.step()
    return float((forward().detach().float() - target).abs().mean())


def test_offsets_in_bfloat16_follow_float32_and_plain_bfloat16_ones_do_not():
    exact = torch.nn.Parameter(torch.ones(64))
    plain = torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    _, scaled = adapted("llama")
    ours = next(s for s in scaled.values() if s.site.role == "feed_forward")
    ours.delta = torch.nn.Parameter(torch.zeros(64))
    float32, bfloat16 = _train(lambda: exact, exact), _train(lambda: plain.float(), plain)
    offset = _train(ours.vector, ours.delta)
    assert float32 < 1e-3
    assert offset < 1e-3
    assert bfloat16 > 10 * offset, (float32, offset, bfloat16)


def test_wrapped_layers_keep_the_names_of_the_base_whatever_they_are_called():
    """Names with "base" in them, and one that is "base"."""
    wrapped, plain = ("x.base_layers.0", "base.base"), ("x.base_layers.1", "x.base")

    found = nn.Module()
    found.x, found.base = nn.Module(), nn.Module()
    found.x.base_layers = nn.ModuleList([nn.Linear(32, 6), nn.Linear(32, 5)])
    found.base.base, found.x.base = nn.Linear(32, 4), nn.Linear(32, 3)
    quantise_model(found, Grid(32, False))
    names = [name for name, _ in grid_linears(found)]
    assert set(names) == {*wrapped, *plain}
    attach(found, [Site(name, "value", "output", found.get_submodule(name).out_features) for name in wrapped])
    assert [name for name, _ in grid_linears(found)] == names
