"""Rows that join and leave between steps are each what they would be alone: against numpy, one position at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_bundle as tiny

from qia3.bundle.opened import Bundle
from qia3.errors import QIA3Error
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.cache import untouched
from qia3.runtime.engine import Engine
from qia3.runtime.score import rank
from qia3.runtime.slots import Prompt, Slots
from qia3.runtime.walk import Walk, Walker, shares

NAMES = [None, "lamps", "echo"]
NEAR = {"atol": 2e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.open(tiny.write_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def engine(bundle):
    return Engine(bundle, threads=1)


@pytest.fixture(scope="module")
def bank(bundle):
    return AdapterBank(bundle)


@pytest.fixture(scope="module")
def weights(bundle):
    return tiny.weights(bundle.architecture.vocab_size)


def whole(prompt: Prompt) -> np.ndarray:
    while (logits := prompt.advance()) is None:
        pass
    return logits


def test_rows_come_and_go_and_each_is_as_if_alone(engine, bank, weights):
    rng, slots, texts = np.random.default_rng(3), Slots(engine, rows=4, capacity=20), []
    steps = joined = moved = 0
    while steps < 40:
        if not slots.full and (not texts or rng.random() < 0.4):
            tokens, name = rng.integers(2, 300, rng.integers(1, 12)).tolist(), NAMES[rng.integers(3)]
            prompt = Prompt(engine, tokens, bank.vectors(name), piece=int(rng.integers(1, 6)))
            np.testing.assert_allclose(whole(prompt)[0], tiny.logits(weights, tokens, bank.vectors(name)), **NEAR)
            assert slots.join(prompt.cache, bank.vectors(name)) == len(texts)
            texts.append((tokens, name))
            joined += 1
        new = rng.integers(2, 300, len(texts)).tolist()
        found = slots.step(new)
        steps += 1
        for i, ((tokens, name), token) in enumerate(zip(texts, new, strict=True)):
            tokens.append(token)
            np.testing.assert_allclose(found[i], tiny.logits(weights, tokens, bank.vectors(name)), **NEAR)
        for row in reversed([i for i, (tokens, _) in enumerate(texts) if len(tokens) == 20 or rng.random() < 0.1]):
            last = slots.leave(row)
            moved += last is not None
            assert last == (None if row == len(texts) - 1 else len(texts) - 1)
            texts[row] = texts[-1]
            texts.pop()
            assert len(slots) == len(texts)
    assert joined > 8
    assert moved > 2


def test_a_prompt_goes_on_from_what_was_begun(engine, bank, weights):
    vectors = bank.vectors("echo")
    engine.begin([5, 9, 250], vectors)
    try:
        prompt = Prompt(engine, [5, 9, 250, 17, 33], vectors, piece=1)
        assert prompt.rest == [17, 33]
        np.testing.assert_allclose(whole(prompt)[0], tiny.logits(weights, [5, 9, 250, 17, 33], vectors), **NEAR)
        assert Prompt(engine, [5, 9, 250, 17], bank.vectors("lamps")).rest == [5, 9, 250, 17]
    finally:
        engine.begun.clear()


@pytest.mark.parametrize("options", [{"mode": "merged"}, {"required": True}, {"all_logits": True}])
def test_every_kind_of_bundle_has_slots(tmp_path, options):
    engine = Engine(Bundle.open(tiny.write_bundle(tmp_path / "b", **options)), threads=1)
    vectors = AdapterBank(engine.bundle).vectors("lamps")
    slots, rows = Slots(engine, rows=2), [[5, 9, 250], [8, 44, 3, 190, 7]]
    for tokens in rows:
        prompt = Prompt(engine, tokens, vectors)
        whole(prompt)
        slots.join(prompt.cache, vectors)
    found = slots.step([40, 50])
    for i, tokens in enumerate([[*rows[0], 40], [*rows[1], 50]]):
        np.testing.assert_allclose(found[i], engine.prefill([tokens], vectors)[0][0], **NEAR)


def test_what_does_not_fit_is_refused(engine, bank):
    slots, vectors = Slots(engine, rows=1, capacity=4), bank.vectors(None)
    long = Prompt(engine, [5, 9, 250, 17, 33], vectors)
    whole(long)
    with pytest.raises(QIA3Error, match="no room for 5 positions in row 0 of 1, whose capacity is 4"):
        slots.join(long.cache, vectors)
    fits = Prompt(engine, [5, 9, 250], vectors)
    whole(fits)
    slots.join(fits.cache, vectors)
    with pytest.raises(QIA3Error, match="no room"):
        slots.join(fits.cache, vectors)
    slots.step([40])
    with pytest.raises(QIA3Error, match="row 0 has used all its 4 positions"):
        slots.step([41])
    with pytest.raises(QIA3Error, match="row 1 is not in use"):
        slots.leave(1)


CHOICES = [[7, 1], [7, 30, 1], [7, 30, 31, 1], [9, 1], [40, 41, 42, 1], [40, 41, 43, 1], [8]]


@pytest.mark.parametrize(("rows", "by"), [(1, "sum"), (3, "mean"), (5, "sum")])
def test_a_ranking_that_walks_in_rows_beside_others_is_the_one_that_is_made_alone(engine, bank, weights, rows, by):
    tokens, vectors, slots = [5, 9, 250], bank.vectors("lamps"), Slots(engine, rows=6, capacity=20)
    other = Prompt(engine, [8, 44], bank.vectors("echo"))
    whole(other)
    slots.join(other.cache, other.vectors)
    prompt = Prompt(engine, tokens, vectors)
    walk = Walk(CHOICES, whole(prompt), by)
    walkers = [Walker(walk, share, len(tokens)) for share in shares(walk.left, rows)]
    assert len(walkers) == rows
    for _ in walkers:
        slots.join(prompt.cache, vectors)
    told, text = [], [8, 44]
    while walkers:
        if len(told) == 2 and len(walkers) > 1:  # one gives its row back, and the rest of its share to another
            walkers[0].give(walkers[1])
            slots.leave(1)
            walkers[0] = walkers[-1]
            walkers.pop()
        found = slots.step([30 + len(told), *(w.newest for w in walkers)])
        text.append(30 + len(told))
        np.testing.assert_allclose(found[0], tiny.logits(weights, text, other.vectors), **NEAR)
        told.append(len(walkers))
        for i in reversed(range(len(walkers))):
            length = walkers[i].take(found[i + 1])
            if length is None:
                slots.leave(i + 1)
                walkers[i] = walkers[-1]
                walkers.pop()
            else:
                slots.back(i + 1, length)
    assert walk.open == 0
    np.testing.assert_allclose(walk.scores, rank(engine, tokens, CHOICES, vectors, by), atol=1e-4)
    assert rows > 1 or len(told) == len(walk.left) == 8  # a step for each prefix
    with pytest.raises(ValueError, match="positions, not"):
        slots.back(0, 99)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's account of memory")
def test_room_that_is_not_written_to_takes_no_memory():
    """A first position in each of 64 rows of 2 MiB: 64 pages, not 64 huge ones."""

    def resident() -> int:
        return int(
            next(
                line.split()[1]
                for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmRSS")
            )
        )

    rows = untouched((64, 1, 8192, 64))
    before = resident()
    rows[:, :, 0] = 1
    assert rows.sum() == 64 * 64
    assert resident() - before < 64 * 2048 // 4  # KiB; reading maps the page of zeros, which is nobody's
