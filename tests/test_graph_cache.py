"""An int8 cache: what is kept is a float32 cache's numbers, rounded; and what the graph computes is attention over them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes import PreconditionError
from test_graph import exported, fed
from tiny import ids
from transformers import AttentionInterface

from qia3.bundle.cache_range import check_range, write_range
from qia3.bundle.layout import GRAPH
from qia3.errors import AdapterError
from qia3.graph.cache import MARGIN, Int8Cache, largest_kept, pairs_of, with_int8_cache
from qia3.graph.forced import OrtDecoder
from qia3.ia3.roles import attention

# a window, a cap on scores, fused and ungated projections, an own scale
FAMILIES = ["llama", "gemma2", "gpt_neox", "granite"]
PROMPT, MORE = ids(1, 11)[0].tolist(), [7, 9, 11]


def int8_graph(family: str, folder: Path, **options):
    """The model, its vectors, both decoders and what the float32 one kept at most."""
    model, _, vectors, _ = exported(family, folder, **options)
    plain = OrtDecoder(folder / GRAPH)
    texts = [(PROMPT, fed(vectors)), ([*PROMPT, *MORE], fed(vectors))]
    most = largest_kept(plain, texts, pairs_of(ir.load(folder / GRAPH)))
    return model, vectors, plain, OrtDecoder(with_int8_cache(folder / GRAPH, most)), most


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_kept_is_rounded_by_channel(family, tmp_path):
    """numpy's own quantisation of what the float32 graph keeps, in its first layer, where both see the same."""
    _, vectors, plain, small, most = int8_graph(family, tmp_path)
    floats, codes = (decoder.kept(PROMPT, fed(vectors)) for decoder in (plain, small))
    for name in [n for n in codes if ".0." in n]:
        scale = step_of(most, name)
        expected = np.clip(np.rint(floats[name] / scale), -128, 127)
        assert codes[name].dtype == np.int8
        assert np.abs(codes[name] - expected).max() <= 1  # ties, and the last digit of the rotation
        assert (codes[name] == expected).mean() > 0.99
        assert np.abs(codes[name]).max() >= 100 / MARGIN  # the digits are used


@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_is_torch_with_keys_and_values_rounded(family, tmp_path):
    """The oracle is transformers' eager attention, its keys and values rounded by numpy's arithmetic before it."""
    model, vectors, plain, small, most = int8_graph(family, tmp_path)
    found = small.logits(PROMPT, MORE, fed(vectors))
    rounded = torch_with_rounded_cache(model, most)
    near, far = np.abs(found - rounded).max(), np.abs(plain.logits(PROMPT, MORE, fed(vectors)) - rounded).max()
    assert near < 0.02 * np.abs(rounded).max()
    assert near < far  # nearer to the rounded model than the float32 cache is


def step_of(most, name):
    """[1, kv heads, 1, head size]: what one code is worth; some vectors have noughts, and so have their channels."""
    return np.where(most[name] > 0, most[name] * MARGIN / 127, 1)[None, :, None].astype(np.float32)


def torch_with_rounded_cache(model, most):
    eager = sys.modules[type(model).__module__].eager_attention_forward

    def attend(layer, q, k, v, mask, **rest):
        kept = []
        for part, x in (("key", k), ("value", v)):
            scale = torch.from_numpy(step_of(most, f"past_key_values.{layer.layer_idx}.{part}"))
            kept.append((x / scale).round().clamp(-128, 127) * scale)
        length = q.shape[2]
        shown = torch.ones(length, length).tril().bool()
        if window := rest.get("sliding_window"):
            shown &= torch.ones(length, length).triu(1 - window).bool()
        mask = torch.zeros(1, 1, length, length).masked_fill(~shown, float("-inf"))
        return eager(layer, q, *kept, mask, **rest)

    AttentionInterface.register("rounded", attend)
    with attention(model, "rounded"), torch.no_grad():
        logits = model(input_ids=torch.tensor([[*PROMPT, *MORE]]), use_cache=False).logits
    return logits[0, len(PROMPT) - 1 :].numpy()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_key_is_within_its_range_at_every_position(family, tmp_path):
    """A short text is seen; the same tokens later on are turned further, and nothing is cut off."""
    _, vectors, plain, _, _ = int8_graph(family, tmp_path / "a")
    exported(family, tmp_path / "b")
    most = largest_kept(plain, [([7], fed(vectors))], pairs_of(ir.load(tmp_path / "b" / GRAPH)))
    later = plain.kept([7] * 40, fed(vectors))["past_key_values.0.key"]  # layer 0 sees the token alone
    assert (np.abs(later[0]) <= 1.0001 * most["past_key_values.0.key"][:, None]).all()
    alone = largest_kept(plain, [([7], fed(vectors))], {})
    assert (np.abs(later[0]) > 1.01 * alone["past_key_values.0.key"][:, None]).any()


def test_a_prompt_in_pieces_and_a_cache_in_place(tmp_path):
    _, vectors, _, small, _ = int8_graph("llama", tmp_path)
    whole = small.after([PROMPT], fed(vectors))
    pieces = small.after([PROMPT[:6], PROMPT[6:]], fed(vectors))
    np.testing.assert_allclose(pieces[1:], whole, atol=0.02 * np.abs(whole).max())


def test_a_graph_whose_range_is_not_known_is_refused(tmp_path):
    exported("llama", tmp_path)
    with pytest.raises(PreconditionError, match=r"range is not known: \['past_key_values.0.key'"):
        Int8Cache({})(ir.load(tmp_path / GRAPH))


def test_an_adapter_beyond_the_range_is_refused(tmp_path):
    key = np.array([1.5, 0.5, -2.0], np.float32)
    write_range(tmp_path, ["a.ia3_l"], [{"a.ia3_l": key, "b.ia3_l": key}])
    check_range(tmp_path, {"a.ia3_l": np.array([-1.5, 1.0, 2.0], np.float32), "b.ia3_l": 9 * key}, "x")
    with pytest.raises(AdapterError, match=r"x makes keys or values 1\.20 times as large .* \(a\.ia3_l\)"):
        check_range(tmp_path, {"a.ia3_l": np.array([1.5, 1.2, 2.0], np.float32)}, "x")
    check_range(tmp_path / "float", {"a.ia3_l": 100 * key}, "x")
