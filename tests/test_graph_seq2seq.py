"""The two graphs of an encoder-decoder are the model: prefill, steps, padded batches, a vector a row, buffers written in
place, feeds as stock loaders make them; against transformers' own model on the dequantised weights.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from seq2seq_pair import Oracle, Pair, batch, quantised, vector_rows
from tiny_seq2seq import ALL, EXPORTED

from qia3.base.family import embeddings
from qia3.base.weights import GridWeight
from qia3.bundle.layout import DECODER_GRAPH, ENCODER_GRAPH, SHARED_DATA
from qia3.bundle.ports import Cache
from qia3.errors import BaseModelError
from qia3.graph import preflight_seq2seq
from qia3.graph.export_seq2seq import export_seq2seq
from qia3.graph.external import write_graphs
from qia3.graph.forced import torch_choices, torch_logits
from qia3.graph.forced_seq2seq import OrtPair, start_of
from qia3.graph.loader_configs import write_configs
from qia3.graph.passes import AccuracyLevel
from qia3.ia3.vectors import set_vectors

POSITIONS = 48
CLOSE = {"atol": 2e-4, "rtol": 2e-4}
PLAIN = "t5 v1.1"
ANSWER = np.array([[0, 7, 9, 11, 13, 55, 80, 7, 3], [0, 91, 3, 3, 17, 20, 5, 6, 7], [0, 4, 44, 7, 9, 9, 9, 30, 31]])


@cache
def made(name: str, logits: str = "last") -> SimpleNamespace:
    """Exported once, for the tests of this file. `before` and `after`: the model, observed at that time."""
    model, scaled = quantised(name)
    before = observed(model)
    graphs = export_seq2seq(model, 0, POSITIONS, logits)
    return SimpleNamespace(
        model=model,
        scaled=scaled,
        before=before,
        after=observed(model),
        graphs=graphs,
        pair=Pair(graphs),
        oracle=Oracle(name, model, scaled),
    )


def observed(model) -> tuple[torch.Tensor, set[str]]:
    """Logits, and names of buffers."""
    ids = torch.from_numpy(batch([9])[0])
    with torch.no_grad():
        logits = model(input_ids=ids, decoder_input_ids=ids[:, :5], use_cache=False).logits
    return logits, {n for n, _ in model.named_buffers()}


def stepped(m, ids, mask, answer, vectors, size=None):
    """Logits [B, S, V] of one token at a time, as transformers.js and optimum feed them: no past_length, the states whole
    at every step, the cross keys of the first call.
    """
    pair, rows = m.pair, len(ids)
    fed = pair.vectors(pair.decoder, vectors)
    states, past, found = pair.states(ids, mask, vectors), pair.empty(rows, size), []
    for step in range(answer.shape[1]):
        feeds = {
            "input_ids": answer[:, step : step + 1],
            "encoder_attention_mask": mask,
            "encoder_hidden_states": states,
        }
        out = pair.run(feeds | past | fed)
        found.append(out["logits"][:, -1])
        own = {n: out[n.replace("past_key_values", "present")] for n in past if ".decoder." in n or step == 0}
        assert all(v.shape[2] == 0 for n, v in out.items() if ".encoder." in n and step)
        past = past | own
    return np.stack(found, 1)


def wanted(m, ids, mask, answer, vectors):
    return np.concatenate(
        [m.oracle.logits(ids[i : i + 1], mask[i : i + 1], answer[i : i + 1], v) for i, v in enumerate(vectors)]
    )


@pytest.mark.parametrize("name", EXPORTED)
def test_states_of_a_padded_batch_are_the_models(name):
    m = made(name)
    vectors = vector_rows(m.scaled, 3)
    for left in (False, True):
        ids, mask = batch([30, 4, 17], left)
        found = m.pair.states(ids, mask, vectors)
        for i, v in enumerate(vectors):
            expected = m.oracle.states(ids[i : i + 1], mask[i : i + 1], v)[0]
            np.testing.assert_allclose(found[i][mask[i] == 1], expected[mask[i] == 1], **CLOSE)


@pytest.mark.parametrize("name", EXPORTED)
def test_eight_steps_of_a_padded_batch_with_a_vector_a_row(name):
    m = made(name)
    vectors = vector_rows(m.scaled, 3)
    ids, mask = batch([30, 4, 17])
    expected = wanted(m, ids, mask, ANSWER, vectors)
    np.testing.assert_allclose(stepped(m, ids, mask, ANSWER, vectors), expected, **CLOSE)
    assert np.abs(expected[0] - wanted(m, ids[:1], mask[:1], ANSWER[:1], vectors[1:2])[0]).max() > 0.05


@pytest.mark.parametrize("name", EXPORTED)
def test_torch_with_its_vectors_at_the_side_is_the_same_model(name):
    m = made(name)
    vectors = vector_rows(m.scaled, 1)
    ids, mask = batch([11])
    set_vectors(m.scaled, vectors[0])
    with torch.no_grad():
        logits = m.model(
            input_ids=torch.from_numpy(ids),
            decoder_input_ids=torch.from_numpy(ANSWER[:1]),
            decoder_attention_mask=torch.ones(1, ANSWER.shape[1]),
            use_cache=False,
        ).logits.numpy()
    set_vectors(m.scaled, {})
    np.testing.assert_allclose(logits, wanted(m, ids, mask, ANSWER[:1], vectors), **CLOSE)
    np.testing.assert_allclose(stepped(m, ids, mask, ANSWER[:1], vectors), logits, **CLOSE)


@pytest.mark.parametrize("name", EXPORTED)
def test_without_vectors_it_is_the_base(name):
    m = made(name)
    ids, mask = batch([11, 6])
    found = stepped(m, ids, mask, ANSWER[:2], [{}, {}])
    np.testing.assert_allclose(found, wanted(m, ids, mask, ANSWER[:2], [{}, {}]), **CLOSE)


@pytest.mark.parametrize("name", [PLAIN])
def test_several_tokens_at_once_and_after_a_past(name):
    """All logits of a batch of answers in one call; and the rest of an answer after its beginning, in one row."""
    m = made(name, "all")
    vectors = vector_rows(m.scaled, 3)
    ids, mask = batch([30, 4, 17])
    expected, pair = wanted(m, ids, mask, ANSWER, vectors), m.pair
    states = pair.states(ids, mask, vectors)
    feeds = {"encoder_attention_mask": mask, "encoder_hidden_states": states}
    found = pair.run(feeds | {"input_ids": ANSWER} | pair.empty(3) | pair.vectors(pair.decoder, vectors))
    np.testing.assert_allclose(found["logits"], expected, **CLOSE)
    one = {k: v[:1] for k, v in feeds.items()} | pair.vectors(pair.decoder, vectors[:1])
    first = pair.run(one | {"input_ids": ANSWER[:1, :4]} | pair.empty(1))
    past = {n: first[n.replace("past_key_values", "present")] for n in pair.past}
    rest = pair.run(one | {"input_ids": ANSWER[:1, 4:]} | past)
    np.testing.assert_allclose(rest["logits"], expected[:1, 4:], **CLOSE)


def test_a_past_of_a_part_of_the_states_is_refused():
    """Two attentions are summed, of which one has no keys: with some in each the sum would be wrong, so the graph stops."""
    m = made(PLAIN)
    ids, mask = batch([30, 4, 17], left=True)
    pair = m.pair
    feeds = {"encoder_attention_mask": mask, "encoder_hidden_states": pair.states(ids, mask, [{}] * 3)}
    feeds |= {"input_ids": ANSWER[:, :1]}
    out = pair.run(feeds | pair.empty(3))
    known = {n: out[n.replace("past_key_values", "present")][:, :, :9] for n in pair.past if ".encoder." in n}
    with pytest.raises(Exception, match="key_padding_mask"):
        pair.run(feeds | pair.empty(3) | known)


@pytest.mark.parametrize("name", [PLAIN, "umt5", "bart", "t5gemma"] if ALL else [PLAIN, "t5gemma"])
@pytest.mark.parametrize("rows", [1, 3])
def test_buffers_are_written_in_place_where_past_length_is_told(name, rows):
    """Past and present are one buffer with room to spare, which holds NaN."""
    m = made(name)
    vectors = vector_rows(m.scaled, rows)
    ids, mask = batch([30, 4, 17][:rows])
    pair = m.pair
    states = pair.states(ids, mask, vectors)
    buffers = {
        n: np.full((rows, shape[1], 14, 16), np.nan, np.float32) for n, shape in pair.past.items() if ".decoder." in n
    }
    held = {n: ort.OrtValue.ortvalue_from_numpy(a) for n, a in buffers.items()}
    cross = {n: v for n, v in pair.empty(rows).items() if ".encoder." in n}
    found = []
    for step in range(ANSWER.shape[1]):
        binding = pair.decoder.io_binding()
        fed = {
            "input_ids": ANSWER[:rows, step : step + 1],
            "encoder_attention_mask": mask,
            "past_length": np.array(step),
        }
        fed |= {"encoder_hidden_states": states} | cross | pair.vectors(pair.decoder, vectors)
        values = {n: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a)) for n, a in fed.items()} | held
        for n, value in values.items():
            binding.bind_ortvalue_input(n, value)
        for n, value in held.items():
            binding.bind_ortvalue_output(n.replace("past_key_values", "present"), value)
        binding.bind_output("logits")
        for n in cross if step == 0 else ():
            binding.bind_output(n.replace("past_key_values", "present"))
        before = {n: a.copy() for n, a in buffers.items()}
        pair.decoder.run_with_iobinding(binding)
        names = [*held, "logits", *(cross if step == 0 else ())]  # in the order of binding
        outputs = dict(zip(names, binding.get_outputs(), strict=True))
        found.append(outputs["logits"].numpy()[:, 0])
        if step == 0:
            cross = {n: outputs[n].numpy() for n in cross}
        for n, a in buffers.items():
            assert np.isfinite(a[:, :, : step + 1]).all()
            assert np.isnan(a[:, :, step + 1 :]).all()
            np.testing.assert_array_equal(a[:, :, :step], before[n][:, :, :step])
    expected = wanted(m, ids, mask, ANSWER[:rows], vectors)
    np.testing.assert_allclose(np.stack(found, 1), expected, **CLOSE)


def test_an_empty_past_may_have_another_size_of_heads():
    """optimum-onnx makes it of hidden_size // num_attention_heads, 19 here, where heads are of 16."""
    m = made(PLAIN)
    vectors = vector_rows(m.scaled, 2)
    ids, mask = batch([11, 6])
    found = stepped(m, ids, mask, ANSWER[:2], vectors, size=96 // 5)
    np.testing.assert_allclose(found, wanted(m, ids, mask, ANSWER[:2], vectors), **CLOSE)


@pytest.mark.parametrize("name", EXPORTED)
def test_rows_of_one_prompt_share_its_keys(name):
    """As the runtime ranks and searches: one row of the states' keys and values and of their mask, several of tokens, and
    states of no positions.
    """
    m = made(name)
    vectors = vector_rows(m.scaled, 1)
    ids, mask = batch([30])
    pair, rows = m.pair, len(ANSWER)
    feeds = {"encoder_attention_mask": mask, "encoder_hidden_states": pair.states(ids, mask, vectors)}
    feeds |= pair.vectors(pair.decoder, vectors)
    first = pair.run(feeds | {"input_ids": ANSWER[:1, :1]} | pair.empty(1))
    past = {n: first[n.replace("past_key_values", "present")] for n in pair.past}
    past = {n: np.repeat(v, rows, 0) if ".decoder." in n else v for n, v in past.items()}
    feeds["encoder_hidden_states"] = np.empty((1, 0, 96), np.float32)
    assert pair.decoder.get_inputs()[0].shape[0] != pair.past["past_key_values.0.encoder.key"][0]
    found = []
    for step in range(1, ANSWER.shape[1]):
        out = pair.run(feeds | {"input_ids": ANSWER[:, step : step + 1]} | past)
        found.append(out["logits"][:, 0])
        past |= {n: out[n.replace("past_key_values", "present")] for n in past if ".decoder." in n}
    expected = wanted(m, np.repeat(ids, rows, 0), np.repeat(mask, rows, 0), ANSWER, vectors * rows)
    np.testing.assert_allclose(np.stack(found, 1), expected[:, 1:], **CLOSE)


def test_texts_past_the_positions_of_the_export_go_on():
    """A relative bias has no last position: the table's ends stand for all that is farther."""
    m = made(PLAIN)
    ids, mask = batch([2 * POSITIONS + 7])
    found = m.pair.states(ids, mask, [{}])
    np.testing.assert_allclose(found, m.oracle.states(ids, mask, {}), **CLOSE)


@pytest.mark.parametrize("name", EXPORTED)
def test_exporting_leaves_the_model_as_it_was(name):
    m = made(name)
    torch.testing.assert_close(m.after[0], m.before[0], rtol=0, atol=0)
    assert m.after[1] == m.before[1]
    assert not any("compute_bias" in module.__dict__ for module in m.model.modules())


def written(m, folder):
    """Both graphs in a folder, over one data file; the ones in memory stay as they are."""
    ends = [*embeddings(m.model), m.model.get_output_embeddings()]
    names = [n for n, x in m.model.named_modules(remove_duplicate=False) if any(x is e for e in ends)]
    files = {ENCODER_GRAPH: m.graphs["encoder"], DECODER_GRAPH: m.graphs["decoder"]}
    before = [(v, v.const_value) for g in files.values() for v in g.graph.initializers.values()]
    try:
        return write_graphs(files, SHARED_DATA, folder, names)
    finally:
        for value, tensor in before:
            value.const_value = tensor


@pytest.mark.parametrize("name", [PLAIN, "t5"])
def test_both_graphs_lie_over_one_file_that_holds_equal_bytes_once(name, tmp_path):
    """Law 1 for two graphs: the modules' bytes, by SHA-256, are the file's, and each is there once."""
    m = made(name)
    regions = written(m, tmp_path)
    assert {p.name for p in (tmp_path / SHARED_DATA).parent.iterdir()} == {
        Path(f).name for f in (ENCODER_GRAPH, DECODER_GRAPH, SHARED_DATA)
    }
    assert {r.file for r in regions} == {SHARED_DATA}
    data = (tmp_path / SHARED_DATA).read_bytes()
    trained = {
        hashlib.sha256(t.numpy().tobytes()).hexdigest()
        for module in m.model.modules()
        if isinstance(module, GridWeight)
        for t in module.buffers()
    }
    shipped = []
    for r in regions:
        if r.part.removeprefix("embedding_") in ("codes", "scales", "zero_points"):
            ends = np.cumsum([size for _, size in r.packed or [(r.name, r.bytes)]])
            pieces = np.split(np.frombuffer(data, np.uint8, r.bytes, r.offset), ends)[:-1]
            shipped += [hashlib.sha256(piece).hexdigest() for piece in pieces]
    assert set(shipped) == trained
    assert len(shipped) == len(trained)
    parts = [r.part for r in regions]
    assert parts.count("embedding_codes") == (2 if name == PLAIN else 1)  # a head of its own, or none
    assert parts.count("dense") == 5  # `wo` of each layer
    assert parts.count("positions") == 2  # by distance, one per stack
    assert "other" not in parts
    prompt, forced = batch([11])[0][0].tolist(), [7, 9, 11]
    vectors = vector_rows(m.scaled, 1)[0]
    pair = OrtPair.read(tmp_path / ENCODER_GRAPH, tmp_path / DECODER_GRAPH, start_of(m.model))
    found = pair.logits(prompt, forced, {n: v[None, None] for n, v in vectors.items()})
    set_vectors(m.scaled, vectors)
    np.testing.assert_allclose(found, torch_logits(m.model, prompt, forced), **CLOSE)
    set_vectors(m.scaled, {})
    np.testing.assert_allclose(pair.logits(prompt, forced, {}), torch_logits(m.model, prompt, forced), **CLOSE)


def test_forced_logits_are_the_models_and_tokens_are_chosen_with_a_cache_as_without():
    m = made(PLAIN)
    ids, mask = batch([11])
    prompt, chosen = ids[0].tolist(), []
    for _ in range(4):
        chosen.append(int(torch_logits(m.model, prompt, chosen)[-1].argmax()))
    assert torch_choices(m.model, prompt, 4) == chosen
    expected = m.oracle.logits(ids, mask, np.array([[0, *chosen]]), {})[0]
    np.testing.assert_allclose(torch_logits(m.model, prompt, chosen), expected, **CLOSE)


def preflighted(m, monkeypatch, graphs):
    monkeypatch.setattr(preflight_seq2seq, "export_seq2seq", lambda *_: graphs)
    return preflight_seq2seq.preflight_seq2seq(m.model, m.scaled, POSITIONS, 4, "last", False, 1e-3)


@pytest.mark.parametrize("name", EXPORTED)
def test_preflight_passes_the_model_and_leaves_its_vectors_at_one(name, monkeypatch):
    m = made(name)
    graphs = preflighted(m, monkeypatch, m.graphs)
    levels = {n.attributes["accuracy_level"].as_int() for g in graphs.values() for n in g.graph if "NBits" in n.op_type}
    assert levels == {4}
    assert all((layer.vector() == 1).all() for layer in m.scaled.values())
    for graph in graphs.values():
        AccuracyLevel(0)(graph)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_preflight_tells_which_graph_is_not_the_model(part, monkeypatch):
    """A bias table of the other sign of distances, which a text of few tokens shows as well."""
    m = made(PLAIN)
    broken = {name: ir.from_proto(ir.to_proto(graph)) for name, graph in m.graphs.items()}
    name = next(n for n in broken[part].graph.initializers if n.endswith("relative_bias"))
    value = broken[part].graph.initializers[name]
    value.const_value = ir.tensor(np.ascontiguousarray(value.const_value.numpy()[:, ::-1]), name=name)
    with pytest.raises(BaseModelError, match=f"its {part}'s graph differs from torch by .* in a padded batch") as told:
        preflighted(m, monkeypatch, broken)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("name", "tied"), [("t5", True), ("t5 v1.1", False), ("mt5", False), ("bart", True)])
def test_what_other_loaders_read_of_a_pair(name, tied, tmp_path):
    """tie_word_embeddings is what transformers 4.57 takes it for; no file for onnxruntime-genai, which has no encoder."""
    model, _ = quantised(name)
    model.generation_config.decoder_start_token_id = None
    write_configs(model, tmp_path, 40, (1,), Cache(6, 16))
    config, generation = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("config", "generation_config"))
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "generation_config.json"}
    assert config["tie_word_embeddings"] is tied
    assert config["transformers.js_config"]["use_external_data_format"] == {"decoder_model_merged": True}
    assert Path(SHARED_DATA).name == "decoder_model_merged_q4.onnx_data"
    assert (generation["decoder_start_token_id"], generation["eos_token_id"]) == (0, [1])
    assert config["decoder_start_token_id"] == 0
