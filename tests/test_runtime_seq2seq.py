"""The engine of an encoder and its decoder is the model: against numpy, in uneven batches, with an adapter a row."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_bundle as tiny
import tiny_pair as small

from qia3 import cli
from qia3.bundle.layout import ENCODER_GRAPH
from qia3.bundle.opened import Bundle
from qia3.errors import AdapterError, BundleError, ConfigError, QIA3Error
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import classify, prepare
from qia3.runtime.bench import bench
from qia3.runtime.engine import Engine, select_rows
from qia3.runtime.generate import generate
from qia3.runtime.load import open_engine
from qia3.runtime.readback import read_back
from qia3.runtime.score import rank, rank_batch
from qia3.runtime.seq2seq import Seq2Seq

ROWS = [[5, 9, 250, 17, 33, 80, 4, 61, 12, 99, 7], [8, 44, 3, 190], [77], [6, 20, 31, 45, 120, 9, 2]]
NAMES = ["lamps", None, "echo", "lamps"]
CLOSE = {"atol": 2e-5, "rtol": 2e-5}
CHOICES = [[4, 1], [4, 9, 1], [4, 9, 7, 30, 1], [60, 1], [61, 62, 63, 64, 65, 1], [4, 9], [1], [60, 1]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.open(small.write_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def engine(bundle):
    return open_engine(bundle, threads=1)


@pytest.fixture(scope="module")
def bank(bundle):
    return AdapterBank(bundle)


@pytest.fixture(scope="module")
def weights(bundle):
    return small.weights(bundle.architecture.vocab_size)


def played(engine, rows, vectors, forced, room=32):
    """Logits [1 + steps, rows, V] of the prompts and then of each forced token."""
    logits, cache = engine.prefill(rows, vectors, room)
    found = [logits.copy()]
    for token in forced:
        logits, cache = engine.step([token + i for i in range(len(rows))], cache, vectors)
        found.append(logits.copy())
    return np.stack(found)


@pytest.mark.parametrize("adapter", ["none", "lamps", "echo"])
def test_the_engine_is_the_model(engine, bank, weights, adapter):
    vectors = bank.vectors(adapter)
    found = played(engine, ROWS, vectors, [40, 50, 60])
    for r, row in enumerate(ROWS):
        for step in range(4):
            answer = [t + r for t in (40, 50, 60)[:step]]
            expected = small.logits(weights, row, answer, vectors)
            np.testing.assert_allclose(found[step, r], expected, atol=2e-4, rtol=1e-4)


def test_answers_may_stand_behind_two_tokens(bundle, bank, weights):
    """BART's start, and the first word that is forced on it; in rows of a batch that have vectors of their own."""
    shape = replace(bundle.architecture, decoder_start=(3, 7))
    engine = open_engine(Bundle(bundle.path, replace(bundle.manifest, architecture=shape)), threads=1)
    found = played(engine, ROWS, bank.rows(NAMES), [40, 50], room=0)
    for r, (row, name) in enumerate(zip(ROWS, NAMES, strict=True)):
        for step in range(3):
            answer = [t + r for t in (40, 50)[:step]]
            expected = small.logits(weights, row, answer, bank.vectors(name), start=(3, 7))
            np.testing.assert_allclose(found[step, r], expected, atol=2e-4, rtol=1e-4)
    assert len(list(generate(engine, ROWS[0], {}, 1000, ()))) == small.CONTEXT - 2


def test_an_adapter_has_the_vectors_of_both_and_each_changes_the_answer(engine, bank):
    plain = played(engine, ROWS, {}, [40])
    np.testing.assert_array_equal(played(engine, ROWS, bank.vectors(None), [40]), plain)
    for stack in ("encoder", "decoder"):
        own = {n: v for n, v in bank.vectors("lamps").items() if n.startswith(stack)}
        assert np.abs(played(engine, ROWS, own, [40]) - plain).min(axis=(0, 2)).max() > 1e-3


def test_rows_of_one_batch_with_their_own_lengths_and_adapters_equal_the_rows_alone(engine, bank):
    together = played(engine, ROWS, bank.rows(NAMES), [40, 50, 60])
    for r, (row, name) in enumerate(zip(ROWS, NAMES, strict=True)):
        alone = played(engine, [row], bank.vectors(name), [40 + r, 50 + r, 60 + r])
        np.testing.assert_allclose(together[:, r], alone[:, 0], **CLOSE)


def test_the_prompt_is_encoded_once_and_its_keys_are_made_once(engine, monkeypatch):
    encoded, given = [], []
    inner = engine._encoded
    monkeypatch.setattr(engine, "_encoded", lambda *a: encoded.append(len(a[0])) or inner(*a))
    ids = engine._ids
    monkeypatch.setattr(engine, "_ids", lambda *a: given.append(ids(*a)) or given[-1])
    _, cache = engine.prefill([ROWS[0]], {})
    for token in (40, 50, 60):
        _, cache = engine.step([token], cache, {})
    assert encoded == [1]
    assert [fed["encoder_hidden_states"].shape[1] for fed in given[1:]] == [0, 0, 0]
    assert [int(fed["past_length"]) for fed in given] == [0, 1, 2, 3]


def test_a_step_writes_in_place_and_reads_neither_room_nor_padding(engine, bank):
    vectors = bank.rows(NAMES)
    plain = played(engine, ROWS, vectors, [40, 50])
    _, cache = engine.prefill(ROWS, vectors, room=4)
    for array in cache.buffers.arrays.values():
        array[:, :, 1:] = np.nan
    for name, array in cache.buffers.fixed.items():
        if array.ndim == 4:
            for r, row in enumerate(ROWS):
                array[r, :, len(row) :] = 1e3 if name.endswith("key") else 7  # masked keys, and values with no share
    addresses = {n: a.ctypes.data for n, a in cache.buffers.arrays.items()}
    for step, token in enumerate((40, 50), 1):
        logits, cache = engine.step([token + i for i in range(4)], cache, vectors)
        np.testing.assert_array_equal(logits, plain[step])
    assert {n: a.ctypes.data for n, a in cache.buffers.arrays.items()} == addresses


def test_a_cache_that_was_stepped_already_can_be_stepped_again(engine):
    _, cache = engine.prefill(ROWS[:2], {})
    first, future = engine.step([40, 41], cache, {})
    np.testing.assert_array_equal(engine.step([40, 41], cache, {})[0], first)
    engine.step([70, 71], cache, {})
    on, _ = engine.step([50, 51], future, {})
    np.testing.assert_allclose(on, played(engine, ROWS[:2], {}, [40, 50])[-1], **CLOSE)


@pytest.mark.parametrize("room", [0, 3, 1000])
def test_the_cache_grows_to_the_end_of_the_context_and_not_beyond(engine, weights, room):
    logits, cache = engine.prefill([ROWS[3]], {}, room=room)
    more = list(range(40, 40 + small.CONTEXT - 1))
    for token in more:
        logits, cache = engine.step([token], cache, {})
        assert cache.buffers.capacity <= small.CONTEXT
    np.testing.assert_allclose(logits[0], small.logits(weights, ROWS[3], more), atol=5e-4, rtol=1e-3)
    with pytest.raises(QIA3Error, match="41 tokens do not fit the bundle's context of 40"):
        engine.step([3], cache, {})
    with pytest.raises(QIA3Error, match="41 tokens do not fit"):
        engine.prefill([[3] * 41], {})


@pytest.fixture(scope="module")
def unshared(tmp_path_factory):
    """Of graphs whose inputs have all as many rows."""
    return open_engine(Bundle.open(small.write_bundle(tmp_path_factory.mktemp("b"), prompts="batch_size")), threads=1)


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]])
@pytest.mark.parametrize("shared", [True, False])
def test_expanding_picks_rows_and_shares_what_one_prompt_made(engine, unshared, bank, rows, shared):
    engine = engine if shared else unshared
    names, index = NAMES[: len(rows)], [3, 0, 0, 1] if len(rows) > 1 else [0, 0, 0]
    vectors = bank.rows(names)
    _, cache = engine.prefill(rows, vectors)
    picked = cache.expand(index)
    for name, array in picked.buffers.fixed.items():
        assert np.shares_memory(array, cache.buffers.fixed[name]) == (len(rows) == 1 and shared)
        assert len(array) == (1 if len(rows) == 1 and shared else len(index))
    tokens = [40 + i for i in range(len(index))]
    chosen = select_rows(vectors, index)
    first, on = engine.step(tokens, picked, chosen)
    second, _ = engine.step([t + 9 for t in tokens], on, chosen)
    for place, (row, token) in enumerate(zip(index, tokens, strict=True)):
        logits, alone = engine.prefill([rows[row]], bank.vectors(names[row]))
        logits, alone = engine.step([token], alone, bank.vectors(names[row]))
        np.testing.assert_allclose(first[place], logits[0], **CLOSE)
        logits, _ = engine.step([token + 9], alone, bank.vectors(names[row]))
        np.testing.assert_allclose(second[place], logits[0], **CLOSE)


def test_ranking_with_rows_of_different_tasks_is_the_model(engine, bank, weights):
    found = rank_batch(engine, ROWS, [CHOICES] * 4, bank.rows(NAMES))
    for row, name, scores in zip(ROWS, NAMES, found, strict=True):
        for choice, score in zip(CHOICES, scores, strict=True):
            total = 0.0
            for i, token in enumerate(choice):
                wide = small.logits(weights, row, choice[:i], bank.vectors(name))
                total += wide[token] - np.log(np.exp(wide).sum())
            np.testing.assert_allclose(score, total, atol=1e-4)


def test_generation_is_the_likeliest_token_each_time_to_the_end_of_the_context(engine, bank, weights):
    vectors, answer = bank.vectors("lamps"), []
    found = list(generate(engine, ROWS[0], vectors, 1000, ()))
    assert len(found) == small.CONTEXT - 1
    for token in found[:12]:
        assert token == int(np.argmax(small.logits(weights, ROWS[0], answer, vectors)))
        answer.append(token)
    stop = found[3]
    assert list(generate(engine, ROWS[0], vectors, 8, [stop])) == found[: found.index(stop)]


def test_vectors_may_change_between_steps_and_wrong_ones_are_refused(engine, bank):
    for name in ("lamps", None):
        _, cache = engine.prefill([ROWS[0]], bank.vectors("echo"))
        kept, _ = engine.step([40], cache, bank.vectors(name))
        _, fresh = engine.prefill([ROWS[0]], bank.vectors("echo"))
        copied = {n: v.copy() for n, v in bank.vectors(name).items()}
        np.testing.assert_array_equal(kept, engine.step([40], fresh, copied)[0])
    with pytest.raises(AdapterError, match=r"\[3, 1, 48\]"):
        engine.prefill(ROWS[:1], bank.rows(["lamps", None, "echo"]))
    with pytest.raises(AdapterError, match="there is not an input of this bundle"):
        engine.step([40], cache, {"there": np.ones((1, 1, 4), np.float32)})


def test_graphs_without_defaults_are_fed_ones(engine, bank, tmp_path):
    plain = open_engine(Bundle.open(small.write_bundle(tmp_path, required=True)), threads=1)
    for vectors in ({}, bank.vectors("lamps"), bank.rows(NAMES)):
        np.testing.assert_array_equal(played(plain, ROWS, vectors, [40, 50]), played(engine, ROWS, vectors, [40, 50]))


def test_a_merged_bundle_takes_no_vectors(engine, tmp_path):
    merged = Bundle.open(small.write_bundle(tmp_path, mode="merged"))
    other, bank = open_engine(merged, threads=1), AdapterBank(merged)
    np.testing.assert_array_equal(played(other, ROWS, bank.vectors("lamps"), [40]), played(engine, ROWS, {}, [40]))
    with pytest.raises(AdapterError, match="is not an input of this bundle"):
        other.prefill(ROWS, small.random_vectors(1))


def test_each_bundle_has_its_engine_and_the_other_is_refused(bundle, engine, tmp_path):
    assert type(engine) is Seq2Seq
    with pytest.raises(BundleError, match=r"needs an encoder's states.*open_engine"):
        Engine(bundle, threads=1)
    alone = Bundle.open(tiny.write_bundle(tmp_path))
    assert type(open_engine(alone, threads=1)) is Engine
    with pytest.raises(BundleError, match="has no encoder"):
        Seq2Seq(alone, threads=1)


def said(capsys, *words) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    return out


def test_the_verbs_take_it_as_they_take_a_decoder(engine, bank, tmp_path, capsys):
    folder = engine.bundle.path
    found = json.loads(said(capsys, "run", folder, "the hall", "--adapter", "lamps", "--json"))
    tokens = [list(engine.tokens.answer(c, tiny.END)) for c in tiny.CHOICES]
    prompt = list(engine.tokens.prompt("Topic of {text}?", "the hall"))
    scores = rank(engine, prompt, tokens, bank.vectors("lamps"))
    assert found["label"] == tiny.CHOICES[int(scores.argmax())]
    greedy = said(capsys, "run", folder, "the door", "--adapter", "echo")
    beams = said(capsys, "run", folder, "the door", "--adapter", "echo", "--beams", 4, "--length-penalty", 2)
    drawn = [
        said(capsys, "run", folder, "the door", "--adapter", "echo", "--temperature", 9, "--seed", s) for s in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({greedy, beams, *drawn}) == 4
    asked = tmp_path / "asked.jsonl"
    lines = [{"text": text, "label": tiny.CHOICES[0]} for text in ("a", "the hall", "word " * 60)]
    asked.write_text("\n".join(map(json.dumps, lines)))
    result = json.loads(said(capsys, "eval", folder, asked, "--adapter", "lamps"))
    assert (result["n"], result["left_out"], result["left_out_lines"]) == (2, 1, [3])
    figures = json.loads(said(capsys, "bench", folder, "--json"))
    assert (figures["prompt_tokens"], figures["new_tokens"]) == (26, 13)


def test_a_prompt_and_an_answer_have_the_context_each(engine, tmp_path):
    """35 tokens of prompt and 30 of an answer fit a context of 40; a decoder has no room for them."""
    bank, shape = AdapterBank(engine.bundle), engine.bundle.architecture
    found = rank(engine, [7] * 35, [[5] * 30, [6]], bank.vectors(None))
    assert np.isfinite(found).all()
    assert bench(engine.bundle.path, prompt_tokens=35, new_tokens=39)["new_tokens"] == 39
    for prompt, new in ((41, 3), (3, 40)):
        with pytest.raises(ConfigError, match="each fits the context of 40"):
            bench(engine.bundle.path, prompt_tokens=prompt, new_tokens=new)
    assert shape.positions(35, 29) == 35


def test_nothing_is_kept_of_a_beginning_and_the_answers_are_the_same(bundle, bank):
    engine, task = open_engine(bundle, threads=1), bundle.tasks["lamps"]
    before = classify(engine, task, bank.vectors("lamps"), "the hall")
    prepare(engine, task, bank.vectors("lamps"))
    assert engine.begun == []
    assert classify(engine, task, bank.vectors("lamps"), "the hall") == before


def test_both_graphs_can_be_packed_and_a_damaged_one_is_refused(bundle, engine, bank, tmp_path):
    kept = open_engine(bundle, threads=1, packed=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 2
    for vectors in ({}, bank.rows(NAMES)):
        np.testing.assert_array_equal(played(kept, ROWS, vectors, [40]), played(engine, ROWS, vectors, [40]))
    folder = small.write_bundle(tmp_path / "b")
    read_back(folder)
    file = folder / ENCODER_GRAPH
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"encoder_model_q4\.onnx has changed"):
        Bundle.open(folder)
    file.unlink()
    with pytest.raises(BundleError, match=r"encoder_model_q4\.onnx is missing"):
        Bundle.open(folder)
