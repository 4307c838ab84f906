"""Packed trees: the same logits, losses and gradients as one plain row for each answer, in every family that can; and
bounded rows.
"""

from __future__ import annotations

import pytest
import torch
from tiny import DECODERS, FAMILIES, random_vectors, tiny
from tiny_trees import forest
from transformers import AutoConfig, AutoModelForCausalLM

from qia3.base.quantise import Grid, quantise_model
from qia3.batching.rows import Totals, count
from qia3.batching.tables import NAMES
from qia3.batching.trees import Tree, beginning, pieces, plan, singles
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach
from qia3.train.batches import lay_out, packed, padded, tree_mask
from qia3.train.model import VectorModel, read_logits
from qia3.train.probe import packs

WINDOWED = [f for f in DECODERS if "sliding_window" in FAMILIES[f]]


def adapted(family, **changes):
    model = tiny(family)
    for key, value in changes.items():
        setattr(model.config, key, value)
    quantise_model(model, Grid(32, False))
    scaled = attach(model, find_roles(model).sites)
    for name, vector in random_vectors(scaled).items():
        layer = scaled[name]
        offset = torch.from_numpy(vector) - 1
        layer.delta.data.copy_(0.3 * (offset if layer.rows is None else offset[layer.rows]))
        layer.precision = torch.float32
    return model, scaled


def loss_and_gradients(model, scaled, batch, names=NAMES):
    deltas = [layer.delta.requires_grad_(True) for layer in scaled.values()]
    loss = VectorModel(model, scaled, names)(**batch)["loss"]
    return loss.detach(), torch.autograd.grad(loss, deltas)


def slow_losses(model, trees):
    """T-Few's three losses from one sequence at a time."""
    lm, ul, ln = [], [], []
    for tree in trees:
        beta = []
        for i, answer in enumerate(tree.answers):
            log_p = model(input_ids=torch.tensor([tree.prompt + answer])).logits[0].double().log_softmax(-1)
            each = [log_p[len(tree.prompt) - 1 + t, token] for t, token in enumerate(answer)]
            beta.append(sum(each) / len(each))
            if i == tree.right:
                lm += [-x for x in each]
            else:
                ul += [-torch.log(1 - x.exp()) for x in each]
        if len(beta) > 1:
            ln.append(-torch.stack(beta).log_softmax(0)[tree.right])
    return sum(sum(x) / len(x) for x in (lm, ul, ln))


def layout_agrees(family, seed, model, scaled):
    trees = forest(seed, begin=3 * (seed % 2))
    plain, pulls = loss_and_gradients(model, scaled, padded(trees))
    torch.testing.assert_close(plain.double(), slow_losses(model, trees).detach(), rtol=1e-5, atol=1e-5)
    for rows in ([list(pieces(trees, 10**9))], plan(trees, 24, 96), plan(trees, 4, 96)):
        loss, found = loss_and_gradients(model, scaled, lay_out(trees, rows))
        torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
        for one, other in zip(found, pulls, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [f for f in DECODERS if f not in WINDOWED])
def test_packed_is_padded_is_one_sequence_at_a_time(family):
    model, scaled = adapted(family)
    assert packs(model, 20)
    for seed in range(3):
        layout_agrees(family, seed, model, scaled)


@pytest.mark.parametrize("family", WINDOWED)
def test_a_window_longer_than_the_longest_example_is_no_hindrance_and_a_shorter_one_is_seen(family, monkeypatch):
    model, _ = adapted(family)
    assert not packs(model, 20)
    monkeypatch.setitem(FAMILIES, family, FAMILIES[family] | {"sliding_window": 32})
    model, scaled = adapted(family)
    assert packs(model, 20)
    layout_agrees(family, 0, model, scaled)


def test_a_model_that_mixes_slots_without_attention_does_not_pack():
    config = AutoConfig.for_model("mamba", vocab_size=101, hidden_size=32, num_hidden_layers=1, state_size=4)
    assert not packs(AutoModelForCausalLM.from_config(config).eval(), 12)


@pytest.mark.parametrize("seed", range(4))
def test_generation_packs_to_the_same_loss(seed):
    model, scaled = adapted("llama")
    trees = [Tree(t.prompt, t.answers[:1]) for t in forest(seed, examples=7)]
    plain, pulls = loss_and_gradients(model, scaled, padded(trees), ["lm"])
    assert "tree" not in padded(trees)
    loss, found = loss_and_gradients(model, scaled, lay_out(trees, [list(pieces(trees, 10**9))]), ["lm"])
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
    for one, other in zip(found, pulls, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_worked_example_of_the_header():
    tree = Tree((11, 12), ((21, 2), (31, 32, 2)))
    batch = packed([tree], 64, 10**9)
    assert batch["input_ids"].tolist() == [[11, 12, 21, 31, 32]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 2, 3]]
    assert batch["branch"].tolist() == [[0, 0, 1, 2, 2]]
    assert batch["targets"].tolist() == [21, 2, 31, 32, 2]
    assert batch["places"][batch["read"]].tolist() == [1, 2, 1, 3, 4]
    assert batch["answer"].tolist() == [0, 0, 1, 1, 1]
    assert len(batch["places"]) == 4


def test_what_all_prompts_begin_with_stands_once_as_in_the_header():
    batch = packed([Tree((11, 12), ((21, 2),)), Tree((11, 13), ((21, 2),))], 64, 10**9)
    assert batch["input_ids"].tolist() == [[11, 12, 21, 13, 21]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 1, 2]]
    assert batch["tree"].tolist() == [[-2, 0, 0, 1, 1]]
    assert batch["branch"].tolist() == [[0, 0, 1, 0, 1]]
    seen = tree_mask(batch["tree"], batch["branch"], torch.float32)[0, 0] == 0
    assert seen.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 1, 1]]
    alone = lay_out([Tree((11, 12), ((21, 2),))] * 2, singles([Tree((11, 12), ((21, 2),))] * 2))
    assert alone["input_ids"].tolist() == [[11, 12, 21]] * 2
    assert "tree" not in alone


def test_a_prompt_that_others_begin_with_keeps_its_last_token():
    trees = [Tree((5, 6, 7), ((1,),)), Tree((5, 6, 7, 8), ((1,),)), Tree((5, 6, 7), ((1,),))]
    assert beginning(trees) == 2
    assert beginning([*trees, Tree((5,), ((1,),))]) == 0 == beginning([Tree((), ((1,),)), *trees])
    assert packed(trees, 64, 10**9)["input_ids"].tolist() == [[5, 6, 7, 8, 7, 7]]


def test_the_head_runs_only_where_an_answer_is_predicted():
    model, scaled = adapted("llama")
    trees, widths = forest(1), []
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: widths.append(args[0].shape[:2].numel())
    )
    for batch in (padded(trees), packed(trees, 64, 96)):
        VectorModel(model, scaled)(**batch)
    each = [len(t.answers[i]) for t in trees for i in range(len(t.answers))]
    shared = sum(len(t.answers) - 1 for t in trees)  # one slot begins all answers of a prompt
    assert widths == [sum(each), sum(each) - shared]


@pytest.mark.parametrize("limit", [4, 16, 40, 10**9])
@pytest.mark.parametrize("seed", range(5))
def test_rows_keep_to_the_limit_and_hold_every_answer_once(seed, limit):
    trees = forest(seed, examples=9, begin=2 * (seed % 2))
    rows = plan(trees, limit, 96)
    held = sorted((p.example, a) for row in rows for p in row for a in p.answers)
    assert held == [(e, a) for e, t in enumerate(trees) for a in range(len(t.answers))]
    used = packed(trees, limit, 96)["input_ids"].shape[1]
    assert used <= max(limit, *(t.longest_path - 1 for t in trees))


def test_the_plan_is_the_cheapest_count_of_rows():
    """The sizes of the header's example."""
    trees = [Tree(tuple(range(n)), ((1,),)) for n in (60, 55, 12, 10, 9)]
    trees = [Tree((100 + i, *t.prompt[1:]), t.answers) for i, t in enumerate(trees)]
    assert [[p.slots for p in row] for row in plan(trees, 128, 576)] == [[60, 10], [55, 12, 9]]
    assert len(plan(trees, 200, 10**9)) == 1
    assert len(plan([Tree((i, *range(49)), ((1,),)) for i in range(4)], 10**9, 64)) == 4
    begun = [Tree((1, 2, 3, 4, 5, *t.prompt[5:]), t.answers) for t in trees]
    begun = [Tree((*t.prompt[:5], i, *t.prompt[6:]), t.answers) for i, t in enumerate(begun)]
    assert [[p.slots for p in row] for row in plan(begun, 128, 10**9)] == [[60, 55, 12, 10, 9]]


def test_packing_runs_fewer_slots():
    answers = tuple((i, 2) for i in range(8))
    trees = [Tree((*range(30), i, *range(9)), answers) for i in range(4)]
    plain, tight = padded(trees), packed(trees, 512, 10**9)
    assert plain["input_ids"].numel() == 4 * 8 * 41
    assert tight["input_ids"].numel() == 30 + 4 * 18


def test_the_losses_divide_by_what_the_whole_batch_counts():
    trees = forest(2)
    whole = count(trees)
    assert whole == Totals(
        sum(len(t.answers[t.right]) for t in trees),
        sum(len(a) for t in trees for i, a in enumerate(t.answers) if i != t.right),
        sum(len(t.answers) > 1 for t in trees),
    )
    assert padded(trees[:2], whole)["totals"].tolist() == [whole.right, whole.wrong, whole.chosen]
    assert singles(trees[:1])[0][0].answers == (0,)


def test_logits_are_read_in_the_same_order_whatever_the_layout():
    model, _ = adapted("qwen2")
    trees = forest(4)
    torch.testing.assert_close(
        read_logits(model, packed(trees, 20, 96)), read_logits(model, padded(trees)), rtol=1e-4, atol=1e-4
    )
