"""Encoder-decoders: a batch computes what each prompt with each answer computes alone in transformers, losses and
gradients alike, packed or not.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import random_vectors
from tiny_pairs import PAIRS, RELATIVE, START, adapted_pair
from tiny_trees import forest

from qia3.batching.rows import count
from qia3.batching.tables import NAMES
from qia3.batching.trees import Tree
from qia3.train.collator import Collator
from qia3.train.compute import set_compute
from qia3.train.evaluate import rank_trees
from qia3.train.model import VectorModel, read_logits
from qia3.train.pairs import beside
from qia3.train.probe import packs

LONGER = {"longest": 12, "answer": 6}


def moved(name):
    """A base and vectors away from one."""
    model, scaled = adapted_pair(name)
    set_compute(model, None, torch.float32)  # holds the weights, which is quicker
    for part, vector in random_vectors(scaled).items():
        scaled[part].delta.data.copy_(0.3 * (torch.from_numpy(vector) - 1))
        scaled[part].precision = torch.float32
    return model, scaled


def slow_logits(model, prompt, answer, start):
    """One prompt and one answer, as transformers runs them where every token counts: float64 [answer, V]."""
    given, ahead = torch.tensor([prompt]), torch.tensor([[*start, *answer[:-1]]])
    out = model(
        input_ids=given,
        attention_mask=torch.ones_like(given),
        decoder_input_ids=ahead,
        decoder_attention_mask=torch.ones_like(ahead),
        use_cache=False,
    )
    return out.logits[0, len(start) - 1 :].double()


def slow_losses(model, trees, start):
    """T-Few's three losses, from the paper's formulas."""
    lm, ul, ln = [], [], []
    for tree in trees:
        beta = []
        for i, answer in enumerate(tree.answers):
            log_p = slow_logits(model, tree.prompt, answer, start).log_softmax(-1)
            each = [log_p[t, token] for t, token in enumerate(answer)]
            beta.append(sum(each) / len(each))
            if i == tree.right:
                lm += [-x for x in each]
            else:
                ul += [-torch.log(1 - x.exp()) for x in each]
        if len(beta) > 1:
            ln.append(-torch.stack(beta).log_softmax(0)[tree.right])
    return torch.stack([sum(x) / len(x) for x in (lm, ul, ln)])


def losses_and_gradients(model, scaled, batch):
    out = VectorModel(model, scaled, NAMES)(**batch)
    return out["parts"], torch.autograd.grad(out["loss"], [layer.delta for layer in scaled.values()])


@pytest.mark.parametrize(("name", "start"), [*((name, START) for name in PAIRS), ("t5", (1, 3)), ("bart", (1, 3))])
def test_losses_and_gradients_are_those_of_each_pair_alone(name, start):
    model, scaled = moved(name)
    trees = forest(0, examples=4, **LONGER)
    slow = slow_losses(model, trees, start)
    pulls = torch.autograd.grad(slow.sum(), [layer.delta for layer in scaled.values()])
    assert all(bool(pull.abs().max() > 1e-4) for pull in pulls)  # every vector has a say
    for limit in (1, 9, 10**9) if name in RELATIVE else (1,):
        parts, found = losses_and_gradients(model, scaled, beside(trees, start, limit, 96))
        torch.testing.assert_close(parts.double(), slow.detach(), rtol=1e-5, atol=1e-5)
        for one, other in zip(found, pulls, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_answers_share_a_row_where_distances_are_all_that_counts(name):
    model, _ = adapted_pair(name)
    assert packs(model, 12, START) == (name in RELATIVE)
    assert packs(model, 6, START) == (name in [*RELATIVE, "t5gemma"])  # a window of 7 is longer than its rows


@pytest.mark.parametrize("name", RELATIVE)
def test_long_answers_pack_past_the_distance_that_a_family_tells(name):
    """Answers of 30 tokens beside one of 2, where distances of 20 and more are one to it."""
    model, _ = adapted_pair(name)
    assert packs(model, 30, START)
    rng = np.random.default_rng(0)
    answers = tuple(tuple(rng.integers(3, 101, n).tolist()) for n in (30, 2, 27))
    tree = Tree((5, 6, 7), answers)
    batch = beside([tree], START, 10**9, 10**9)
    assert batch["input_ids"].shape == (1, 59)
    slow = torch.cat([slow_logits(model, tree.prompt, a, START) for a in answers])
    torch.testing.assert_close(read_logits(model, batch).double(), slow, rtol=1e-4, atol=1e-4)


def test_the_worked_example_of_the_header():
    tree, other = Tree((11, 12, 1), ((21, 2), (31, 32, 2))), Tree((13,), ((41, 42, 43, 2),))
    batch = beside([tree, other], (7,), 64, 10**9)
    assert batch["prompts"].tolist() == [[11, 12, 1], [13, 0, 0]]
    assert batch["prompt_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["source"].tolist() == [0, 1]
    assert batch["input_ids"].tolist() == [[7, 21, 7, 31, 32], [7, 41, 42, 43, 0]]
    assert batch["tree"].tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, -1]]
    assert batch["targets"].tolist() == [21, 2, 31, 32, 2, 41, 42, 43, 2]
    assert batch["places"][batch["read"]].tolist() == list(range(9))
    assert "position_ids" not in batch
    alone = beside([tree, other], (7,), 1, 10**9)
    assert alone["input_ids"].tolist() == [[7, 21, 0, 0], [7, 31, 32, 0], [7, 41, 42, 43]]
    assert alone["source"].tolist() == [0, 0, 1]
    assert "tree" not in alone


@pytest.mark.parametrize("limit", [1, 7, 16, 10**9])
@pytest.mark.parametrize("seed", range(4))
def test_rows_keep_to_the_limit_and_to_one_prompt_and_hold_every_answer_once(seed, limit):
    trees = forest(seed, examples=8, **LONGER)
    batch = beside(trees, START, limit, 96)
    assert batch["input_ids"].shape[1] <= max(limit, *(len(a) for t in trees for a in t.answers))
    row = batch["places"][batch["read"]] // batch["input_ids"].shape[1]
    assert (batch["source"][row] == batch["example"][batch["answer"]]).all()
    assert batch["targets"].tolist() == [token for t in trees for a in t.answers for token in a]
    whole = [*vars(count(trees)).values()]
    assert batch["totals"].tolist() == whole
    assert beside(trees[:2], START, limit, 96, count(trees))["totals"].tolist() == whole  # of a step in parts


def test_few_long_rows_or_many_short_ones_by_what_they_cost():
    """One example with many answers beside seven with one: a row of all of them would be padding for the seven."""
    many = Tree((3, 4), tuple((i, 2) for i in range(12)))
    few = [Tree((5, 6), ((7, 2),))] * 7
    shape = beside([many, *few], START, 512, 512)["input_ids"].shape
    assert shape[1] < 24
    assert shape[0] * shape[1] < 8 * 24
    assert beside([many], START, 512, 512)["input_ids"].shape == (1, 24)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_encoder_runs_once_for_each_example_and_the_head_where_an_answer_is_predicted(name):
    model, scaled = adapted_pair(name)
    trees, seen = forest(1, **LONGER), []
    model.get_encoder().register_forward_hook(lambda _, __, out: seen.append(tuple(out.last_hidden_state.shape)))
    model.get_output_embeddings().register_forward_hook(lambda _, given, __: seen.append(given[0].shape[:2].numel()))
    VectorModel(model, scaled)(**beside(trees, START, 1, 96))
    longest, tokens = max(len(t.prompt) for t in trees), sum(len(a) for t in trees for a in t.answers)
    assert seen == [(len(trees), longest, 96), tokens]


@pytest.mark.parametrize("name", ["t5 v1.1", "marian"])
def test_ranking_scores_are_those_of_each_pair_alone(name):
    model, _ = moved(name)
    trees = forest(3, examples=5, **LONGER)
    found = rank_trees(model, trees, Collator(name in RELATIVE, 64, 96, START), batch=2)
    for tree, scores in zip(trees, found.scores, strict=True):
        for score, answer in zip(scores, tree.answers, strict=True):
            log_p = slow_logits(model, tree.prompt, answer, START).log_softmax(-1)
            assert score == pytest.approx(float(log_p[range(len(answer)), answer].sum().detach()), abs=2e-5)
    right = [int(s.argmax()) == t.right for s, t in zip(found.scores, trees, strict=True)]
    assert found.accuracy == sum(right) / len(right)
