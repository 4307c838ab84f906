"""Questions asked together are answered as each alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_bundle as tiny
import tiny_pair as small

from qia3.bundle.opened import Bundle
from qia3.errors import ConfigError
from qia3.runtime import several
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import label, prepare, reply, task_of
from qia3.runtime.engine import Engine
from qia3.runtime.load import open_engine
from qia3.runtime.score import best_batch, rank
from qia3.runtime.several import labels, replies, rows_at_once

TEXTS = ["a", "the hall", "x y z", "hello there", "7", "é", "a longer text", "é é é", "on"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine(Bundle.open(tiny.write_bundle(tmp_path_factory.mktemp("bundle"))), threads=1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return open_engine(Bundle.open(small.write_bundle(tmp_path_factory.mktemp("pair"))), threads=1)


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
@pytest.mark.parametrize("adapter", [None, "echo", "lamps"])
@pytest.mark.parametrize("begun", [False, True])
def test_replies_together_equal_replies_alone(engine, monkeypatch, rows, adapter, begun):
    monkeypatch.setattr(several, "ROWS", rows)
    vectors = AdapterBank(engine.bundle).vectors(adapter)
    monkeypatch.setattr(engine, "begun", [])
    for most in (1, 2, 6, 40):  # 40 do not fit the context of 48
        task = replace(task_of(engine, "echo"), max_new_tokens=most)
        alone = ["".join(reply(engine, task, vectors, text)) for text in TEXTS]
        if begun:
            prepare(engine, task, vectors)
            assert engine.begun
        found = list(replies(engine, task, vectors, TEXTS))
        assert sorted(index for index, _ in found) == list(range(len(TEXTS)))
        assert [text for _, text in sorted(found)] == alone
    assert len(set(alone)) > 1


def test_replies_end_at_a_stop_token(engine, monkeypatch):
    """Tokens that some replies hold in the middle become ends: rows leave at different steps, and others join."""
    task, vectors = replace(task_of(engine, "echo"), max_new_tokens=12), AdapterBank(engine.bundle).vectors("echo")
    seen = [engine.tokenizer.encode("".join(reply(engine, task, vectors, text))).ids for text in TEXTS]
    stop = tuple(dict.fromkeys(ids[min(i % 5, len(ids) - 1)] for i, ids in enumerate(seen) if ids))[:3]
    monkeypatch.setattr(type(engine.bundle), "stop_tokens", stop)
    alone = ["".join(reply(engine, task, vectors, text)) for text in TEXTS]
    assert len({len(text) for text in alone}) > 2
    monkeypatch.setattr(several, "ROWS", 3)
    assert [text for _, text in sorted(replies(engine, task, vectors, TEXTS))] == alone


@pytest.mark.parametrize("rows", [1, 2, 4, 16])
@pytest.mark.parametrize("ranking", ["sum", "mean"])
def test_labels_together_equal_labels_alone(engine, monkeypatch, rows, ranking):
    monkeypatch.setattr(several, "ROWS", rows)
    task, vectors = replace(task_of(engine, "lamps"), ranking=ranking), AdapterBank(engine.bundle).vectors("lamps")
    own = [None, ["lock", "play", "the hall"], None, ["a", "a b", "a b c", "b"], None, ["x"], None, None, ["on", "off"]]
    alone = [label(engine, task, vectors, *asked) for asked in zip(TEXTS, own, strict=True)]
    assert list(labels(engine, task, vectors, TEXTS, own)) == alone
    assert len(set(alone)) > 2


def test_labels_without_choices_say_so(engine):
    with pytest.raises(ConfigError, match="has no choices to rank"):
        list(labels(engine, task_of(engine, "echo"), {}, TEXTS, [["a", "b"], *[None] * (len(TEXTS) - 1)]))


@pytest.mark.parametrize("by", ["sum", "mean"])
def test_the_best_of_each_prompt_is_what_ranks_first(engine, by):
    """Drawn questions whose answers share beginnings, eight at once."""
    draws, bank = np.random.default_rng(4), AdapterBank(engine.bundle)
    for _ in range(6):
        prompts = [draws.integers(2, 200, draws.integers(1, 9)).tolist() for _ in range(8)]
        choices = [
            [[*draws.integers(2, 5, draws.integers(1, 4)).tolist(), 1] for _ in range(draws.integers(1, 7))]
            for _ in prompts
        ]
        vectors = bank.vectors(str(draws.choice(["lamps", "echo"])))
        expected = [int(rank(engine, p, c, vectors, by).argmax()) for p, c in zip(prompts, choices, strict=True)]
        assert best_batch(engine, prompts, choices, vectors, by) == expected


def test_an_encoder_decoder_answers_one_after_the_other(pair):
    bank = AdapterBank(pair.bundle)
    assert rows_at_once(pair, 10) == 1
    for name, task in pair.bundle.tasks.items():
        vectors, asked = bank.vectors(name if name in pair.bundle.adapters else None), task_of(pair, None, name)
        assert task.kind == asked.kind
        if asked.kind == "generate":
            alone = ["".join(reply(pair, asked, vectors, text)) for text in TEXTS]
            assert [text for _, text in sorted(replies(pair, asked, vectors, TEXTS))] == alone
        else:
            alone = [label(pair, asked, vectors, text) for text in TEXTS]
            assert list(labels(pair, asked, vectors, TEXTS, [None] * len(TEXTS))) == alone


def test_rows_are_as_many_as_their_caches_leave_room_for(engine, monkeypatch):
    each = 2 * tiny.LAYERS * tiny.KV_HEADS * tiny.SIZE * 4  # bytes of a position
    assert rows_at_once(engine, 10) == several.ROWS
    monkeypatch.setattr(several, "MOST_BYTES", 5 * 10 * each + 1)
    assert rows_at_once(engine, 10) == 5
    assert rows_at_once(engine, 51) == 1
