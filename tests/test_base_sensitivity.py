"""What each layer's rounding costs, held against the divergence itself; and bits that are spent where they help most."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import ALL, DECODERS, ids, tiny
from tiny_build import write_base
from tiny_seq2seq import SEQ2SEQ, tiny_seq2seq

from qia3.base import load
from qia3.base.load import Asked, load_base
from qia3.base.modules import GridLinear
from qia3.base.quantise import Form, Grid, float_weight, quantise_model
from qia3.base.sensitivity import choose, divergences, spend
from qia3.errors import BaseModelError
from qia3.ia3.mix import Within, _groups, named, spelled
from qia3.ia3.roles import find_roles

GRID = Grid(32, symmetric=False)


def quiet(parts, title):
    return parts


def bits_of(model) -> float:
    stores = [m.store for m in model.modules() if isinstance(m, GridLinear)]
    return 8 * sum(s.grid.nbytes for s in stores) / sum(s.inputs * s.outputs for s in stores)


def rounded(model, block: int = 32) -> dict:
    """Every linear layer at 4 bits."""
    grid = Grid(block, symmetric=False)
    return {n: grid.store(n, float_weight(model.get_submodule(n)).detach(), None) for n in find_roles(model).linears}


# gpt2: tied; gemma3: tied and scaled; t5: tied to both stacks' embeddings; bart: those are scaled
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", *(["t5", "bart"] if ALL else [])])
def test_the_estimate_is_the_divergence_of_each_layer_alone(family):
    """Exact KL of a small step towards the rounded weight, over the square of the step: what the sampled scores
    estimate.
    """
    model = tiny_seq2seq(family) if family in SEQ2SEQ else tiny(family)
    step, tokens = 0.02, ids(128, 32)
    every = rounded(model)
    stores = {name: every[name] for name in [*every][:: 5 if family in SEQ2SEQ else 1] + [*every][-1:]}  # the head last
    found = divergences(model, stores, tokens, quiet)
    exact = {name: divergence(model, model.get_submodule(name), store, step, tokens) for name, store in stores.items()}
    assert sum(found.values()) == pytest.approx(sum(exact.values()), rel=0.1)
    for name in exact:
        assert found[name] == pytest.approx(exact[name], rel=0.6), name  # 128 sampled scores each


@torch.no_grad()
def divergence(model, layer, store, step: float, tokens) -> float:
    """Nats a position over step^2, every word of the vocabulary counted, in float64."""
    model.double()
    reference = model(**given_to(model, tokens)).logits.log_softmax(-1)
    kept, weight = layer.weight.clone(), float_weight(layer)  # of a tied head the embedding, too: it is one tensor
    weight.lerp_(store.dense(torch.float64), step)
    moved = model(**given_to(model, tokens)).logits.log_softmax(-1)
    layer.weight.copy_(kept)
    model.float()
    return float((reference.exp() * (reference - moved)).sum(-1).mean()) / step**2


def given_to(model, tokens) -> dict[str, torch.Tensor]:
    """To an encoder-decoder the first half, closed by its end; its decoder starts with 0 and goes on."""
    if not model.config.is_encoder_decoder:
        return {"input_ids": tokens}
    first, second = tokens[:, :16], tokens[:, 16:]
    return {
        "input_ids": torch.cat([first[:, :-1], torch.full_like(first[:, :1], model.config.eos_token_id)], 1),
        "decoder_input_ids": torch.cat([torch.zeros_like(second[:, :1]), second[:, :-1]], 1),
    }


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


@given(
    st.dictionaries(
        st.text(), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 100)), min_size=1, max_size=3), max_size=5
    ),
    st.integers(0, 400),
)
def test_bits_are_spent_where_they_take_away_most(listed, spare):
    """Against every choice of one option from each group."""
    options = {group: dict(enumerate(forms)) for group, forms in listed.items()}
    budget = spare + sum(min(size for _, size in forms) for forms in listed.values())
    chosen = spend(options, budget)
    assert chosen.keys() == options.keys()
    assert sum(options[group][form][1] for group, form in chosen.items()) <= budget
    every = [one for one in product(*listed.values()) if sum(size for _, size in one) <= budget]
    fewest = min(sum(nats for nats, _ in one) for one in every)
    assert sum(options[group][form][0] for group, form in chosen.items()) == pytest.approx(fewest)


@pytest.mark.parametrize(("units", "used"), [(1 << 14, 0.98), (1 << 9, 0.8)])
@pytest.mark.parametrize("seed", range(3))
def test_large_budgets_are_counted_in_parts_and_never_exceeded(units, used, seed, monkeypatch):
    """Each group is rounded up to whole parts: the coarser they are, the more is left over."""
    monkeypatch.setattr("qia3.base.sensitivity.UNITS", units)
    random = np.random.default_rng(seed)
    options = {
        str(i): {form: (float(random.random()), int(random.integers(10**5, 10**7))) for form in range(3)}
        for i in range(200)
    }
    least, most = (sum(pick(size for _, size in forms.values()) for forms in options.values()) for pick in (min, max))
    budget = (2 * least + most) / 3
    chosen = spend(options, budget)
    assert used * budget < sum(options[group][form][1] for group, form in chosen.items()) <= budget


def test_of_options_that_lose_the_same_the_first_is_taken():
    """So a layer whose rows have no shorter block is not named as one that has."""
    assert spend(
        {"a": {"plain": (0.5, 10), "short": (0.5, 10)}, "b": {"plain": (0.5, 10), "short": (0.1, 12)}}, 100
    ) == {
        "a": "plain",
        "b": "short",
    }


@pytest.mark.parametrize("family", [*DECODERS, "t5 v1.1"])
@pytest.mark.parametrize("bits", [5.5, 6.5, 9.0])
def test_a_budget_is_kept_and_what_it_chose_can_be_named(family, bits, monkeypatch):
    """Naming the layers that a budget chose, as the report does, chooses the very same ones."""
    monkeypatch.setattr("qia3.ia3.mix.SHORT", 16)
    model = tiny_seq2seq(family) if family in SEQ2SEQ else tiny(family)
    chosen = Within(bits, quiet).find(model, GRID, ids(4, 32))
    again = named(chosen.eight_bit, [(int(block), roles) for block, roles in chosen.blocks.items()]).find(
        model, GRID, None
    )
    assert (again.own, again.eight_bit, again.blocks) == (chosen.own, chosen.eight_bit, chosen.blocks)
    quantise_model(model, Grid(32, False, own=chosen.own))
    forms = {n: Form(m.store.bits, m.store.block_size) for n, m in model.named_modules() if isinstance(m, GridLinear)}
    assert {name for name, form in forms.items() if form.bits == 8} == {
        name for name, form in chosen.own.items() if form.bits == 8
    }
    assert {name for name, form in forms.items() if form == Form(4, 16)} == {
        name for name, form in chosen.own.items() if form.bits == 4
    }
    assert bits_of(model) <= bits
    assert chosen.own if bits > 6 else True


def test_shorter_blocks_and_eight_bits_are_both_worth_their_bits(monkeypatch):
    """With both to choose from, no budget is spent worse than with 8 bits alone, and some are spent better."""
    model, tokens = tiny("llama"), ids(16, 32)
    groups = _groups(find_roles(model).linears)
    monkeypatch.setattr(
        "qia3.base.sensitivity.divergences", lambda model, stores, windows, track: errors(model, stores)
    )
    stores, lost = {block: rounded(model, block) for block in (32, 16)}, {}
    for bits, short in product((5.6, 6.0, 6.5, 7.0), (32, 16)):
        chosen = choose(model, groups, stores[32], GRID, short, bits, tokens, quiet)
        own = {name: form for group, form in chosen.items() for name in groups[group]}
        left = {name: stores[form.block_size][name] for name, form in own.items() if form.bits == 4}
        lost[bits, short] = sum(errors(model, left).values())
    assert all(lost[bits, 16] <= 1.001 * lost[bits, 32] for bits, _ in lost)  # shares are measured on some rows
    assert any(lost[bits, 16] < 0.97 * lost[bits, 32] for bits, _ in lost)


def errors(model, stores) -> dict[str, float]:
    """Squared errors of the weights, in the place of nats."""
    return {
        n: float((store.dense(torch.float32) - float_weight(model.get_submodule(n)).detach()).square().sum())
        for n, store in stores.items()
    }


def test_what_costs_nothing_gets_nothing():
    """Behind a down projection of zeros, rounding up and gate changes nothing: they are what a budget for all but one
    layer leaves out.
    """
    model = tiny("llama")
    torch.nn.init.zeros_(model.model.layers[0].mlp.down_proj.weight)
    groups = _groups(find_roles(model).linears)
    assert len(groups["up@0"]) == 2
    stores = rounded(model)
    chosen = choose(model, groups, stores, GRID, 32, 9.0, ids(8, 32))  # block 32 at 8 bits takes 9.25
    left_out = {group for group, form in chosen.items() if form.bits == 4}
    assert {"up@0"} <= left_out <= {"up@0", "down@0"}
    nats = divergences(model, stores, ids(8, 32), quiet)
    assert all(nats[name] == 0 for name in groups["up@0"])
    assert all(nats[name] > 0 for group in groups for name in groups[group] if not group.endswith("@0"))


def test_names_are_ranges_of_layers():
    groups = ["head", *(f"{role}@{n}" for role in ("value", "down") for n in range(12))]
    assert spelled([], groups) == ()
    assert spelled(["down@11", "head", "down@3", "down@5", "down@4", "down@0"], groups) == ("down@0,3-5,11", "head")
    assert spelled([f"value@{n}" for n in range(12)], groups) == ("value",)


def test_too_few_bits_are_told():
    with pytest.raises(
        BaseModelError, match=r"bits = 4.2 is less than 4-bit codes take at block 32, 5\.\d+ per weight; raise bits"
    ):
        Within(4.2, quiet).find(tiny("llama"), GRID, ids(4, 32))
    with pytest.raises(BaseModelError, match="a calibration text to choose layers by"):
        Within(6, quiet).find(tiny("llama"), GRID, None)


def test_a_base_within_a_budget_is_the_base_with_those_layers_named(tmp_path, monkeypatch):
    """Both calibrated on the same text; kept, and found again without being made."""
    monkeypatch.setattr("qia3.ia3.mix.SHORT", 16)
    monkeypatch.setattr(load, "LEAST_KEPT", 0)
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path / "cache"))
    folder = str(write_base(tmp_path / "base"))
    made = load_base(Asked(folder, block_size=32, calibration="own", mix=Within(6.5, quiet)))
    assert made.eight_bit
    assert made.blocks
    with monkeypatch.context() as within:
        within.setattr(load, "_make", None)
        again = load_base(Asked(folder, block_size=32, calibration="own", mix=Within(6.5, quiet)))
    assert (again.eight_bit, again.blocks, again.fingerprint) == (made.eight_bit, made.blocks, made.fingerprint)
    blocks = [(int(block), roles) for block, roles in made.blocks.items()]
    assert (
        load_base(Asked(folder, block_size=32, calibration="own", mix=named(made.eight_bit, blocks))).fingerprint
        == made.fingerprint
    )
