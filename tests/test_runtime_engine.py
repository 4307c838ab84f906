"""The engine is the model: against numpy, in uneven batches, with an adapter a row, over shared buffers."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_bundle as tiny

from qia3.bundle.opened import Bundle
from qia3.errors import AdapterError, BundleError, QIA3Error
from qia3.machine import physical_cores
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.cache import Buffers, Cache
from qia3.runtime.engine import Engine, select_rows
from qia3.runtime.session import options

ROWS = [[5, 9, 250, 17, 33, 80, 4, 61, 12, 99, 7], [8, 44, 3, 190], [77], [6, 20, 31, 45, 120, 9, 2]]
NAMES = ["lamps", None, "echo", "lamps"]
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


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


def played(engine, rows, vectors, forced):
    """Logits [1 + steps, rows, V] of the prompts and then of each forced token."""
    logits, cache = engine.prefill(rows, vectors)
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
            tokens = row + [t + r for t in (40, 50, 60)[:step]]
            np.testing.assert_allclose(found[step, r], tiny.logits(weights, tokens, vectors), atol=2e-4, rtol=1e-4)


def test_law_3_ones_mean_base(engine, bank):
    nothing = played(engine, ROWS, {}, [40, 50])
    for ones in (bank.vectors(None), bank.vectors("none"), bank.rows([None] * len(ROWS))):
        np.testing.assert_array_equal(played(engine, ROWS, ones, [40, 50]), nothing)
    assert np.abs(played(engine, ROWS, bank.vectors("lamps"), [40, 50]) - nothing).max() > 0.1


def test_rows_of_one_batch_with_their_own_lengths_and_adapters_equal_the_rows_alone(engine, bank):
    together = played(engine, ROWS, bank.rows(NAMES), [40, 50, 60])
    for r, (row, name) in enumerate(zip(ROWS, NAMES, strict=True)):
        alone = played(engine, [row], bank.vectors(name), [40 + r, 50 + r, 60 + r])
        np.testing.assert_allclose(together[:, r], alone[:, 0], **CLOSE)


def test_a_step_is_a_longer_prompt(engine, bank):
    vectors = bank.vectors("lamps")
    stepped = played(engine, [ROWS[0]], vectors, [40, 50])
    whole, _ = engine.prefill([[*ROWS[0], 40, 50]], vectors)
    np.testing.assert_allclose(stepped[-1], whole, **CLOSE)


def test_the_unused_room_of_a_buffer_is_never_read(engine, bank):
    vectors = bank.rows(NAMES)
    plain = played(engine, ROWS, vectors, [40])
    lengths = np.array([len(r) for r in ROWS])
    tokens = np.zeros((len(ROWS), lengths.max()), np.int64)
    for i, row in enumerate(ROWS):
        tokens[i, : len(row)] = row
    arrays = {n: np.full((len(ROWS), h, 20, d), np.nan, np.float32) for n, (h, d) in engine.caches.items()}
    nothing = np.zeros(len(ROWS), np.int64)
    logits, cache = engine._run(tokens, Cache(Buffers(arrays, nothing), nothing), lengths, vectors)
    np.testing.assert_array_equal(logits, plain[0])
    for r, n in enumerate(lengths):  # what the padded tokens wrote is not read either
        for array in cache.buffers.arrays.values():
            array[r, :, n:] = np.nan
    logits, _ = engine.step([40 + i for i in range(len(ROWS))], cache, vectors)
    np.testing.assert_array_equal(logits, plain[1])


def test_a_step_writes_in_place(engine):
    logits, cache = engine.prefill([ROWS[0]], {}, room=4)
    kept = logits.copy()
    addresses = {n: a.ctypes.data for n, a in cache.buffers.arrays.items()}
    _, after = engine.step([40], cache, {})
    assert {n: a.ctypes.data for n, a in after.buffers.arrays.items()} == addresses
    np.testing.assert_array_equal(logits, kept)  # logits that were handed out stay what they were


def test_a_cache_that_was_stepped_already_can_be_stepped_again(engine):
    _, cache = engine.prefill(ROWS[:2], {})
    first, future = engine.step([40, 41], cache, {})
    first = first.copy()
    again, _ = engine.step([40, 41], cache, {})
    np.testing.assert_array_equal(again, first)
    engine.step([70, 71], cache, {})  # last, so that it would leave its own keys where `future` has others
    on, _ = engine.step([50, 51], future, {})
    np.testing.assert_allclose(on, played(engine, ROWS[:2], {}, [40, 50])[-1], **CLOSE)


@pytest.mark.parametrize("room", [0, 1, 3, 1000])
def test_the_cache_grows_when_it_is_full(engine, room):
    logits, cache = engine.prefill([ROWS[3]], {}, room=room)
    more = range(40, 40 + tiny.CONTEXT - len(ROWS[3]))  # to the last position of the context
    for token in more:
        logits, cache = engine.step([token], cache, {})
        assert cache.buffers.capacity <= tiny.CONTEXT
    whole, _ = engine.prefill([[*ROWS[3], *more]], {})
    np.testing.assert_allclose(logits, whole, **CLOSE)


@pytest.mark.parametrize("room", [0, 3])
def test_a_prompt_whose_beginning_was_run_is_the_prompt(bundle, bank, room, monkeypatch):
    """And so is what follows, and the next prompt that begins so; with other vectors, alone or in a batch, nothing is
    taken over.
    """
    engine, plain, row = Engine(bundle, threads=1), Engine(bundle, threads=1), ROWS[0]
    for name in ("lamps", "echo"):
        engine.begin(row[:3], bank.vectors(name))
        engine.begin(row[:7], bank.vectors(name))
        engine.begin(row[:7], bank.vectors(name))
    assert [len(b.tokens) for b in engine.begun] == [3, 7, 3, 7]
    run: list[int] = []
    inner = engine._run
    monkeypatch.setattr(engine, "_run", lambda tokens, *rest: run.append(tokens.shape[1]) or inner(tokens, *rest))
    for prompt, name, rest in (
        (row, "lamps", len(row) - 7),
        (row, "echo", len(row) - 7),
        (row, "lamps", len(row) - 7),  # the first did not write into what was kept
        ([*row[:7], 99], "lamps", 1),
        (row[:7], "lamps", 4),  # the logits of its last token are wanted
        ([*row[:6], 99], "lamps", 4),
        (row[:3], "lamps", 3),
        (row, None, len(row)),
    ):
        run.clear()
        found, cache = engine.prefill([prompt], bank.vectors(name), room)
        assert run == [rest]
        expected, other = plain.prefill([prompt], bank.vectors(name))
        np.testing.assert_allclose(found, expected, **CLOSE)
        for token in (40, 50, 60, 70):
            found, cache = engine.step([token], cache, bank.vectors(name))
            expected, other = plain.step([token], other, bank.vectors(name))
            np.testing.assert_allclose(found, expected, **CLOSE)
    run.clear()
    together, _ = engine.prefill([row, row[:7]], bank.vectors("lamps"))
    assert run == [len(row)]
    np.testing.assert_allclose(together, plain.prefill([row, row[:7]], bank.vectors("lamps"))[0], **CLOSE)
    with pytest.raises(QIA3Error, match="do not fit"):
        engine.prefill([row * 5], bank.vectors("lamps"))


def test_expanding_picks_and_repeats_rows(engine, bank):
    vectors, index = bank.rows(NAMES), [3, 0, 0, 1]
    _, cache = engine.prefill(ROWS, vectors)
    assert cache.expand(range(4)) is cache
    picked, _ = engine.step([40, 41, 42, 43], cache.expand(index), select_rows(vectors, index))
    for place, (row, token) in enumerate(zip(index, [40, 41, 42, 43], strict=True)):
        alone, _ = engine.prefill([[*ROWS[row], token]], bank.vectors(NAMES[row]))
        np.testing.assert_allclose(picked[place], alone[0], **CLOSE)


def test_vectors_may_change_between_steps(engine, bank):
    """The bindings are kept from step to step, and must notice."""
    for name in ("lamps", None, "echo"):
        _, cache = engine.prefill([ROWS[0]], bank.vectors("lamps"))
        kept, _ = engine.step([40], cache, bank.vectors(name))
        _, fresh = engine.prefill([ROWS[0]], bank.vectors("lamps"))
        copied = {n: v.copy() for n, v in bank.vectors(name).items()}
        np.testing.assert_array_equal(kept, engine.step([40], fresh, copied)[0])
    _, cache = engine.prefill([ROWS[0]], bank.vectors("lamps"))
    _, other = engine.prefill([ROWS[0]], bank.vectors("lamps"))
    np.testing.assert_array_equal(engine.step([40], cache, {})[0], engine.step([40], other, bank.vectors(None))[0])


def test_vectors_that_are_no_plain_arrays_are_taken_right(engine, bank):
    vectors = bank.rows(NAMES)
    strange = {n: np.repeat(v.astype(np.float64), 2, axis=2)[:, :, ::2] for n, v in vectors.items()}
    np.testing.assert_array_equal(played(engine, ROWS, strange, [40]), played(engine, ROWS, vectors, [40]))


def test_all_positions_graphs_give_the_last_one_too(engine, tmp_path):
    other = Engine(Bundle.open(tiny.write_bundle(tmp_path, all_logits=True)), threads=1)
    np.testing.assert_allclose(played(other, ROWS, {}, [40, 50]), played(engine, ROWS, {}, [40, 50]), **CLOSE)


def test_a_merged_bundle_takes_no_vectors(engine, tmp_path):
    merged = Bundle.open(tiny.write_bundle(tmp_path, mode="merged"))
    other, bank = Engine(merged, threads=1), AdapterBank(merged)
    np.testing.assert_array_equal(played(other, ROWS, bank.vectors("lamps"), [40]), played(engine, ROWS, {}, [40]))
    with pytest.raises(AdapterError, match="is merged with 'lamps'"):
        bank.vectors("none")
    with pytest.raises(AdapterError, match="is not an input of this bundle"):
        other.prefill(ROWS, tiny.random_vectors(1))


def test_vectors_of_the_wrong_row_count_are_refused(engine, bank):
    with pytest.raises(AdapterError, match=r"\[3, 1, 32\]"):
        engine.prefill(ROWS[:1], bank.rows(["lamps", None, "echo"]))


def test_one_row_and_several_in_one_run_are_refused(engine, bank):
    """The graph packs vectors of a layer side by side, so all of them have the same number of rows."""
    mixed = bank.rows(["lamps", None, "echo"])
    name = next(iter(mixed))
    for wrong in (mixed | {name: mixed[name][:1]}, {name: mixed[name]}):
        with pytest.raises(AdapterError, match="some have one row, others several"):
            engine.prefill(ROWS[:3], wrong)


def test_what_does_not_fit_is_told(engine):
    with pytest.raises(QIA3Error, match="49 tokens do not fit the bundle's context of 48"):
        engine.prefill([[3] * 49], {})
    _, cache = engine.prefill([[3] * 48], {})
    with pytest.raises(QIA3Error, match="do not fit"):
        engine.step([3], cache, {})
    for rows in ([], [[]], [[3], []]):
        with pytest.raises(QIA3Error, match="empty prompt"):
            engine.prefill(rows, {})
    with pytest.raises(ValueError, match="2 tokens for a cache of 1 rows"):
        engine.step([3, 3], cache, {})
    with pytest.raises(QIA3Error, match="threads"):
        Engine(engine.bundle, threads=0)


@pytest.mark.parametrize("file", ["onnx/model_q4.onnx", "onnx/model_q4.onnx_data"])
def test_a_graph_that_cannot_be_loaded_is_one_clear_line(tmp_path, file):
    folder = tiny.write_bundle(tmp_path)
    (folder / file).write_bytes(b"torn")
    with pytest.raises(BundleError, match="cannot load"):
        Engine(Bundle.open(folder, verify=False))


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        (b"attention_mask", b"attention_mast", "Failed to find input name"),
        (b"logits", b"logitz", "has no output logits"),
        (b"layers.0.k_proj.ia3_l", b"layers.0.k_prod.ia3_l", "Failed to find input name"),
    ],
)
def test_a_graph_that_cannot_be_run_is_one_clear_line(tmp_path, was, now, said):
    folder = tiny.write_bundle(tmp_path)
    graph = folder / "onnx/model_q4.onnx"
    assert was in graph.read_bytes()
    graph.write_bytes(graph.read_bytes().replace(was, now))

    def run() -> None:
        Engine(Bundle.open(folder, verify=False), threads=1).prefill([[1, 2]], tiny.random_vectors(1))

    with pytest.raises(BundleError, match=said) as told:
        run()
    assert "\n" not in str(told.value)
    assert str(graph) in str(told.value)


def test_a_tokenizer_that_cannot_be_read_is_one_clear_line(tmp_path):
    folder = tiny.write_bundle(tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="cannot be read as a tokenizer"):
        Engine(Bundle.open(folder, verify=False), threads=1).encode("hello")


def test_threads_are_the_physical_cores_at_hand(engine):
    assert engine.threads == 1
    assert 1 <= physical_cores() <= 4096


def test_a_graph_without_defaults_is_fed_ones(engine, bank, tmp_path):
    """The form that transformers.js needs, export target "browser": the same answers with an adapter, with one a row,
    and with none.
    """
    bundle = Bundle.open(tiny.write_bundle(tmp_path, required=True))
    plain = Engine(bundle, threads=1)
    assert set(plain.ones) == set(tiny.SIZES)
    assert engine.ones == {}
    for vectors in ({}, bank.vectors("lamps"), bank.rows(NAMES)):
        np.testing.assert_array_equal(played(plain, ROWS, vectors, [40, 50]), played(engine, ROWS, vectors, [40, 50]))


def test_threads_stop_waiting_when_a_run_ends():
    """Or those of one graph take the processor from another graph's in the same process."""
    assert options(2).get_session_config_entry("session.force_spinning_stop") == "1"
