"""Calibrated rounding: the grid against a slow second implementation, the moments against a plain sum, families, and
the base that is kept.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import DECODERS, ids, tiny
from tiny_build import write_base
from torch import nn
from transformers import AutoTokenizer
from transformers.pytorch_utils import Conv1D

from qia3.base import kept, load
from qia3.base.calibrate import Moments, layer_stack
from qia3.base.frozen import BaseModel, fingerprint
from qia3.base.modules import GridLinear
from qia3.base.quantise import Grid, _bias, _replace, float_weight, quantise_model
from qia3.base.weights import Int4Weight
from qia3.base.windows import _drawn, _in_bfloat16, own_windows, read_windows, window_length
from qia3.errors import BaseModelError
from qia3.grids import int4
from qia3.grids.calibrated import DAMPING, Seen, damp, inverse_factor, quantise_calibrated


def correlated(inputs: int, seed: int = 0) -> np.ndarray:
    """Second moment [K, K] of inputs that mostly lie in a quarter of the directions."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(600, inputs // 4)) @ rng.normal(size=(inputs // 4, inputs)) + 0.3 * rng.normal(
        size=(600, inputs)
    )
    return (x.T @ x / len(x)).astype(np.float32)


def output_error(weight: np.ndarray, grid: int4.Int4, moment: np.ndarray) -> float:
    """E |(W - Q) x|^2."""
    difference = weight - int4.dequantise(grid)
    return float(np.einsum("ni,ij,nj->", difference, moment, difference))


def conditional_rounding(weight: np.ndarray, moment: np.ndarray, grid: int4.Int4) -> np.ndarray:
    """The same scales and zero points, codes by the definition: the largest input first, and after each the rest is set
    to the minimum of e H e^T, solved anew.
    """
    _, zeros = int4.unpack(grid)
    matrix, result = damp(moment), np.empty(weight.shape)
    order = sorted(range(len(matrix)), key=lambda i: -matrix[i, i])
    for n in range(len(weight)):
        left = weight[n].astype(np.float64)
        for at, i in enumerate(order):
            scale, zero = grid.scales[n, i // grid.block_size], zeros[n, i // grid.block_size]
            result[n, i] = (np.clip(np.rint(left[i] / scale), -float(zero), 15 - float(zero)) if scale else 0) * scale
            if rest := order[at + 1 :]:
                left[rest] += np.linalg.solve(matrix[np.ix_(rest, rest)], matrix[rest, i]) * (left[i] - result[n, i])
    return result


@pytest.mark.parametrize("symmetric", [False, True])
def test_each_error_is_made_good_by_the_inputs_that_follow(symmetric):
    weight, moment = np.random.default_rng(1).normal(size=(5, 48)).astype(np.float32), correlated(48)
    grid = quantise_calibrated(weight, Seen(moment), 16, symmetric)
    same = np.isclose(int4.dequantise(grid), conditional_rounding(weight, moment, grid), atol=1e-5)
    assert (
        same.mean() > 0.98
    )  # float32 against float64: a value that lies between two codes may fall to either side, and moves what follows


def test_scales_are_those_of_the_float_weights():
    """They are chosen before the first input is rounded, weighted by the damped diagonal."""
    weight, moment = np.random.default_rng(1).normal(size=(5, 48)).astype(np.float32), correlated(48)
    grid = quantise_calibrated(weight, Seen(moment), 16)
    power = damp(moment).diagonal().astype(np.float32)
    for b, here in enumerate((slice(0, 16), slice(16, 32), slice(32, 48))):
        _, scales, zeros = int4.choose(weight[:, here], power[None, here], False)
        np.testing.assert_allclose(grid.scales[:, b], scales, rtol=1e-6)
        assert np.array_equal(int4.unpack(grid)[1][:, b], zeros.astype(np.uint8))


def test_the_largest_inputs_first_lose_less():
    """Over many draws, against the same rounding in the inputs' own order."""
    errors = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        uneven = np.exp(rng.normal(size=64)).astype(np.float32)  # as inputs of a real layer are
        weight, moment = rng.normal(size=(16, 64)).astype(np.float32), correlated(64, seed) * np.outer(uneven, uneven)
        seen, own = Seen(moment), Seen(moment)
        own.__dict__["order"] = np.arange(64)
        errors.append([output_error(weight, quantise_calibrated(weight, s, 32), moment) for s in (seen, own)])
    first, natural = np.sum(errors, axis=0)
    assert first < 0.95 * natural


@pytest.mark.parametrize("inputs", [50, 96, 128])
@pytest.mark.parametrize("block", [16, 64])
def test_outputs_are_nearer_than_by_rounding_weights_alone(block, inputs):
    weight, moment = np.random.default_rng(2).normal(size=(9, inputs)).astype(np.float32), correlated(inputs)
    calibrated, alone = quantise_calibrated(weight, Seen(moment), block), int4.quantise(weight, block)
    assert output_error(weight, calibrated, moment) < 0.6 * output_error(weight, alone, moment)
    assert calibrated.codes.shape == alone.codes.shape
    assert calibrated.inputs == inputs


def test_inputs_that_do_not_correlate_are_rounded_alone():
    weight = np.random.default_rng(3).normal(size=(7, 64)).astype(np.float32)
    grid = quantise_calibrated(weight, Seen(np.eye(64, dtype=np.float32)), 32)
    block = np.repeat(np.arange(2), 32)
    nearest = np.abs(weight - int4.dequantise(grid)) <= np.abs(grid.scales[:, block]) / 2 + 1e-6
    _, zeros = int4.unpack(grid)
    inside = (weight / grid.scales[:, block] + zeros[:, block] > 0) & (
        weight / grid.scales[:, block] + zeros[:, block] < 15
    )
    assert nearest[inside].all()


def test_inputs_that_were_always_zero_do_no_harm():
    weight, moment = np.random.default_rng(4).normal(size=(3, 32)).astype(np.float32), correlated(32)
    moment[5], moment[:, 5] = 0, 0
    assert np.isfinite(int4.dequantise(quantise_calibrated(weight, Seen(moment), 16))).all()
    assert np.isfinite(int4.dequantise(quantise_calibrated(weight, Seen(np.zeros_like(moment)), 16))).all()
    assert damp(moment)[5, 5] == pytest.approx(
        1 + DAMPING * np.where(moment.diagonal() > 0, moment.diagonal(), 1).mean()
    )


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (np.full((32, 32), np.nan, np.float32), "not finite"),
        (np.eye(31, dtype=np.float32), r"of shape \[32, 32\], not \[31, 31\]"),
    ],
)
def test_a_moment_that_cannot_be_one_is_refused(bad, said):
    with pytest.raises(ValueError, match=f"second moment .*{said}"):
        quantise_calibrated(np.ones((2, 32), np.float32), Seen(bad), 16)


def test_a_block_of_numbers_next_to_zero_leaves_the_rest_of_its_row_alone():
    """The inverse of such a block's scale is infinite, and infinity times zero would reach every later input."""
    weight = (np.random.default_rng(0).normal(size=(1, 64)) * 0.05).astype(np.float32)
    weight[0, :16] = 1e-40
    weight[0, 0] = 0
    moment = np.eye(64, dtype=np.float32) + np.float32(0.1)
    moment[0, 0] = 2
    assert np.abs(int4.dequantise(quantise_calibrated(weight, Seen(moment), 16)) - weight).max() < 0.01


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_moments_are_of_what_the_layers_see_when_those_before_are_quantised(family):
    """Against a plain sum over the inputs of the last layer's first product, hooked in a model whose first layer is
    quantised and no more.
    """
    model, windows = tiny(family), ids(3, 40)
    moments = Moments(model, windows)
    path, stack = layer_stack(model)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and n.startswith(f"{path}.")]
    for name in names:
        moment = moments.of(name)
        assert moment is not None
        if name.startswith(f"{path}.1."):
            break
        layer = model.get_submodule(name)
        _replace(model, layer, GridLinear(Int4Weight.from_float(float_weight(layer), 32, False, moment), _bias(layer)))
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1]))
    )
    with torch.no_grad():
        model(input_ids=windows)
    handle.remove()
    np.testing.assert_allclose(
        moment.moment, (seen[0].T @ seen[0]).numpy(), rtol=1e-3, atol=1e-3 * float(moment.moment.max())
    )
    assert len(stack) == 2


@pytest.mark.parametrize("family", DECODERS)
def test_a_calibrated_model_is_nearer_to_the_float_one(family):
    reference = tiny(family)
    windows = own_windows(reference, window_length(reference))
    with torch.no_grad():
        wanted = reference(input_ids=windows).logits.log_softmax(-1)

    def divergence(chosen) -> float:
        model = tiny(family)
        quantise_model(model, Grid(32, False), windows=chosen)
        with torch.no_grad():
            return float((wanted.exp() * (wanted - model(input_ids=windows).logits.log_softmax(-1))).sum(-1).mean())

    assert divergence(windows) < 0.9 * divergence(None)


def test_own_windows_are_the_same_every_time():
    first, second = (own_windows(tiny("llama"), 24) for _ in range(2))
    assert first.shape == (32, 24)
    assert torch.equal(first, second)


class Letters:
    """A tokenizer of one token a character."""

    def encode(self, text: str, **_: bool) -> list[int]:
        return [ord(c) for c in text]


def test_a_text_is_used_from_its_beginning_to_its_end(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + i // 64) * 16 for i in range(256)))  # 256 windows of 16
    windows = read_windows(Letters(), text, 16)
    assert windows.shape == (32, 16)
    assert (windows[0, 0], windows[-1, 0]) == (97, 100)
    text.write_text("short")
    with pytest.raises(BaseModelError, match=r"has 5 tokens; at least 16 are needed, 512 are used"):
        read_windows(Letters(), text, 16)
    with pytest.raises(BaseModelError, match="cannot read the calibration text"):
        read_windows(Letters(), tmp_path / "nothing.txt", 16)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tiny_tokenizer(tiny_folder):
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture
def base(tiny_tokenizer):
    model = tiny("llama")
    quantise_model(model, Grid(32, False))
    return BaseModel(
        reference="tiny",
        model=model,
        tokenizer=tiny_tokenizer,
        fingerprint=fingerprint(model),
        block_size=32,
        symmetric=False,
        parameters=1234,
        calibration="own",
    )


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "opt", "phi3"])
def test_a_kept_base_is_the_base(family, tiny_tokenizer, tmp_path):
    model = tiny(family)
    quantise_model(model, Grid(32, family == "opt"))
    made = BaseModel(
        reference="tiny",
        model=model,
        tokenizer=tiny_tokenizer,
        fingerprint=fingerprint(model),
        block_size=32,
        symmetric=family == "opt",
        parameters=1234,
        calibration="own",
    )
    kept.keep(made, tmp_path / "base")
    read = kept.open_kept(tmp_path / "base", "tiny")
    assert read.fingerprint == made.fingerprint
    assert (read.parameters, read.symmetric, read.calibration) == (1234, family == "opt", "own")
    with torch.no_grad():
        assert torch.equal(read.model(input_ids=ids()).logits, model(input_ids=ids()).logits)
    tied = model.get_input_embeddings().store is getattr(model.get_output_embeddings(), "store", None)
    assert (
        read.model.get_input_embeddings().store is getattr(read.model.get_output_embeddings(), "store", None)
    ) == tied


def test_a_kept_base_that_was_changed_or_torn_is_refused(base, tmp_path):
    kept.keep(base, tmp_path / "base")
    weights = tmp_path / "base" / kept.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7] + b"changed")
    with pytest.raises(BaseModelError, match="has changed since it was written; it is quantised again"):
        kept.open_kept(tmp_path / "base", "tiny")
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BaseModelError, match="cannot be read"):
        kept.open_kept(tmp_path / "base", "tiny")


def test_a_damaged_base_in_the_cache_is_made_again_and_said_so(tmp_path, monkeypatch, tiny_folder, capsys):
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path))
    monkeypatch.setattr(load, "LEAST_KEPT", 0)
    asked = load.Asked(str(tiny_folder), block_size=32)
    first = load.load_base(asked)
    weights = next((tmp_path / "bases").glob(f"*/{kept.WEIGHTS}"))
    weights.write_bytes(weights.read_bytes()[:100])
    capsys.readouterr()
    assert load.load_base(asked).fingerprint == first.fingerprint
    assert "it is quantised again" in capsys.readouterr().err
    load.load_base(asked)
    assert "quantised again" not in capsys.readouterr().err


def test_the_first_process_to_keep_a_base_wins(base, tmp_path):
    kept.keep(base, tmp_path / "base")
    before = (tmp_path / "base" / kept.FACTS).stat().st_mtime_ns
    kept.keep(base, tmp_path / "base")
    assert (tmp_path / "base" / kept.FACTS).stat().st_mtime_ns == before
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_a_base_is_made_once(tmp_path, monkeypatch, tiny_folder):
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path))
    monkeypatch.setattr(load, "LEAST_KEPT", 0)
    first = load.load_base(load.Asked(str(tiny_folder), block_size=32, calibration="own"))
    monkeypatch.setattr(load, "quantise_model", None)  # calling it again would fail
    again = load.load_base(load.Asked(str(tiny_folder), block_size=32, calibration="own"))
    assert again.fingerprint == first.fingerprint
    with pytest.raises(TypeError):
        load.load_base(load.Asked(str(tiny_folder), block_size=64, calibration="own"))


def test_a_base_that_cannot_be_kept_is_there_all_the_same(tmp_path, monkeypatch, tiny_folder, capsys):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(load, "LEAST_KEPT", 0)
    assert load.load_base(load.Asked(str(tiny_folder), block_size=32)).fingerprint
    assert "not cached" in capsys.readouterr().err


def test_a_text_that_is_not_there_is_told_before_anything_is_loaded(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "_make", None)  # calling it would fail
    with pytest.raises(BaseModelError, match="cannot read the calibration text"):
        load.load_base(load.Asked(str(tiny_folder), block_size=32, calibration=str(tmp_path / "nothing.txt")))


def test_layers_on_the_same_inputs_share_what_follows_from_them():
    model = tiny("llama")
    moments = Moments(model, ids(2, 20))
    q, k, o = (moments.of(f"model.layers.0.self_attn.{name}") for name in ("q_proj", "k_proj", "o_proj"))
    assert q is k
    assert q is not o


def test_of_two_processes_that_keep_a_base_at_once_one_wins(base, tmp_path, monkeypatch):
    """The second finds nothing, writes, and finds the first one's folder in its place."""
    whole = kept._facts

    def facts(model):
        monkeypatch.setattr(kept, "_facts", whole)
        kept.keep(base, tmp_path / "base")  # the other process, in the meantime
        return whole(model)

    monkeypatch.setattr(kept, "_facts", facts)
    kept.keep(base, tmp_path / "base")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]
    assert kept.open_kept(tmp_path / "base", "tiny").fingerprint == base.fingerprint


def test_a_text_that_never_ends_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(BaseModelError, match="cannot read the calibration text"):
            read_windows(Letters(), path, 16)


@pytest.mark.parametrize("size", [1, 5, 64, 150])
def test_the_factor_is_that_of_the_inverse(size):
    moment = damp(correlated(max(size, 4))[:size, :size])
    factor = inverse_factor(moment).astype(np.float64)
    assert np.array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor.T @ factor @ moment, np.eye(size), atol=1e-4)
    with pytest.raises(ValueError, match="not positive definite"):
        inverse_factor(-np.eye(size))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "phi"])
def test_the_heads_moment_is_of_what_the_whole_quantised_model_gives_it(family):
    """Against a plain sum over the head's inputs, in the model that results."""
    model, windows, seen = tiny(family), ids(11, 40), []
    head = model.get_output_embeddings()
    moments = Moments(model, windows)
    path, _ = layer_stack(model)
    for name in [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and n.startswith(f"{path}.")]:
        layer, moment = model.get_submodule(name), moments.of(name)
        _replace(model, layer, GridLinear(Int4Weight.from_float(float_weight(layer), 32, False, moment), _bias(layer)))
    found = moments.of_head(head).moment
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1])))
    with torch.no_grad():
        model(input_ids=windows)
    handle.remove()
    wanted = (seen[0].T @ seen[0]).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.max()))


def test_runs_that_end_at_the_last_product_have_seen_all_inputs(monkeypatch):
    windows = ids(20, 30)  # three parts, of which two end early
    names = [n for n, m in tiny("llama").named_modules() if isinstance(m, nn.Linear) and ".layers.0." in n]

    def found() -> list[np.ndarray]:
        moments = Moments(tiny("llama"), windows)
        return [moments.of(name).moment for name in names]

    short = found()
    monkeypatch.setattr("qia3.base.calibrate.AT_ONCE", len(windows))
    for one, whole in zip(short, found(), strict=True):
        np.testing.assert_allclose(one, whole, rtol=1e-4, atol=1e-5 * float(whole.max()))


def test_tokens_are_drawn_as_often_as_they_are_likely():
    shares = torch.tensor([0.1, 0.0, 0.6, 0.3])
    rows = 4000
    drawn = _drawn(shares.log().expand(rows, 4), (torch.arange(rows) / rows)[:, None])
    counts = torch.bincount(drawn[:, 0], minlength=4)
    assert (counts - rows * shares).abs().max() <= 1
    assert _drawn(shares.log()[None], torch.ones(1, 1)).item() == 3


def test_a_model_is_itself_again_after_sampling_in_bfloat16():
    model = tiny("llama")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with _in_bfloat16(model):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert own_windows(model, 6).shape == (32, 6)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
