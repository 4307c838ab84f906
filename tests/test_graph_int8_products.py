"""Int8 products for prompts: the graph computes what torch does with activations and weights rounded by torch's own
arithmetic, its cache is the decoder's, and smoothing is worth what the docstring says.
"""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes import PreconditionError
from test_graph import exported, fed
from tiny import ALL, DECODERS, ids

from qia3.base.modules import GridLinear
from qia3.bundle.layout import DATA, GRAPH, PROMPT_DATA, PROMPT_GRAPH
from qia3.graph import int8_products
from qia3.graph.cache import largest_kept, pairs_of, with_int8_cache
from qia3.graph.external import PROMPT_WEIGHTS, write_graphs
from qia3.graph.forced import OrtDecoder
from qia3.graph.int8_products import (
    Int8Products,
    Seen,
    Watched,
    products,
    prompt_graph,
    rounded_product,
    smoothing,
    weights,
)

PROMPT, MORE = ids(1, 23)[0].tolist(), [7, 9, 11]
SOME = DECODERS if ALL else ["llama", "gemma2", "qwen3", "phi3", "gpt2", "gpt_neox", "opt"]


def int8_graph(family, folder, **options):
    """The model, its vectors and the regions; the prompts' graph is beside the decoder's."""
    model, scaled, vectors, _ = exported(family, folder, **options)
    vectors = vectors if scaled else {}  # folded: they are in the weights
    seen = watched(folder / GRAPH, vectors)
    regions = write_graphs({PROMPT_GRAPH: prompt_graph(folder / GRAPH, seen)}, PROMPT_DATA, folder, ["lm_head"])
    return model, vectors, regions


def watched(graph, vectors, every=False):
    session = Watched(graph, every)
    for tokens, given in ((PROMPT, fed(vectors)), ([5, 6, *MORE], {})):
        OrtDecoder(session).logits(tokens, [], given)
    return session.seen


@pytest.mark.parametrize(("family", "longest"), [*((family, 640) for family in SOME), ("llama", 50), ("gpt2", 50)])
def test_the_graph_is_torch_with_its_products_rounded(family, longest, tmp_path, monkeypatch):
    """The oracle is transformers' own forward, each product in it rounded by torch, in the parts that the graph has."""
    monkeypatch.setattr(int8_products, "LONGEST", longest)
    model, vectors, _ = int8_graph(family, tmp_path)
    plain, both = OrtDecoder(tmp_path / GRAPH), OrtDecoder(tmp_path / GRAPH, tmp_path / PROMPT_GRAPH)
    found = both.logits(PROMPT, [], fed(vectors))
    rounded = torch_with_rounded_products(model, *(ir.load(tmp_path / file) for file in (GRAPH, PROMPT_GRAPH)))
    near = np.abs(found - rounded).max()
    far = np.abs(plain.logits(PROMPT, [], fed(vectors)) - rounded).max()
    assert near < 0.01 * np.abs(rounded).max()
    assert near < far / 2  # rounding is a choice of code: a last digit may fall on the other side
    assert far < 0.05 * np.abs(rounded).max()


@pytest.mark.parametrize("options", [{}, {"eight_bit": ("down",)}, {"symmetric": True}, {"logits": "all"}])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_with_every_product_in_int8_it_is_torch_with_all_of_them_rounded(family, options, tmp_path):
    """The head and what runs at one position as well. No 4-bit product is left, and nothing is read from the file."""
    model, _, vectors, _ = exported(family, tmp_path, **options)
    plain, graph = (
        OrtDecoder(tmp_path / GRAPH),
        int8_products.int8_graph(tmp_path / GRAPH, watched(tmp_path / GRAPH, vectors, every=True)),
    )
    assert not products(graph, every=True)
    ir.save(graph, tmp_path / "alone.onnx")
    (tmp_path / DATA).rename(tmp_path / "away")
    found = OrtDecoder(tmp_path / "alone.onnx").logits(PROMPT, [], fed(vectors))
    (tmp_path / "away").rename(tmp_path / DATA)
    rounded = torch_with_rounded_products(model, ir.load(tmp_path / GRAPH), graph, every=True)
    near = np.abs(found - rounded).max()
    far = np.abs(plain.logits(PROMPT, [], fed(vectors)) - rounded).max()
    assert near < 0.01 * np.abs(rounded).max()
    assert near < far / 2


def torch_with_rounded_products(model, decoder, graph, every=False):
    """Logits [1, V] after PROMPT."""
    known = {n: v.const_value.numpy() for n, v in graph.graph.initializers.items() if v.const_value is not None}
    before = norm_weights(decoder, every)
    once = {n.inputs[1].name.removesuffix(".codes") for n in products(decoder, every)}
    once -= {n.inputs[1].name.removesuffix(".codes") for n in products(decoder)}
    once = once if len(once) > 1 else set()  # with logits of all positions it is the head, at all of them
    changed = []
    for name, module in model.named_modules():
        short = name.removesuffix(".base")
        packed = re.sub(r"\.[qkv]_proj$", ".qkv_proj", short)
        sizes = [len(v) for n, v in known.items() if re.fullmatch(rf"({packed}|{short})(\.\d+)?\.int8", n)]
        if isinstance(module, GridLinear) and sizes:
            assert sum(sizes) == module.in_features
            same = [short, packed, re.sub(r"\.up_proj$", ".gate_proj", short)]
            same += [re.sub(r"\.[qkv]_proj$", f".{one}_proj", short) for one in "qkv"]
            inverse, normed = next(
                (known[f"{n}.smoothing"], False)
                if f"{n}.smoothing" in known
                else (known[f"{n}.smoothed_norm"] / before[n], True)
                for n in same
                if f"{n}.smoothing" in known or f"{n}.smoothed_norm" in known
            )
            module.computed = rounding(
                module, torch.from_numpy(inverse.copy()), [sum(sizes)] if normed else sizes, normed, short in once
            )
            changed.append(module)
    assert changed
    try:
        with torch.no_grad():
            return model(input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0, -1:].numpy()
    finally:
        for module in changed:
            del module.computed


def norm_weights(decoder, every):
    """What the norm before each product multiplies by, by the product's module."""
    found = {}
    for node in products(decoder, every):
        norm = node.inputs[0].producer()
        if norm is not None and "Normalization" in norm.op_type:
            number = 2 if norm.op_type.startswith("Skip") else 1
            found[node.inputs[1].name.removesuffix(".codes")] = norm.inputs[number].const_value.numpy()
    return found


def rounding(module, inverse, sizes, normed, once):
    def computed(given):
        if once:  # nothing reads what the other positions would give
            given = given[:, -1:].expand_as(given)
        pairs = zip((given * inverse).split(sizes, -1), (module.weight / inverse).split(sizes, 1), strict=True)
        to_codes = rounded_together if normed else rounded
        y = sum(torch.nn.functional.linear(to_codes(x), rounded(w)) for x, w in pairs)
        return y if module.bias is None else y + module.bias

    return computed


def rounded_together(x):
    """ONNX's DynamicQuantizeLinear."""
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    step = (high - low) / 255
    zero = round(-low / step)
    return (((x / step).round() + zero).clamp(0, 255) - zero) * step


def rounded(rows):
    scale = rows.abs().amax(-1, keepdim=True) / 127
    return (rows / scale).round() * scale


@pytest.mark.parametrize(
    "options", [{}, {"eight_bit": ("down",)}, {"symmetric": True}, {"folded": True}, {"logits": "all"}]
)
def test_steps_continue_its_cache(options, tmp_path):
    _, vectors, _ = int8_graph("llama", tmp_path, **options)
    plain, both = OrtDecoder(tmp_path / GRAPH), OrtDecoder(tmp_path / GRAPH, tmp_path / PROMPT_GRAPH)
    one, other = (decoder.logits(PROMPT, MORE, fed(vectors)) for decoder in (plain, both))
    assert 0 < np.abs(one - other).max() < 0.05 * np.abs(one).max()


def test_only_int8_weights_are_new_in_its_file(tmp_path):
    _, _, regions = int8_graph("llama", tmp_path)
    assert {region.part for region in regions} == {PROMPT_WEIGHTS}
    graph, decoder = ir.load(tmp_path / PROMPT_GRAPH), ir.load(tmp_path / GRAPH)
    sizes = [int(np.prod([n.attributes[k].as_int() for k in "NK"])) for n in products(decoder)]
    assert sum(r.bytes for r in regions if r.name.endswith(".int8")) == sum(sizes)
    files = {
        v.const_value.path for v in graph.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)
    }
    assert len(files) == 2
    left = [node.inputs[1].name for node in graph.graph if node.op_type == "MatMulNBits"]
    once = ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # at one position, as is the head
    assert left == [f"model.layers.1.{n}.codes" for n in once] + ["lm_head.codes"]


def test_with_an_int8_cache_both_graphs_keep_the_same_codes(tmp_path):
    _, vectors, _ = int8_graph("llama", tmp_path)
    most = largest_kept(OrtDecoder(tmp_path / GRAPH), [(PROMPT, fed(vectors))], pairs_of(ir.load(tmp_path / GRAPH)))
    for file in (GRAPH, PROMPT_GRAPH):
        with_int8_cache(tmp_path / file, most)
    kept = [OrtDecoder(tmp_path / GRAPH, first).kept(PROMPT, fed(vectors)) for first in (None, tmp_path / PROMPT_GRAPH)]
    for name in kept[0]:
        assert kept[1][name].dtype == np.int8
        assert np.abs(kept[0][name].astype(int) - kept[1][name]).max() <= 12


def test_weights_are_those_that_train(tmp_path):
    model, _, _, _ = exported("gpt2", tmp_path)
    for node in products(ir.load(tmp_path / GRAPH)):
        name = node.inputs[1].name.removesuffix(".codes")
        module = next(
            m for n, m in model.named_modules() if n.removesuffix(".base") == name and isinstance(m, GridLinear)
        )
        np.testing.assert_array_equal(weights(node), module.weight.numpy())


def test_smoothing_changes_nothing_but_the_rounding(tmp_path):
    """A few channels a hundred times as large as the rest: without s a row's scale is theirs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 96)).astype(np.float32)
    x[:, [3, 50]] *= 100
    w = rng.normal(size=(40, 96)).astype(np.float32)
    s = smoothing(Seen(np.abs(x).max(0), list(x)), [w])
    exact = x @ w.T
    errors = [np.square(rounded_product(x, w, one) - exact).mean() for one in (np.ones(96, np.float32), s)]
    assert errors[1] < errors[0] / 10
    np.testing.assert_allclose((x / s) @ (w * s).T, exact, rtol=1e-3, atol=1e-3)
    assert s.argsort()[-2:].tolist() in ([3, 50], [50, 3])


def test_inputs_of_zeros_stay_zeros():
    x, w = np.zeros((4, 32), np.float32), np.ones((8, 32), np.float32)
    s = smoothing(Seen(np.abs(x).max(0), list(x)), [w])
    assert np.isfinite(s).all()
    assert (rounded_product(x, w, s) == 0).all()


def test_a_graph_whose_activations_are_not_known_is_refused(tmp_path):
    exported("llama", tmp_path)
    with pytest.raises(PreconditionError, match="range is not known"):
        Int8Products({})(ir.load(tmp_path / GRAPH))
