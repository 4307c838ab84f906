"""Each loss against the paper's formula: plain loops over one sequence at a time, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qia3.batching.rows import Totals
from qia3.batching.tables import NAMES
from qia3.train.losses import Answers, length_normalised, losses, unlikelihood
from qia3.train.model import log_probabilities


def probabilities(seed: int) -> list[list[list[float]]]:
    """examples x answers x tokens, the first answer of each being right. Some examples have no wrong answer."""
    rng = np.random.default_rng(seed)
    return [
        [rng.uniform(0.001, 0.99, rng.integers(1, 6)).tolist() for _ in range(rng.integers(1, 5))] for _ in range(4)
    ]


def laid_out(examples: list[list[list[float]]]) -> tuple[Answers, Totals]:
    flat = [(e, a, p) for e, answers in enumerate(examples) for a, p in enumerate(answers)]
    log_p = torch.tensor([math.log(x) for _, _, p in flat for x in p], requires_grad=True)
    owner = torch.tensor([i for i, (_, _, p) in enumerate(flat) for _ in p])
    answers = Answers(log_p, owner, torch.tensor([e for e, _, _ in flat]), torch.tensor([a == 0 for _, a, _ in flat]))
    right, wrong = (sum(len(p) for _, a, p in flat if (a == 0) == side) for side in (True, False))
    return answers, Totals(right, wrong, sum(len(e) > 1 for e in examples))


def slow_lm(examples):
    logs = [math.log(p) for answers in examples for p in answers[0]]
    return -sum(logs) / len(logs)


def slow_unlikelihood(examples):
    logs = [math.log(1 - p) for answers in examples for wrong in answers[1:] for p in wrong]
    return -sum(logs) / len(logs)


def slow_length_normalised(examples):
    each = []
    for answers in (a for a in examples if len(a) > 1):
        beta = [sum(math.log(p) for p in tokens) / len(tokens) for tokens in answers]
        each.append(-math.log(math.exp(beta[0]) / sum(map(math.exp, beta))))
    return sum(each) / len(each)


@pytest.mark.parametrize("seed", range(8))
def test_each_loss_is_the_papers_formula(seed):
    examples = probabilities(seed)
    found = losses(*laid_out(examples), NAMES)
    slow = [slow_lm(examples), slow_unlikelihood(examples), slow_length_normalised(examples)]
    np.testing.assert_allclose(found.detach().numpy(), slow, rtol=2e-5)


def test_the_worked_example():
    answers, totals = laid_out([[[0.5, 0.5], [0.25, 1.0]]])
    lm, ul, ln = losses(answers, totals, NAMES).tolist()
    assert lm == pytest.approx(math.log(2))
    assert ln == pytest.approx(math.log(2))
    assert ul == pytest.approx((-math.log(0.75) + 23 * math.log(2)) / 2, rel=1e-5)


def test_a_batch_in_parts_gives_the_batch():
    examples = probabilities(3)
    whole, totals = laid_out(examples)
    parts = [losses(laid_out([example])[0], totals, NAMES) for example in examples]
    torch.testing.assert_close(torch.stack(parts).sum(0), losses(whole, totals, NAMES))


def test_a_certain_wrong_token_has_a_finite_loss_and_a_bounded_pull_on_its_logits():
    for height in (5.0, 20.0, 60.0, 200.0):
        logits = torch.tensor([height, 0.0, -3.0], requires_grad=True)
        log_p = logits.log_softmax(0)[:1]
        answers = Answers(log_p, torch.tensor([0]), torch.tensor([0]), torch.tensor([False]))
        loss = unlikelihood(answers, 1)
        (pull,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert pull.abs().max() <= 1.01


def test_an_unlikely_wrong_token_keeps_its_precision():
    """1 - p in float32 would round p = 1e-9 away, and its gradient with it."""
    log_p = torch.tensor([math.log(1e-3)], requires_grad=True)
    answers = Answers(log_p, torch.tensor([0]), torch.tensor([0]), torch.tensor([False]))
    (slope,) = torch.autograd.grad(unlikelihood(answers, 1), log_p)
    assert float(slope) == pytest.approx(1e-3 / (1 - 1e-3), rel=1e-5)


def test_generation_has_the_first_loss_alone():
    answers, totals = laid_out([[[0.3, 0.9]], [[0.5]]])
    lm, ul, ln = losses(answers, totals, NAMES).tolist()
    assert (lm > 0, ul, ln) == (True, 0, pytest.approx(0, abs=1e-6))


def test_the_highest_scores_do_not_overflow():
    log_p = torch.tensor([-300.0, -900.0], requires_grad=True)
    answers = Answers(log_p, torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([False, True]))
    assert float(length_normalised(answers, 1).detach()) == pytest.approx(600)


@pytest.mark.parametrize("seed", range(3))
def test_log_probabilities_and_their_gradient_are_those_of_log_softmax(seed):
    """Slots that several tokens read, one that none reads, and a target that is asked for twice."""
    torch.manual_seed(seed)
    logits = (8 * torch.randn(5, 11, dtype=torch.float64)).requires_grad_()
    read, targets = torch.tensor([0, 1, 1, 3, 4, 4]), torch.tensor([3, 0, 7, 10, 2, 2])
    weight = torch.randn(6, dtype=torch.float64)
    found = log_probabilities(logits, read, targets)
    expected = logits.log_softmax(-1)[read, targets]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad((weight * found.exp()).sum(), logits),
        torch.autograd.grad((weight * expected.exp()).sum(), logits),
    )
    assert torch.autograd.gradcheck(lambda z: log_probabilities(z, read, targets), (logits,))
