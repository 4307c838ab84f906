"""What each layer's rounding costs, held against the divergence itself; and bits that are spent where they help most."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import DECODERS, ids, tiny
from tiny_build import write_base

from qia3.base import load
from qia3.base.load import load_base
from qia3.base.modules import GridLinear
from qia3.base.quantise import Grid, float_weight, quantise_model
from qia3.base.sensitivity import choose, divergences, spend
from qia3.errors import BaseModelError
from qia3.ia3.eight_bit import Within, _groups, eight_bit, spelled
from qia3.ia3.roles import find_roles

GRID = Grid(32, symmetric=False)


def quiet(parts, title):
    return parts


def bits_of(model) -> float:
    stores = [m.store for m in model.modules() if isinstance(m, GridLinear)]
    return 8 * sum(s.grid.nbytes for s in stores) / sum(s.inputs * s.outputs for s in stores)


def rounded(model) -> dict:
    """Every linear layer's 4-bit form."""
    return {n: GRID.store(n, float_weight(model.get_submodule(n)).detach(), None) for n in find_roles(model).linears}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])  # gpt2: tied; gemma3: tied and scaled
def test_the_estimate_is_the_divergence_of_each_layer_alone(family):
    """Exact KL of a small step towards the rounded weight, over the square of the step: what the sampled scores estimate."""
    model, step, tokens = tiny(family), 0.02, ids(128, 32)
    stores = rounded(model)
    found = divergences(model, stores, tokens, quiet)
    exact = {name: divergence(model, model.get_submodule(name), store, step, tokens) for name, store in stores.items()}
    assert sum(found.values()) == pytest.approx(sum(exact.values()), rel=0.1)
    for name in exact:
        assert found[name] == pytest.approx(exact[name], rel=0.6), name  # 128 sampled scores each


@torch.no_grad()
def divergence(model, layer, store, step: float, tokens) -> float:
    """Nats a position over step^2, every word of the vocabulary counted, in float64."""
    model.double()
    reference = model(input_ids=tokens).logits.log_softmax(-1)
    kept, weight = layer.weight.clone(), float_weight(layer)  # of a tied head the embedding, too: it is one tensor
    weight.lerp_(store.dense(torch.float64), step)
    moved = model(input_ids=tokens).logits.log_softmax(-1)
    layer.weight.copy_(kept)
    model.float()
    return float((reference.exp() * (reference - moved)).sum(-1).mean()) / step**2


def test_windows_are_taken_whole_and_all_of_them():
    """In short sequences attention averages over few positions, and values look worse than they are."""
    model, tokens, seen = tiny("llama"), ids(20, 64), list[torch.Tensor]()
    stores = rounded(model)
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given["input_ids"]), with_kwargs=True)
    divergences(model, stores, tokens, quiet)
    assert len(seen) > 1
    assert torch.equal(torch.cat(seen), tokens)


def test_the_model_is_left_as_it_was():
    model = tiny("llama")
    before = dict(model.named_modules())
    logits, trained = model(input_ids=ids()).logits, [p.requires_grad for p in model.parameters()]
    divergences(model, rounded(model), ids(4, 32), quiet)
    assert list(dict(model.named_modules())) == list(before)
    assert all(model.get_submodule(n) is m for n, m in before.items())
    assert [p.requires_grad for p in model.parameters()] == trained
    torch.testing.assert_close(model(input_ids=ids()).logits, logits, rtol=0, atol=0)


@given(st.dictionaries(st.text(), st.tuples(st.floats(0, 1), st.integers(1, 100)), max_size=8), st.integers(0, 500))
def test_bits_are_spent_where_they_take_away_most(gains, spare):
    """Against every subset."""
    taken = spend(gains, spare)
    assert len(set(taken)) == len(taken)
    assert sum(gains[name][1] for name in taken) <= spare
    subsets = chain.from_iterable(combinations(gains.values(), n) for n in range(len(gains) + 1))
    most = max(sum(nats for nats, _ in some) for some in subsets if sum(cost for _, cost in some) <= spare)
    assert sum(gains[name][0] for name in taken) == pytest.approx(most)


def test_large_budgets_are_counted_in_parts_and_never_exceeded():
    random = np.random.default_rng(0)
    gains = {str(i): (float(random.random()), int(random.integers(10**5, 10**7))) for i in range(200)}
    spare = sum(cost for _, cost in gains.values()) / 3
    taken = spend(gains, spare)
    assert 0.98 * spare < sum(gains[name][1] for name in taken) <= spare


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("bits", [5.5, 6.5, 9.0])
def test_a_budget_is_kept_and_what_it_chose_can_be_named(family, bits):
    """Naming the layers that a budget chose, as the report does, chooses the very same ones."""
    model = tiny(family)
    chosen = Within(bits, quiet).find(model, GRID, ids(4, 32))
    assert eight_bit(chosen.roles).find(model, GRID, None).names == chosen.names
    quantise_model(model, 32, symmetric=False, eight_bit=chosen.names)
    at_eight = {n for n, m in model.named_modules() if isinstance(m, GridLinear) and m.store.bits == 8}
    assert at_eight == chosen.names
    assert bits_of(model) <= bits
    assert chosen.names if bits > 6 else True


def test_what_costs_nothing_is_chosen_last():
    """Behind a down projection of zeros, rounding up and gate changes nothing: they are what a budget for all but one layer leaves out."""
    model = tiny("llama")
    torch.nn.init.zeros_(model.model.layers[0].mlp.down_proj.weight)
    groups = _groups(find_roles(model).linears)
    assert len(groups["up@0"]) == 2
    left_out = set(groups) - set(choose(model, groups, rounded(model), GRID, 9.0, ids(8, 32)))  # block 32 at 8 bits takes 9.25
    assert {"up@0"} <= left_out <= {"up@0", "down@0"}
    nats = divergences(model, rounded(model), ids(8, 32), quiet)
    assert all(nats[name] == 0 for name in groups["up@0"])
    assert all(nats[name] > 0 for group in groups for name in groups[group] if not group.endswith("@0"))


def test_names_are_ranges_of_layers():
    groups = ["head", *(f"{role}@{n}" for role in ("value", "down") for n in range(12))]
    assert spelled([], groups) == ()
    assert spelled(["down@11", "head", "down@3", "down@5", "down@4", "down@0"], groups) == ("down@0,3-5,11", "head")
    assert spelled([f"value@{n}" for n in range(12)], groups) == ("value",)


def test_too_few_bits_are_told():
    with pytest.raises(BaseModelError, match=r"bits = 4.2 is less than 4-bit codes take at block 32, 5\.\d+ a weight; give more"):
        Within(4.2, quiet).find(tiny("llama"), GRID, ids(4, 32))
    with pytest.raises(BaseModelError, match="by what they do to a text"):
        Within(6, quiet).find(tiny("llama"), GRID, None)


def test_a_base_within_a_budget_is_the_base_with_those_layers_named(tmp_path, monkeypatch):
    """Both calibrated on the same text; kept, and found again without being made."""
    monkeypatch.setattr(load, "LEAST_KEPT", 0)
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path / "cache"))
    folder = str(write_base(tmp_path / "base"))
    made = load_base(folder, 16, False, "own", eight_bit=Within(7.0, quiet))
    assert made.eight_bit
    monkeypatch.setattr(load, "_make", None)
    assert load_base(folder, 16, False, "own", eight_bit=Within(7.0, quiet)).eight_bit == made.eight_bit
    monkeypatch.undo()
    assert load_base(folder, 16, False, "own", eight_bit=eight_bit(made.eight_bit)).fingerprint == made.fingerprint
