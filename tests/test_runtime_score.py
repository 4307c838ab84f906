"""Ranking over a trie equals scoring each choice alone, token by token."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_bundle as tiny

from qia3.bundle.opened import Bundle
from qia3.errors import QIA3Error
from qia3.runtime import score
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.engine import Engine
from qia3.runtime.score import best, log_sum_exp, rank, rank_batch

PROMPTS = [[5, 9, 250, 17, 33, 80], [8, 44, 3], [77, 6, 20, 31, 45, 120, 9, 2, 60]]
CHOICES = [
    [4, 1],
    [4, 9, 1],
    [4, 9, 7, 30, 1],
    [60, 1],
    [61, 62, 63, 64, 65, 1],
    [4, 9],
    [1],
    [60, 1],
]  # shared, nested, doubled


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine(Bundle.open(tiny.write_bundle(tmp_path_factory.mktemp("bundle"))), threads=1)


@pytest.fixture(scope="module")
def bank(engine):
    return AdapterBank(engine.bundle)


def slow(engine, prompt, choices, vectors):
    """Each choice alone, each of its tokens after a prompt that is run from the start."""

    def log_probability(tokens, token):
        wide = engine.prefill([tokens], vectors)[0][0].astype(np.float64)
        return wide[token] - np.log(np.exp(wide).sum())

    return [np.sum([log_probability([*prompt, *c[:i]], token) for i, token in enumerate(c)]) for c in choices]


@pytest.mark.parametrize("adapter", [None, "lamps"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_trie_equals_each_choice_alone(engine, bank, prompt, adapter):
    vectors = bank.vectors(adapter)
    np.testing.assert_allclose(
        rank(engine, prompt, CHOICES, vectors), slow(engine, prompt, CHOICES, vectors), atol=1e-4
    )


def test_the_trie_equals_the_numpy_model(engine, bank):
    w, vectors, prompt = tiny.weights(engine.bundle.architecture.vocab_size), bank.vectors("echo"), PROMPTS[0]
    for choice, found in zip(CHOICES, rank(engine, prompt, CHOICES, vectors), strict=True):
        wide = [tiny.logits(w, [*prompt, *choice[:i]], vectors) for i in range(len(choice))]
        expected = np.sum([x[t] - np.log(np.exp(x).sum()) for x, t in zip(wide, choice, strict=True)])
        assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_mean_divides_by_each_choices_own_tokens(engine, bank, prompt):
    vectors = bank.vectors("lamps")
    expected = [total / len(c) for total, c in zip(slow(engine, prompt, CHOICES, vectors), CHOICES, strict=True)]
    np.testing.assert_allclose(rank(engine, prompt, CHOICES, vectors, "mean"), expected, atol=1e-4)


@pytest.mark.parametrize("max_rows", [1, 2, 3, 5, 100])
def test_scores_do_not_depend_on_how_many_rows_go_at_once(engine, bank, monkeypatch, max_rows):
    whole = rank(engine, PROMPTS[0], CHOICES, bank.vectors("lamps"))
    monkeypatch.setattr(score, "MAX_ROWS", max_rows)
    np.testing.assert_allclose(rank(engine, PROMPTS[0], CHOICES, bank.vectors("lamps")), whole, atol=1e-4)


def test_prompts_together_equal_prompts_alone_each_with_its_adapter_and_choices(engine, bank, monkeypatch):
    names, choices = ["lamps", None, "echo"], [CHOICES, CHOICES[2:5], CHOICES[:1]]
    alone = [rank(engine, p, c, bank.vectors(n)) for p, c, n in zip(PROMPTS, choices, names, strict=True)]
    for max_rows in (score.MAX_ROWS, 4):
        monkeypatch.setattr(score, "MAX_ROWS", max_rows)
        together = rank_batch(engine, PROMPTS, choices, bank.rows(names))
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_allclose(b, a, atol=2e-5)


@pytest.mark.parametrize("by", ["sum", "mean"])
@pytest.mark.parametrize("sure", [0.0, 0.01, 1.0])
def test_the_best_alone_is_the_one_that_ranks_first(engine, bank, monkeypatch, by, sure):
    """Drawn questions whose answers share beginnings; the threshold decides the way and not the answer."""
    monkeypatch.setattr(score, "SURE", sure)
    generator = np.random.default_rng(3)
    for _ in range(25):
        prompt = generator.integers(2, 200, 5).tolist()
        choices = [[*generator.integers(2, 5, generator.integers(1, 4)).tolist(), 1] for _ in range(6)]
        vectors = bank.vectors(str(generator.choice(["lamps", "echo"])))
        expected = rank(engine, prompt, choices, vectors, by)
        assert best(engine, prompt, choices, vectors, by) == int(expected.argmax())
    assert best(engine, PROMPTS[0], [[4, 1], [60, 1], [4, 1]], bank.vectors("lamps")) != 2  # the first of equal ones


def test_an_answer_that_is_well_ahead_is_walked_alone(engine, monkeypatch):
    """One step of one row where its end is certain too; the others where it is not."""
    rows = []

    def told(first, later):
        logits = np.zeros((1, engine.vocabulary), np.float32)
        logits[0, 60] = first

        def step(tokens, cache, vectors):
            rows.append(len(tokens))
            after = np.zeros((len(tokens), engine.vocabulary), np.float32)
            after[:, 1] = later
            return after, cache

        monkeypatch.setattr(engine, "prefill", lambda *_, **__: (logits, Fixed()))
        monkeypatch.setattr(engine, "step", step)
        rows.clear()
        return best(engine, [5], [[4, 1], [60, 1], [61, 1]], {})

    class Fixed:
        def expand(self, index):
            return self

    assert (told(30.0, 30.0), rows) == (1, [1])
    assert (told(2.0, 30.0), rows) == (1, [1])
    assert (told(2.0, 0.0), rows[0], len(rows)) == (1, 1, 2)
    assert (told(0.5, 30.0), rows) == (1, [3])


def test_one_step_a_depth_over_distinct_prefixes(engine, monkeypatch):
    widths = []
    step = Engine.step
    monkeypatch.setattr(
        Engine,
        "step",
        lambda self, tokens, cache, vectors: widths.append(len(tokens)) or step(self, tokens, cache, vectors),
    )
    rank(engine, PROMPTS[0], CHOICES, {})
    # 4, 60 and 61; 4-9 and 61-62; 4-9-7 and 61..63; 4-9-7-30 and 61..64; 61..65
    assert widths == [3, 2, 2, 2, 1]


def test_nothing_to_rank_is_told(engine):
    for nothing in ([], [[4], []]):
        with pytest.raises(QIA3Error, match="nothing to rank"):
            best(engine, [5], nothing, {})
    for choices in ([], [[]], [[4], []]):
        with pytest.raises(QIA3Error, match="nothing to rank"):
            rank(engine, PROMPTS[0], choices, {})


def test_choices_that_run_out_of_the_context_are_told(engine):
    with pytest.raises(QIA3Error, match="do not fit"):
        rank(engine, [3] * tiny.CONTEXT, [[4, 1]], {})


def test_log_sum_exp_of_large_logits():
    x = np.array([[1000.0, 1000.0], [-1000.0, -1000.0]], np.float32)
    np.testing.assert_allclose(log_sum_exp(x), [1000 + np.log(2), -1000 + np.log(2)])
