"""Products whose dequantised weight is not kept: the same values and gradients, and nothing of a weight's size between
forward and backward.
"""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from test_train import EXAMPLES, SETTINGS, TREES, adapted
from torch.autograd.graph import saved_tensors_hooks

from qia3.base import memory, weights
from qia3.base.int8 import Int8Weight
from qia3.base.modules import GridLinear
from qia3.base.nf4 import Nf4Weight
from qia3.base.product import product
from qia3.base.weights import GridWeight, Int4Weight
from qia3.bundle.sites import Site
from qia3.grids import int4
from qia3.ia3.vectors import Scaled, get_vectors, start_vectors
from qia3.train import compute
from qia3.train.batches import padded
from qia3.train.compute import set_compute
from qia3.train.model import VectorModel
from qia3.train.run import train_vectors


def free(monkeypatch, amount):
    monkeypatch.setattr(compute, "available_bytes", lambda device=None: amount)


def gradients(model, scaled):
    """The loss and every vector's gradient, and what autograd saved for them."""
    saved: list[torch.Tensor] = []
    start_vectors(scaled, None)
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        loss = VectorModel(model, scaled)(**padded(TREES))["loss"]
    loss.backward()
    return float(loss.detach()), {n: s.delta.grad.clone() for n, s in scaled.items()}, saved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "phi3"])
def test_a_weight_dequantised_twice_gives_the_values_and_gradients_of_one_that_is_held(family, dtype, monkeypatch):
    model, scaled = adapted(family)
    results = []
    for room in (1 << 40, 0):
        free(monkeypatch, room)
        set_compute(model, model.get_output_embeddings(), dtype)
        assert all(m.store.holds(m.store.compute) == bool(room) for m in model.modules() if isinstance(m, GridLinear))
        results.append(gradients(model, scaled)[:2])
    (held_loss, held), (loss, found) = results
    assert loss == pytest.approx(held_loss, abs=1e-6)
    for name in held:
        torch.testing.assert_close(found[name], held[name], rtol=1e-6, atol=1e-6)
    assert max(float(g.abs().max()) for g in held.values()) > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_no_dequantised_weight_lives_between_forward_and_backward(family, monkeypatch):
    model, scaled = adapted(family)
    stores = [m for m in model.modules() if isinstance(m, GridWeight)]
    shapes = {s for store in stores for s in ((store.outputs, store.inputs), (store.inputs, store.outputs))}
    free(monkeypatch, 0)
    set_compute(model, model.get_output_embeddings(), torch.float32)
    assert not [t.shape for t in gradients(model, scaled)[2] if tuple(t.shape) in shapes]
    free(monkeypatch, 1 << 40)
    set_compute(model, model.get_output_embeddings(), torch.float32)
    kept = {store._dense.untyped_storage().data_ptr() for store in stores if store._dense is not None}
    weights = [t for t in gradients(model, scaled)[2] if tuple(t.shape) in shapes]
    assert weights
    assert {t.untyped_storage().data_ptr() for t in weights} <= kept  # torch keeps what is held anyway


def test_a_frozen_product_keeps_its_weight_and_not_its_input():
    """What the choice above rests on: for grad_x = grad_y W torch needs W; a vector on the output keeps the output, y *
    l.
    """
    x, weight, vector = torch.randn(5, 32, requires_grad=True), torch.randn(7, 32), torch.randn(7, requires_grad=True)
    saved: list[torch.Tensor] = []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = torch.nn.functional.linear(x, weight)
        assert [t.untyped_storage().data_ptr() for t in saved] == [weight.untyped_storage().data_ptr()]
        saved.clear()
        _ = y * vector
    assert {tuple(t.shape) for t in saved} == {(5, 7), (7,)}


def test_training_says_which_way_was_taken_and_gives_the_same_vectors(tmp_path, monkeypatch, capsys):
    results = []
    for room, said in ((1 << 40, "dequantised once and held"), (0, "dequantised in each product")):
        free(monkeypatch, room)
        model, scaled = adapted()
        train_vectors(model, scaled, EXAMPLES, SETTINGS.model_copy(update={"steps": 3}), 0, tmp_path / str(room), "t")
        assert said in capsys.readouterr().err
        results.append(get_vectors(scaled))
    for name, vector in results[0].items():
        np.testing.assert_allclose(results[1][name], vector, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 50), (2000, 300), (3, 600_000)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rows_at_a_time_are_the_rows_at_once(shape, symmetric):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    store, whole = Int4Weight.from_float(weight, 64, symmetric), int4.quantise(weight.float().numpy(), 64, symmetric)
    for name in ("codes", "scales", "zero_points"):
        np.testing.assert_array_equal(getattr(store.grid, name), getattr(whole, name))
    assert torch.equal(store.dense(torch.bfloat16), store.rows(slice(None), torch.bfloat16))


@pytest.mark.parametrize("grid", ["int4", "int8", "nf4"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_large_weight_is_dequantised_some_rows_at_a_time(grid, bias, monkeypatch):
    """Values and gradients are those of torch's product with the whole weight, and no more than a part exists at once."""
    torch.manual_seed(0)
    weight = torch.randn(130, 64)
    store = {
        "int4": lambda: Int4Weight.from_float(weight, 32, False),
        "int8": lambda: Int8Weight.from_float(weight, 32, False),
        "nf4": lambda: Nf4Weight.from_float(weight, 64),
    }[grid]()
    added = torch.randn(130) if bias else None
    x, upstream = torch.randn(2, 5, 64, requires_grad=True), torch.randn(2, 5, 130)
    expected = torch.nn.functional.linear(x, store.dense(torch.float32), added)
    (wanted,) = torch.autograd.grad(expected, x, upstream)
    monkeypatch.setattr(weights, "PART", 64 * 40)
    sizes, made, whole = list[int](), list[weakref.ref](), type(store)._dequantised

    def noted(*args):
        assert not any(one() is not None for one in made), "the part before is still there"
        found = whole(*args)
        sizes.append(len(found))
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(type(store), "_dequantised", noted)
    y = product(x, store, added)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y, x, upstream)[0], wanted)
    with torch.no_grad():
        torch.testing.assert_close(product(x, store, added), expected)
    assert sizes == [40, 40, 40, 10] * 3


def test_a_gradient_in_bfloat16_is_as_good_from_many_parts_as_from_one(monkeypatch):
    torch.manual_seed(0)
    store = Int4Weight.from_float(torch.randn(4096, 64), 32, False)
    x, upstream = torch.randn(8, 64).bfloat16().requires_grad_(), torch.randn(8, 4096).bfloat16()
    exact = upstream.double() @ store.dense(torch.bfloat16).double()
    errors = []
    for part in (weights.PART, 64 * 32):
        monkeypatch.setattr(weights, "PART", part)
        (found,) = torch.autograd.grad(product(x, store, None), x, upstream)
        assert found.dtype == torch.bfloat16
        errors.append(float((found.double() - exact).norm() / exact.norm()))
    assert errors[1] < 1.5 * errors[0]


def test_available_memory_is_the_least_of_the_machine_and_its_container(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 16000 kB\nMemFree: 1000 kB\nMemAvailable: 9000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    assert memory.available_bytes() == 9000 * 1024  # no container
    for name, content in {
        "memory.max": "6000000\n",
        "memory.current": "5000000\n",
        "memory.stat": "anon 7\ninactive_file 300000\n",
    }.items():
        (tmp_path / name).write_text(content)
    assert memory.available_bytes() == 1_300_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes() == 9000 * 1024


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_what_a_vector_multiplies_is_kept_as_it_was_computed(dtype, bias):
    """The gradients are torch's own, bit for bit, and a product in bfloat16 is saved as one."""
    torch.manual_seed(0)
    layer = GridLinear(Int4Weight.from_float(torch.randn(48, 64), 32, False), torch.randn(48) if bias else None)
    layer.store.compute = dtype
    layer.store.hold_dense(dtype)
    scaled = Scaled(layer, Site("l", "value", "output", 48))
    torch.nn.init.normal_(scaled.delta, std=0.1)
    x, upstream = torch.randn(2, 5, 64), torch.randn(2, 5, 48)
    found = []
    for ours in (False, True):
        given, saved = x.clone().requires_grad_(), list[torch.Tensor]()
        scaled.delta.grad = None
        with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # noqa: B023
            y = scaled(given) if ours else layer(given) * scaled.vector()
        y.backward(upstream)
        found.append((y.detach(), given.grad, scaled.delta.grad.clone()))
        kept = [t.dtype for t in saved if tuple(t.shape) == (2, 5, 48)]
        assert kept == [dtype if ours else torch.float32]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
