"""Models that compute attention by hand, seen through transformers' interface; what stands in their scores."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, label, random_model
from tiny import ids
from transformers import AttentionInterface

from qia3.errors import BaseModelError
from qia3.graph import scores
from qia3.graph.attention import forms_of, shared_biases
from qia3.graph.scores import bias_table, own_window, taken_apart
from qia3.graph.watch import watch
from qia3.ia3.by_hand import by_hand
from qia3.ia3.roles import attention

NAMES = [
    "bloom",
    "gptj",
    "codegen",
    "mpt",
    "xglm",
    "gpt_neo, window in one layer",
    "falcon, one key head",
    "falcon, alibi",
]


def model_of(name):
    return random_model(next(f for f in FAMILIES if label(f) == name))


@pytest.mark.parametrize("name", NAMES)
def test_attention_by_hand_comes_through_the_interface_and_goes_back(name):
    """The answers handed back are the module's own product to the bit; another answer changes the model; afterwards
    nothing is left.
    """
    model, tokens, calls = model_of(name), ids(2, 7), []

    def attend(module, q, k, v, mask, scaling=None, made=None, **_):
        calls.append((q, k, v, made))
        weights = made.scores.softmax(-1) @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        torch.testing.assert_close(weights.transpose(1, 2), made.answer)
        return made.answer * factor, None

    def logits():
        with torch.no_grad():
            return model(input_ids=tokens, use_cache=False).logits

    AttentionInterface.register("test_by_hand", attend)
    before = logits()
    assert len(by_hand(model)) == 2
    found = []
    for factor in (1.0, 0.5):  # noqa: B007 (attend reads it)
        with attention(model, "test_by_hand"):
            found.append(logits())
    assert len(calls) == 4
    assert found[0].shape == before.shape
    assert not torch.allclose(found[1], found[0])
    assert torch.equal(logits(), before)
    assert not any("forward" in m.__dict__ for m in by_hand(model).values())


def test_scale_and_biases_are_the_families_own():
    """BLOOM's slopes by the paper's formula; GPT-Neo's scores are not scaled; rotation adds nothing."""
    model = model_of("bloom")
    (first, *_), table = watch(model).calls, shared_biases(model, watch(model), 50)
    slopes = torch.tensor([2.0 ** (-2 * i) for i in range(1, 5)] + [2.0**-1, 2.0**-3])  # of 6 heads
    torch.testing.assert_close(table, slopes[:, None] * torch.arange(50), rtol=1e-6, atol=1e-6)
    assert first.scale == pytest.approx(16**-0.5, rel=1e-6)
    assert watch(model_of("gpt_neo, window in one layer")).calls[0].scale == pytest.approx(1, rel=1e-6)
    model = model_of("gptj")
    assert shared_biases(model, watch(model), 50) is None


def test_biases_that_are_no_straight_line_are_kept_as_they_are(monkeypatch):
    """Falcon rounds its biases to bfloat16: past 256 not every position has its own."""
    model = model_of("falcon, alibi")
    seen = watch(model)
    table = shared_biases(model, seen, 300)
    slopes = 2.0 ** (-2.0 * torch.arange(1, 5))
    expected = slopes.bfloat16()[:, None] * torch.arange(300) / 16**0.5
    torch.testing.assert_close(table[:4], expected.float(), rtol=1e-3, atol=1e-5)
    assert float((table[:4] - slopes[:, None] * torch.arange(300) / 4).abs().max()) > 0.01
    monkeypatch.setattr(scores, "LONGEST", 280)
    with pytest.raises(
        BaseModelError, match=r"not a straight line and are only known up to 280 tokens: set context_length = 280"
    ):
        shared_biases(model, seen, 300)


def test_biases_of_the_text_itself_are_refused():
    model = model_of("bloom")
    table = shared_biases(model, watch(model), 12)
    with pytest.raises(BaseModelError, match="depend on the text"):
        bias_table(model, table + torch.arange(12).sin(), 0.25, 12)


def test_keys_that_a_model_has_repeated_are_kept_once():
    model = model_of("falcon, new decoder architecture")
    forms = forms_of(model, watch(model))
    assert {(f.kv_heads, f.groups, f.size, f.values) for f in forms.values()} == {(2, 3, 16, 16)}
    forms = forms_of(model_of("minicpm3, latent attention"), watch(model_of("minicpm3, latent attention")))
    assert {(f.kv_heads, f.groups, f.size, f.values) for f in forms.values()} == {(6, 1, 24, 16)}


def test_a_mask_of_a_modules_own_is_a_window_or_refused():
    first, second = by_hand(model_of("gpt_neo, window in one layer")).values()
    assert (own_window(first), own_window(second)) == (None, 7)
    second.bias[0, 0, 20, 3] = True
    with pytest.raises(BaseModelError, match="GPTNeoSelfAttention has its own mask, which is not a window"):
        own_window(second)


def test_scores_are_taken_apart_where_nothing_is_seen_as_well():
    q, k = (torch.randn(1, 4, 9, 16, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    bias = torch.randn(1, 4, 1, 9) + torch.randn(1, 4, 9, 1)
    made = (0.3 * q @ k.transpose(2, 3) + bias).masked_fill(torch.ones(9, 9).triu(1).bool(), -1e9)
    scale, rest = taken_apart(made, q, k)
    assert scale == pytest.approx(0.3, rel=1e-5)
    seen = made > -1e8
    torch.testing.assert_close(rest[seen], bias.expand_as(rest)[seen], rtol=1e-4, atol=1e-5)
