"""Scales that train towards the float model: what may move, against torch's own gradient and a plain sum, and the base
that comes of it.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import DECODERS, ids, tiny
from tiny_build import write_base, write_build
from tiny_encoders import write_encoder
from tiny_quantised import write_packed
from tiny_seq2seq import write_seq2seq
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from qia3 import cli
from qia3.base import distil, kept, load, windows
from qia3.base.frozen import fingerprint
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.quantise import Form, Grid, quantise_model
from qia3.base.weights import GridWeight, Int4Weight
from qia3.base.windows import own_windows
from qia3.errors import BaseModelError


def on_grid(family: str, symmetric: bool = False, **own: Form) -> tuple[nn.Module, nn.Module]:
    """The float model, and the same on the grid."""
    teacher = tiny(family).requires_grad_(False)
    model = copy.deepcopy(teacher)
    quantise_model(model, Grid(16, symmetric, own))
    return teacher, model


def nats(model: nn.Module, teacher: nn.Module, windows: torch.Tensor) -> float:
    """KL divergence per position, in float64 and in plain numpy."""
    with torch.no_grad():
        q, p = (m(input_ids=windows).logits.double().numpy() for m in (model, teacher))
    q, p = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (q, p))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def bytes_of(model: nn.Module, *but: str) -> dict[str, bytes]:
    return {n: t.numpy().tobytes() for n, t in model.state_dict().items() if not n.endswith(but)}


@pytest.mark.parametrize("family", DECODERS)
def test_scales_alone_move_and_answers_come_closer(family):
    teacher, model = on_grid(family, symmetric=family in ("opt", "gemma3_text"))
    windows = own_windows(teacher, 24, rows=100)
    before, frozen, scales = nats(model, teacher, windows), bytes_of(model, ".scales"), bytes_of(model)
    told = distil.distil(model, teacher, windows, 8)
    assert bytes_of(model, ".scales") == frozen
    assert bytes_of(model) != scales
    assert nats(model, teacher, windows) < 0.98 * before
    assert told.after < told.before
    assert told.after == pytest.approx(nats(model, teacher, windows[-distil.ASIDE :]), rel=0.2)  # products in bfloat16


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_a_scales_gradient_is_that_of_the_weight_it_makes(family, monkeypatch):
    """Against torch, which differentiates through the dequantised weights, placed in the float model."""
    monkeypatch.setattr(distil, "has_fast", lambda _: False)
    teacher, model = on_grid(family)
    windows, plain, made = ids(3, 20), tiny(family).requires_grad_(False), dict[int, torch.Tensor]()
    places = dict[str, torch.Tensor]()
    for name, module in model.named_modules():
        if isinstance(module, GridLinear | GridEmbedding):
            store = module.store
            zero = torch.zeros_like(store.scales).requires_grad_()
            made.setdefault(id(store), zero)
            ones = Int4Weight.from_tensors(
                {"codes": store.codes, "scales": torch.ones_like(store.scales), "zero_points": store.zero_points},
                store.inputs,
                store.block_size,
            ).dense(torch.float32)
            block = torch.arange(store.inputs) // store.block_size
            weight = ones * (store.scales * (1 + made[id(store)]))[:, block]
            places[f"{name}.weight"] = weight.T if isinstance(plain.get_submodule(name), Conv1D) else weight
    logits = torch.func.functional_call(plain, places, kwargs={"input_ids": windows}, tie_weights=False).logits
    expected = teacher(input_ids=windows).logits.log_softmax(-1)
    F.kl_div(logits.log_softmax(-1), expected, reduction="sum", log_target=True).backward()
    with distil._training(model) as trained:
        distil._divergence(model, teacher, windows).backward()
        for scales in trained:
            scales.collect()
            wanted = made[id(scales.store)].grad
            assert wanted is not None
            torch.testing.assert_close(scales.change.grad, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
            scales.finish(kept=False)
    assert len(trained) == len(made)


def test_layers_at_8_bits_stay_as_they_are():
    teacher, model = on_grid("llama", **{"lm_head": Form(8, 32), "model.layers.1.mlp.up_proj": Form(8, 32)})
    eight = {n: m for n, m in model.named_modules() if isinstance(m, GridWeight) and not isinstance(m, Int4Weight)}
    before = {n: bytes_of(m) for n, m in eight.items()}
    told = distil.distil(model, teacher, own_windows(teacher, 24, rows=60), 8)
    assert len(eight) >= 1
    assert {n: bytes_of(m) for n, m in eight.items()} == before
    assert told.after < told.before


def test_scales_that_did_not_help_are_left(monkeypatch):
    monkeypatch.setattr(distil, "RATE", 10.0)
    teacher, model = on_grid("llama")
    before = fingerprint(model)
    told = distil.distil(model, teacher, ids(12, 24), 4)
    assert told.after == told.before
    assert fingerprint(model) == before


def test_who_interrupts_gets_the_model_back():
    teacher, model = on_grid("llama")
    before = fingerprint(model)

    def stop(parts, _):
        yield parts[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil.distil(model, teacher, ids(24, 24), 4, stop)
    assert fingerprint(model) == before
    for store in (m for m in model.modules() if isinstance(m, GridWeight)):
        assert (store._dense, store.compute) == (None, None)
    assert not model.get_input_embeddings()._forward_hooks


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(load, "LEAST_KEPT", 0)
    monkeypatch.setattr(load, "TEXTS", 24)
    monkeypatch.setattr(windows, "window_length", lambda _: 24)
    return tmp_path / "cache" / "bases"


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_base_with_trained_scales_is_cached_beside_the_one_without(cache, tmp_path, symmetric, capsys):
    folder = write_base(tmp_path / "model")
    asked = load.Asked(str(folder), block_size=16, symmetric=symmetric, calibration="own", train_scales=True)
    made = load.load_base(asked)
    said = capsys.readouterr().err
    assert "KL divergence on text that was set aside: " in said
    assert made.calibration == "own, scales trained"
    plain = load.load_base(load.Asked(str(folder), block_size=16, symmetric=symmetric, calibration="own"))
    assert plain.calibration == "own"
    assert plain.fingerprint != made.fingerprint
    assert bytes_of(plain.model, ".scales") == bytes_of(made.model, ".scales")
    again = load.load_base(asked)
    assert (again.fingerprint, again.calibration) == (made.fingerprint, made.calibration)
    assert len(list(cache.iterdir())) == 2
    (named,) = kept.kept_as(cache, made.fingerprint)
    with pytest.raises(BaseModelError, match=r"train_scales true, but this build asks for null"):
        load.load_base(load.Asked(str(named), block_size=16, symmetric=symmetric, calibration="own"))


def test_the_same_settings_train_the_same_scales(cache, tmp_path, monkeypatch):
    folder, found = write_base(tmp_path / "model"), []
    for place in ("one", "two"):
        monkeypatch.setenv("QIA3_CACHE", str(tmp_path / place))
        asked = load.Asked(str(folder), block_size=16, calibration="own", train_scales=True)
        found.append(load.load_base(asked).fingerprint)
    assert found[0] == found[1]


def test_a_stop_while_scales_train_costs_no_more_than_that(cache, tmp_path):
    folder = write_base(tmp_path / "model")

    def track(items, title):
        if title == "training scales":
            raise KeyboardInterrupt
        return items

    with pytest.raises(KeyboardInterrupt):
        load.load_base(load.Asked(str(folder), block_size=16, calibration="own", train_scales=True), track)
    (left,) = cache.iterdir()
    assert kept.open_kept(left, "tiny").calibration == "own"


def test_a_bundle_says_that_scales_were_trained(cache, tmp_path):
    file = write_build(tmp_path, steps=2)
    asked = 'calibration = "own"\ntrain_scales = true'
    file.write_text(file.read_text(encoding="utf-8").replace('calibration = "none"', asked), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(file), "--output", str(tmp_path / "bundle"), "--work", str(tmp_path / "work")])
    assert ended.value.code == 0
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["base"]["grid"]["calibration"] == "own, scales trained"
    assert all(case["exact"]["max_difference"] < 1e-3 for case in manifest["parity"].values())
    report = (tmp_path / "bundle" / "report.md").read_text(encoding="utf-8")
    assert "Its scales were trained towards the float model." in report


@pytest.mark.parametrize("kind", ["an encoder", "an encoder-decoder", "codes"])
def test_bases_that_cannot_train_are_refused_in_one_line(cache, tmp_path, kind):
    folder, said = tmp_path / "model", f"train_scales is for decoders, and {tmp_path / 'model'} is {kind}; remove it"
    if kind == "an encoder":
        write_encoder(folder, "bert")
    elif kind == "an encoder-decoder":
        write_seq2seq(folder)
    else:
        write_packed(folder, "gptq")
        said = "comes with gptq codes, whose scales are kept; remove it from [base], or name the float model"
    with pytest.raises(BaseModelError) as refused:
        load.load_base(load.Asked(str(folder), block_size=16, calibration="own", train_scales=True))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
