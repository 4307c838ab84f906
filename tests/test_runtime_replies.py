"""Replies given together are those of each text alone, where nothing is rounded to int8."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_bundle as tiny
import tiny_pair as small

from qia3.bundle.opened import Bundle
from qia3.runtime import replies as together
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import prepare, reply, task_of
from qia3.runtime.engine import Engine
from qia3.runtime.load import open_engine
from qia3.runtime.replies import replies, rows_at_once

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
    monkeypatch.setattr(together, "ROWS", rows)
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
    monkeypatch.setattr(together, "ROWS", 3)
    assert [text for _, text in sorted(replies(engine, task, vectors, TEXTS))] == alone


def test_an_encoder_decoder_answers_one_after_the_other(pair):
    bank = AdapterBank(pair.bundle)
    assert rows_at_once(pair, 10) == 1
    for name in (None, *pair.bundle.adapters):
        vectors, task = bank.vectors(name), task_of(pair, None)
        alone = ["".join(reply(pair, task, vectors, text, max_new_tokens=6)) for text in TEXTS]
        found = sorted(replies(pair, replace(task, max_new_tokens=6), vectors, TEXTS))
        assert [text for _, text in found] == alone


def test_rows_are_as_many_as_their_caches_leave_room_for(engine, monkeypatch):
    each = 2 * tiny.LAYERS * tiny.KV_HEADS * tiny.SIZE * 4  # bytes of a position
    assert rows_at_once(engine, 10) == together.ROWS
    monkeypatch.setattr(together, "MOST_BYTES", 5 * 10 * each + 1)
    assert rows_at_once(engine, 10) == 5
    assert rows_at_once(engine, 51) == 1
