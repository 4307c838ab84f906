"""The exported graph is the model: every family against torch, with and without vectors, in uneven batches, folded and
unmerged.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx_ir.passes import PreconditionError
from tiny import DECODERS, GATED, ids, random_vectors, tiny

from qia3.base.quantise import Grid, quantise_model
from qia3.base.weights import GridWeight
from qia3.bundle.layout import DATA, GRAPH
from qia3.graph import forced as forced_logits
from qia3.graph.export import export_decoder
from qia3.graph.external import write_graph
from qia3.graph.forced import OrtDecoder, torch_choices, torch_continued, torch_logits
from qia3.graph.passes import ConstantWeights
from qia3.ia3.mix import named
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, detach, fold, set_vectors
from qia3.train.compute import computing


def exported(family, folder, **options):
    """The model, its wrappers, their vectors and the regions of its graph, which lies in `folder`. Tests that ask for the
    same share one export: nothing of it may be changed but the vectors.
    """
    model, scaled, vectors, regions, made = export_once(family, **options)
    if scaled:
        set_vectors(scaled, vectors)
    shutil.copytree(made.name, folder, dirs_exist_ok=True)
    return model, scaled, vectors, regions


@cache
def export_once(family, *, symmetric=False, block=32, logits="last", folded=False, level=0, eight_bit=()):
    model = tiny(family)
    quantise_model(model, Grid(block, symmetric, own=named(eight_bit).find(model, Grid(block, symmetric), None).own))
    scaled = attach(model, find_roles(model).sites)
    vectors = random_vectors(scaled)
    set_vectors(scaled, vectors)
    if folded:
        fold(scaled)
        detach(model, scaled)
        scaled = {}
    folder = TemporaryDirectory()
    regions = write_graph(
        export_decoder(model, level, 48, logits), Path(folder.name), ["model.embed_tokens", "lm_head"]
    )
    return model, scaled, vectors, regions, folder


def fed(vectors):
    return {name: v.reshape(1, 1, -1) for name, v in vectors.items()}


@pytest.mark.parametrize("family", DECODERS)
def test_the_graph_is_the_model(family, tmp_path):
    model, scaled, vectors, _ = exported(family, tmp_path)
    decoder = OrtDecoder(tmp_path / GRAPH)
    prompt, forced = ids(1, 11)[0].tolist(), [7, 9, 11, 13]
    np.testing.assert_allclose(
        decoder.logits(prompt, forced, fed(vectors)), torch_logits(model, prompt, forced), atol=2e-3, rtol=1e-3
    )
    set_vectors(scaled, {})
    np.testing.assert_allclose(
        decoder.logits(prompt, forced, {}), torch_logits(model, prompt, forced), atol=2e-3, rtol=1e-3
    )


@pytest.mark.parametrize("family", DECODERS)
def test_tokens_are_chosen_with_a_cache_as_without(family):
    """And with weights that are held dequantised, as parity is measured, which leaves nothing behind."""
    model, prompt = tiny(family), ids(1, 11)[0].tolist()
    quantise_model(model, Grid(32, False))
    chosen: list[int] = []
    for _ in range(4):
        chosen.append(int(torch_logits(model, [*prompt, *chosen], []).argmax()))
    assert torch_choices(model, prompt, 4) == chosen
    with computing(model, torch.float32):
        assert torch_choices(model, prompt, 4) == chosen
    assert not any(store.holds(torch.float32) for store in model.modules() if isinstance(store, GridWeight))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_guess_is_taken_only_where_torch_chooses_the_same(family, tmp_path):
    model, _, vectors, _ = exported(family, tmp_path)  # wears its vectors
    prompt = ids(1, 11)[0].tolist()
    right = torch_choices(model, prompt, 4)
    for count in (0, 1, 4):
        chosen, logits = OrtDecoder(tmp_path / GRAPH).continued(prompt, count, fed(vectors))
        assert chosen == right[:count]
        np.testing.assert_array_equal(logits, OrtDecoder(tmp_path / GRAPH).logits(prompt, right[:count], fed(vectors)))
    for guess in ([], right, [right[0] ^ 1, *right[1:]], [*right[:3], right[3] ^ 1]):
        ((chosen, logits),) = torch_continued(model, [prompt], [4], [guess])
        assert chosen == right
        np.testing.assert_allclose(logits, torch_logits(model, prompt, right), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
@pytest.mark.parametrize("entries", [1, 1 << 26])
def test_prompts_of_unequal_lengths_are_continued_together_as_alone(family, entries, tmp_path, monkeypatch):
    """Guesses that are right, wrong and left out; in one pass and in a pass each."""
    monkeypatch.setattr(forced_logits, "ENTRIES", entries)
    model, _, _, _ = exported(family, tmp_path)
    prompts, counts = [ids(1, n)[0].tolist() for n in (11, 4, 7, 1)], [4, 2, 3, 0]
    right = [torch_choices(model, prompt, count) for prompt, count in zip(prompts, counts, strict=True)]
    for guesses in (None, right, [right[0], [right[1][0] ^ 1, right[1][1]], [], []]):
        found = torch_continued(model, prompts, counts, guesses)
        assert [chosen for chosen, _ in found] == right
        for prompt, chosen, (_, logits) in zip(prompts, right, found, strict=True):
            np.testing.assert_allclose(logits, torch_logits(model, prompt, chosen), atol=2e-5)


@pytest.mark.parametrize("family", GATED)
def test_merged_and_side_graphs_agree(family, tmp_path):
    (tmp_path / "side").mkdir()
    (tmp_path / "merged").mkdir()
    _, _, vectors, _ = exported(family, tmp_path / "side")
    exported(family, tmp_path / "merged", folded=True)
    side, merged = (OrtDecoder(tmp_path / mode / GRAPH) for mode in ("side", "merged"))
    prompt, forced = ids(1, 11)[0].tolist(), [7, 9]
    np.testing.assert_allclose(merged.logits(prompt, forced, {}), side.logits(prompt, forced, fed(vectors)), atol=1e-3)


@pytest.mark.parametrize(("symmetric", "block"), [(True, 32), (False, 16), (False, 64)])
def test_other_grids(symmetric, block, tmp_path):
    model, _, vectors, _ = exported("llama", tmp_path, symmetric=symmetric, block=block)
    prompt = ids(1, 11)[0].tolist()
    logits = OrtDecoder(tmp_path / GRAPH).logits(prompt, [5], fed(vectors))
    np.testing.assert_allclose(logits, torch_logits(model, prompt, [5]), atol=1e-3)


def _batch(session, model, rows, steps, vectors):
    """Logits [1 + steps, rows, V] of rows padded on the right and then one forced token (42) a step."""
    config, lengths = model.config, np.array([len(r) for r in rows])
    tokens = np.zeros((len(rows), lengths.max()), np.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    empty = np.zeros((len(rows), config.num_key_value_heads, 0, config.head_dim), np.float32)
    names = [o.name for o in session.get_outputs()]
    cache = {n.replace("present", "past_key_values"): empty for n in names if n.startswith("present")}
    found = []
    for _ in range(steps + 1):
        mask = (np.arange(lengths.max())[None] < lengths[:, None]).astype(np.int64)
        out = dict(
            zip(
                names, session.run(None, {"input_ids": tokens, "attention_mask": mask, **cache, **vectors}), strict=True
            )
        )
        found.append(out["logits"][:, -1])
        cache = {n.replace("present", "past_key_values"): v for n, v in out.items() if n.startswith("present")}
        tokens, lengths = np.full((len(rows), 1), 42, np.int64), lengths + 1
    return np.stack(found)


@pytest.mark.parametrize("family", DECODERS)
def test_a_prompt_in_two_pieces_is_the_prompt(family, tmp_path):
    """The second piece is several tokens after a past: where prompts begin alike, their beginning is run once
    (Engine.begin).
    """
    _, _, vectors, _ = exported(family, tmp_path)
    decoder, prompt = OrtDecoder(tmp_path / GRAPH), ids(1, 11)[0].tolist()
    whole = decoder.after([prompt], fed(vectors))
    pieces = decoder.after([prompt[:6], prompt[6:]], fed(vectors))
    np.testing.assert_allclose(pieces[1:], whole, atol=2e-5 * max(1, np.abs(whole).max()))


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_rows_of_one_batch_have_their_own_lengths_and_adapters(family, tmp_path):
    model, scaled, vectors, _ = exported(family, tmp_path)
    other = random_vectors(scaled, seed=7)
    ones = {n: np.ones_like(v) for n, v in vectors.items()}
    session = OrtDecoder(tmp_path / GRAPH).session
    rows = [ids(1, n, seed=n)[0].tolist() for n in (11, 4, 7)]
    adapters = [vectors, ones, other]
    mixed = {n: np.stack([a[n].reshape(1, -1) for a in adapters]) for n in vectors}
    together = _batch(session, model, rows, 3, mixed)
    for i, (row, adapter) in enumerate(zip(rows, adapters, strict=True)):
        alone = _batch(session, model, [row], 3, fed(adapter))
        np.testing.assert_allclose(together[:, i], alone[:, 0], atol=2e-5 * max(1, np.abs(alone).max()))
        set_vectors(scaled, adapter)
        np.testing.assert_allclose(together[:, i], torch_logits(model, row, [42] * 3), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "family", [f for f in DECODERS if f not in ("gpt2", "opt")]
)  # those flatten [batch, sequence] on the way
def test_after_the_last_attention_one_position_is_computed(family, tmp_path):
    """Nothing between the last attention and the logits is computed at positions that nobody reads, but what attention
    itself reads too.
    """
    exported(family, tmp_path)
    nodes = list(ir.load(tmp_path / GRAPH).graph)
    last = max(i for i, n in enumerate(nodes) if n.op_type == "GroupQueryAttention")
    assert "GatherElements" not in {n.op_type for n in nodes}
    picked = [n for n in nodes if n.op_type == "GatherND"]
    behind = [
        n
        for n in nodes[last:]
        if n.op_type == "MatMulNBits"
        and n.inputs[1].name.endswith(("o_proj.codes", "dense.codes", "attn.c_proj.codes"))
    ]
    assert behind or family == "opt"
    for product in behind:
        assert product.inputs[0].producer() in picked


def test_all_logits_keep_all_positions(tmp_path):
    exported("llama", tmp_path, logits="all")
    assert not {"GatherElements", "GatherND"} & {n.op_type for n in ir.load(tmp_path / GRAPH).graph}


@pytest.mark.parametrize(("family", "products", "norms"), [("llama", 5, 2), ("qwen3", 7, 2), ("gpt2", 4, 0)])
def test_a_layer_is_as_few_nodes_as_its_operators_allow(family, products, norms, tmp_path):
    """Llama: q|k|v, output, gate, up, down; two fused norms.

    Qwen3's norms on keys and queries keep its projections apart.
    """
    exported(family, tmp_path)
    nodes = list(ir.load(tmp_path / GRAPH).graph)
    first = next(i for i, n in enumerate(nodes) if n.op_type.endswith("LayerNormalization"))  # after the look-up
    counts = Counter(n.op_type for n in nodes[first:])
    assert counts["MatMulNBits"] == 2 * products + 1
    assert counts["GroupQueryAttention"] == 2
    assert counts["SkipSimplifiedLayerNormalization"] == 2 * norms
    if family == "llama":
        assert counts["Reshape"] == counts["Sigmoid"] == 0
        assert counts["QuickGelu"] == 2
        assert counts["Mul"] == 2 * 3  # [1 | l_k | l_v], l_ff, and the gate


def test_packed_projections_are_the_three_tensors_one_after_the_other(tmp_path):
    model, _, _, regions = exported("llama", tmp_path)
    layer, data = model.model.layers[1].self_attn, (tmp_path / DATA).read_bytes()
    for kind in ("codes", "scales", "zero_points"):
        region = next(r for r in regions if r.name == f"model.layers.1.self_attn.qkv_proj.{kind}")
        stores = [m.store for m in (layer.q_proj, layer.k_proj.base, layer.v_proj.base)]
        expected = b"".join(getattr(s, kind).numpy().tobytes() for s in stores)
        assert data[region.offset : region.offset + region.bytes] == expected
        assert [name for name, _ in region.packed] == [f"model.layers.1.self_attn.{p}_proj.{kind}" for p in "qkv"]


def test_biases_are_packed_and_folded_with_their_rows(tmp_path):
    """Qwen2 has biases on q, k and v and none elsewhere."""
    _, _, _, regions = exported("qwen2", tmp_path, folded=True)
    assert len([r for r in regions if r.name.endswith("qkv_proj.bias")]) == 2


def test_all_logits_on_request(tmp_path):
    model, _, vectors, _ = exported("llama", tmp_path, logits="all")
    session = ort.InferenceSession(str(tmp_path / GRAPH))
    tokens = ids(1, 6)
    empty = np.zeros((1, 2, 0, 16), np.float32)
    cache = {i.name: empty for i in session.get_inputs() if i.name.startswith("past")}
    logits = session.run(
        ["logits"], {"input_ids": tokens.numpy(), "attention_mask": np.ones((1, 6), np.int64), **cache, **fed(vectors)}
    )[0]
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(input_ids=tokens).logits.numpy(), atol=1e-3)


def test_what_is_trained_is_what_ships(tmp_path):
    """Law 1: the modules' bytes, by SHA-256, are the initializers' bytes; a tied head and embedding are one region."""
    from tiny import SHAPE
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE, tie_word_embeddings=True)).eval()
    quantise_model(model, Grid(32, False))
    attach(model, find_roles(model).sites)
    trained = {
        hashlib.sha256(t.numpy().tobytes()).hexdigest()
        for m in model.modules()
        if isinstance(m, GridWeight)
        for t in m.buffers()
    }
    regions = write_graph(export_decoder(model, 4, 48, "last"), tmp_path, ["model.embed_tokens", "lm_head"])
    data = (tmp_path / DATA).read_bytes()
    shipped = []
    for r in regions:
        ends = np.cumsum([size for _, size in r.packed or [(r.name, r.bytes)]])
        if r.part.removeprefix("embedding_") in ("codes", "scales", "zero_points"):
            shipped += [
                hashlib.sha256(piece).hexdigest()
                for piece in np.split(np.frombuffer(data, np.uint8, r.bytes, r.offset), ends)[:-1]
            ]
    assert sum(bool(r.packed) for r in regions) == 2 * 3  # q|k|v of each layer
    assert set(shipped) == trained
    assert len(shipped) == len(set(shipped))
    assert [r.part for r in regions if r.part.startswith("embedding")] == [
        "embedding_codes",
        "embedding_scales",
        "embedding_zero_points",
    ]


def test_learned_positions_are_no_norms(tmp_path):
    model = tiny("gpt2")
    quantise_model(model, Grid(32, False))
    regions = write_graph(export_decoder(model, 0, 48, "last"), tmp_path, ["transformer.wte", "lm_head"])
    assert [r.bytes for r in regions if r.part == "positions"] == [4 * model.transformer.wpe.weight.numel()]
    assert all("ln_" in r.name or r.name.endswith("bias") for r in regions if r.part == "norms_and_biases")


def test_exporting_leaves_the_model_as_it_was(tmp_path):
    model = tiny("gemma2")
    quantise_model(model, Grid(32, False))
    before = model(input_ids=ids()).logits
    export_decoder(model, 4, 48, "last")
    torch.testing.assert_close(model(input_ids=ids()).logits, before, rtol=0, atol=0)


def test_the_graph_names_no_folder_of_the_build_machine(tmp_path):
    exported("llama", tmp_path)
    text = (tmp_path / GRAPH).read_bytes()
    assert b"site-packages" not in text
    assert b".py" not in text


def test_scales_that_are_inputs_are_refused(tmp_path):
    exported("llama", tmp_path, level=4)
    graph = ir.load(tmp_path / GRAPH)
    node = next(n for n in graph.graph if n.op_type == "MatMulNBits")
    graph.graph.inputs.append(node.inputs[2])
    with pytest.raises(PreconditionError, match="not constant"):
        ConstantWeights()(graph)
