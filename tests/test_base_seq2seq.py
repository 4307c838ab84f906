"""Encoder-decoders are what their files say: every tensor has its place, and the base on a grid computes what transformers'
eager model computes on the same dequantised weights (law 9), whichever way it was loaded.
"""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file
from test_base_complete import kinds, said
from test_base_oracle import nearest_nf4, nf4_worth, take_ours
from tiny import DECODERS, tiny
from tiny_quantised import configure
from tiny_seq2seq import SEQ2SEQ, T5S, pair, tiny_seq2seq, write_seq2seq
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, BitsAndBytesConfig

from qia3.base import load
from qia3.base.bnb import STATE
from qia3.base.calibrate import Moments, _square, called_with, layer_stacks
from qia3.base.complete import check_places, empty_model
from qia3.base.family import embeddings, stacks, stays_float
from qia3.base.kind import check_kind
from qia3.base.load import Asked, load_base
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.placed import place
from qia3.base.quantise import Grid, _bias, _replace, quantise_model
from qia3.base.shards import entries
from qia3.base.start import start_of
from qia3.base.streaming import open_stream
from qia3.base.text import read_base_text
from qia3.errors import BaseModelError
from qia3.ia3.mix import named

STREAMED = [*T5S, "t5gemma"]  # the others have a buffer in their state, the bias of the logits


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path / "cache"))


def eager(folder, name: str):
    """transformers' own model. Its UMT5 scales what a head of its own gets, as if that were tied to the embedding, since
    5.0 sets tie_word_embeddings whatever config.json says; 4.57 and the training code do not.
    """
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    if name == "umt5":
        assert model.lm_head.weight is not model.shared.weight
        model.config.tie_word_embeddings = False
    return model


def agree(base, oracle) -> None:
    """Batches with and without padding."""
    with torch.no_grad():
        for given in (pair(), pair(1, 23, 11, seed=4)):
            ours, theirs = base.model(**given).logits, oracle(**given).logits
            assert theirs.std() > 0.01
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def load_by(way: str, name: str, monkeypatch, asked: Asked):
    """The base, loaded so and in no other way."""
    if way == "by transformers":
        monkeypatch.setattr(load, "open_stream", lambda *_: None)
    elif name in STREAMED:
        monkeypatch.setattr(load, "_float_model", None)
    if way == "kept":
        monkeypatch.setattr(load, "LEAST_KEPT", 0)
        load_base(asked)
        monkeypatch.setattr(load, "_make", None)
    return load_base(asked)


@pytest.mark.parametrize("way", ["streamed", "by transformers", "kept"])
@pytest.mark.parametrize("name", SEQ2SEQ)
def test_law_9_a_base_on_int4_is_transformers_on_its_dequantised_weights(name, way, tmp_path, monkeypatch):
    folder = write_seq2seq(tmp_path / "base", name)
    base = load_by(way, name, monkeypatch, Asked(str(folder), block_size=32))
    oracle = eager(folder, name)
    take_ours(base, oracle)
    agree(base, oracle)
    head, tables = base.model.get_output_embeddings(), embeddings(base.model)
    assert all(isinstance(table, GridEmbedding) for table in tables)
    assert any(head.store is table.store for table in tables) != SEQ2SEQ[name][2]
    assert len({id(table.store) for table in tables}) == (2 if name == "t5gemma" else 1)
    assert base.model.config.tie_word_embeddings is not SEQ2SEQ[name][2]


@pytest.mark.parametrize("way", ["streamed", "by transformers", "kept"])
@pytest.mark.parametrize("name", SEQ2SEQ)
def test_law_9_a_base_on_nf4_is_transformers_on_the_nearest_levels(name, way, tmp_path, monkeypatch):
    folder = write_seq2seq(tmp_path / "base", name)
    base = load_by(way, name, monkeypatch, Asked(str(folder), block_size=32, grid="nf4"))
    oracle = eager(folder, name)
    head, floats = oracle.get_output_embeddings(), stays_float(oracle)
    with torch.no_grad():
        for path, module in oracle.named_modules():
            if isinstance(module, nn.Linear) and module is not head and path not in floats:
                module.weight.copy_(torch.from_numpy(nearest_nf4(module.weight.numpy(), 32)))
    agree(base, oracle)
    tables = {table.weight.data_ptr() for table in embeddings(base.model)}
    assert len(tables) == (2 if name == "t5gemma" else 1)
    assert (base.model.get_output_embeddings().weight.data_ptr() in tables) != SEQ2SEQ[name][2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["t5", "t5 v1.1"])
@pytest.mark.parametrize("said", [True, False])
def test_the_streamed_base_is_the_loaded_base_byte_for_byte(name, said, dtype, tmp_path, monkeypatch):
    """Also where the file has float32, and config.json names the type that the model is in."""
    folder = write_seq2seq(tmp_path / "base", name, torch.float32 if said else dtype)
    if said:
        configure(folder, dtype=str(dtype).removeprefix("torch."))
    found = load_base(Asked(str(folder), block_size=32))
    assert (open_stream(folder, entries(folder)) is None) == (dtype == torch.float16)  # transformers keeps wo apart
    monkeypatch.setattr(load, "open_stream", lambda *_: None)
    assert load_base(Asked(str(folder), block_size=32)).fingerprint == found.fingerprint


def serialised(folder, name: str):
    """A checkpoint in NF4 as transformers and bitsandbytes write it; `wo` they leave in float32, and so is the head."""
    source = write_seq2seq(folder / "float", name)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForSeq2SeqLM.from_pretrained(
            source, dtype=torch.float32, quantization_config=config, device_map="cpu"
        )
        model.save_pretrained(folder / "nf4")
    for file in source.glob("tokenizer*"):
        (folder / "nf4" / file.name).write_bytes(file.read_bytes())
    return folder / "nf4"


@pytest.mark.parametrize("way", ["read", "kept"])
@pytest.mark.parametrize("name", [*T5S, "bart", "t5gemma"])
def test_law_9_a_checkpoint_of_bitsandbytes_is_transformers_on_its_dequantised_weights(
    name, way, tmp_path, monkeypatch
):
    folder = serialised(tmp_path, name)
    tensors = load_numpy(folder / "model.safetensors")
    asked = Asked(str(folder), block_size=64)
    base = load_by(way, "bart", monkeypatch, asked)
    oracle = eager(tmp_path / "float", name)
    quantised = {path.removesuffix(STATE) for path in tensors if path.endswith(STATE)}
    assert len(quantised) == sum(isinstance(m, GridLinear) for m in base.model.modules())
    assert not quantised & stays_float(oracle)
    with torch.no_grad():
        for path in quantised:
            oracle.get_submodule(path).weight.copy_(torch.from_numpy(nf4_worth(path, tensors)))
    agree(base, oracle)


def change(folder, change_) -> None:
    held = load_file(folder / "model.safetensors")
    change_(held)
    save_file({n: t.contiguous() for n, t in held.items()}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("way", ["streamed", "by transformers", "kept"])
@pytest.mark.parametrize("grid", ["int4", "nf4"])
@pytest.mark.parametrize("name", ["t5", "t5 v1.1"])
def test_the_file_wins_over_what_config_json_says_of_its_head(name, grid, way, tmp_path, monkeypatch):
    """A head of its own is one in t5, too, and one that is the embedding once more is tied in t5 v1.1. What is scaled is
    config.json's to say.
    """
    folder = write_seq2seq(tmp_path / "base", name)
    own = torch.randn(load_file(folder / "model.safetensors")["shared.weight"].shape) * 0.1
    change(folder, lambda t: t.update({"lm_head.weight": own if name == "t5" else t["shared.weight"].clone()}))
    change(folder, lambda t: t.update({"encoder.embed_tokens.weight": t["shared.weight"].clone()}))
    base = load_by(way, name, monkeypatch, Asked(str(folder), block_size=32, grid=grid))
    oracle = eager(folder, name)
    assert oracle.config.scale_decoder_outputs is base.model.config.scale_decoder_outputs is (name == "t5")
    if grid == "int4":
        take_ours(base, oracle)
        tied = base.model.lm_head.store is base.model.shared.store
        agree(base, oracle)
    else:
        tied = base.model.lm_head.weight is base.model.shared.weight
    assert tied == (name == "t5 v1.1") == base.model.config.tie_word_embeddings
    torch.testing.assert_close(base.model.encoder.embed_tokens.weight, base.model.shared.weight, atol=0, rtol=0)


@pytest.mark.parametrize("stored", ["encoder.embed_tokens.weight", "lm_head.weight"])
def test_one_table_under_another_name_is_the_table(stored, tmp_path, monkeypatch):
    folder = write_seq2seq(tmp_path / "base")
    wanted = load_base(Asked(str(folder), block_size=32)).fingerprint
    change(folder, lambda t: t.update({stored: t.pop("shared.weight")}))
    assert load_base(Asked(str(folder), block_size=32)).fingerprint == wanted
    monkeypatch.setattr(load, "open_stream", lambda *_: None)
    assert load_base(Asked(str(folder), block_size=32)).fingerprint == wanted


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_every_kind_of_tensor_that_is_missing_left_over_or_misshapen_is_named(name, tmp_path):
    model, found = empty_model(write_seq2seq(tmp_path, name)), entries(tmp_path)
    check_places(model, found)
    for path in kinds(found).values():
        entry, (holder, _, end) = found[path], path.rpartition(".")
        without = {n: e for n, e in found.items() if n != path}
        either = ("shared.weight", "lm_head.weight") if SEQ2SEQ[name][2] else ()  # each could be the other
        if path in ("final_logits_bias", *either):  # which is nought where it is not set
            check_places(model, without)
        else:
            line = said(model, without)
            assert holder in line
            assert "is missing" in line or "are missing" in line
        assert "_old has no place" in said(model, without | {path: entry, f"{path}_old": entry})
        flipped = dataclasses.replace(entry, shape=(*entry.shape[:-1], entry.shape[-1] + 1))
        assert f"and should be float32 {list(entry.shape)}" in said(model, found | {path: flipped}), end


def test_marian_s_positions_are_sines_and_cosines(tmp_path):
    """They stand in no file; the definition (Vaswani et al. 2017, 3.5), sines in the first half."""
    base = load_base(Asked(str(write_seq2seq(tmp_path / "base", "marian")), block_size=32))
    at, rate = torch.arange(64.0)[:, None], 10000 ** (-torch.arange(0, 96, 2) / 96)
    wanted = torch.cat([torch.sin(at * rate), torch.cos(at * rate)], dim=1)
    for stack in stacks(base.model).values():
        torch.testing.assert_close(stack.embed_positions.weight, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", T5S)
def test_wo_stays_in_float32_unless_it_is_named(name, tmp_path):
    folder = str(write_seq2seq(tmp_path / "base", name))
    original = load_file(tmp_path / "base/model.safetensors")
    plain = load_base(Asked(folder, block_size=32)).model
    eight = load_base(Asked(folder, block_size=32, mix=named(["down@0-1"]))).model
    short = load_base(Asked(folder, block_size=32, mix=named([], [(16, ["down"])]))).model
    floats = {path for path, m in plain.named_modules() if isinstance(m, nn.Linear)}
    assert floats == stays_float(tiny_seq2seq(name))
    assert len(floats) == 5
    assert all(path.endswith("DenseReluDense.wo") for path in floats)
    for path in floats:
        weight = plain.get_submodule(path).weight
        assert weight.dtype == torch.float32
        assert torch.equal(weight, original[f"{path}.weight"])
        layer, other = eight.get_submodule(path), short.get_submodule(path)
        assert layer.store.bits == 8 if "block.2." not in path else isinstance(layer, nn.Linear)
        assert isinstance(other, GridLinear)
        assert (other.store.bits, other.store.block_size) == (4, 16)
    oracle = eager(folder, name)
    with torch.no_grad():
        for path, module in short.named_modules():
            if isinstance(module, GridLinear | GridEmbedding):
                oracle.get_submodule(path).weight = nn.Parameter(module.weight)
        torch.testing.assert_close(short(**pair()).logits, oracle(**pair()).logits, atol=1e-4, rtol=1e-4)


def test_nothing_of_a_decoder_stays_in_float():
    assert not any(stays_float(tiny(family)) for family in DECODERS)


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_the_stacks_and_their_tables_are_known(name):
    model = tiny_seq2seq(name)
    paths = ["encoder", "decoder"] if name in T5S else ["model.encoder", "model.decoder"]
    assert list(stacks(model)) == paths
    tables = embeddings(model)
    assert len({id(table.weight) for table in tables}) == (2 if name == "t5gemma" else 1)
    assert {f"{path}.embed_tokens" for path in paths} <= {path for path, m in model.named_modules() if m in tables}
    quantise_model(model, Grid(32, False))
    assert not any(isinstance(m, nn.Embedding) and m.num_embeddings == 101 for m in model.modules())


@pytest.mark.parametrize("kind", ["whisper", "speech_to_text", "vision-encoder-decoder", "pix2struct", "t5gemma2"])
def test_encoder_decoders_of_speech_and_images_are_refused_by_name(kind):
    with pytest.raises(BaseModelError, match=rf"is an encoder-decoder \({kind}\) for speech or images"):
        check_kind(AutoConfig.for_model(kind), "it")


def test_those_of_text_are_read(tmp_path):
    for family, settings, _ in SEQ2SEQ.values():
        check_kind(AutoConfig.for_model(family, **settings), "it")
    text = read_base_text(str(write_seq2seq(tmp_path / "base")))
    assert (text.positions, text.config.is_encoder_decoder, text.config.decoder_start_token_id) == (None, True, 0)
    assert json.loads((tmp_path / "base/config.json").read_text())["model_type"] == "t5"


def windows_of(rows: int = 12, length: int = 40) -> torch.Tensor:
    return torch.randint(3, 101, (rows, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_moments_of_both_stacks_are_of_what_layers_see_when_those_before_are_quantised(name):
    """Against a plain sum over the inputs of each layer of the decoder's last but one block, hooked in the model with all
    before it quantised: its own states, and the quantised encoder's.
    """
    model, windows = tiny_seq2seq(name), windows_of()
    moments = Moments(model, windows)
    (_, encoder), (path, decoder) = layer_stacks(model)
    assert (len(encoder), len(decoder)) == (2, 3)
    own = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    seen: dict[str, np.ndarray] = {}
    for layer in own:
        if layer.startswith(f"{path}.1."):
            seen[layer] = moments.of(layer).moment
        elif not layer.startswith(f"{path}.2.") and own[layer] is not model.get_output_embeddings():
            store = Grid(32, False).store(layer, own[layer].weight, moments.of(layer))
            _replace(model, own[layer], GridLinear(store, _bias(own[layer])))
    sums = dict.fromkeys(seen, 0)

    def add(name):
        return lambda _, args: sums.update({name: sums[name] + _square(args[0])})

    for layer in seen:
        model.get_submodule(layer).register_forward_pre_hook(add(layer))
    half = windows.shape[1] // 2
    given, answer = windows[:, :half].clone(), torch.zeros_like(windows[:, half:])
    given[:, -1], answer[:, 1:], answer[:, 0] = 1, windows[:, half:-1], start_of(model)[0]
    assert start_of(model)[0] == (2 if name == "t5gemma" else 0)
    with torch.no_grad():
        model(input_ids=given, decoder_input_ids=answer)
    assert len(seen) == {"t5": 10, "bart": 10, "marian": 10}.get(name, 11)
    for layer, moment in seen.items():
        np.testing.assert_allclose(moment, sums[layer], rtol=1e-3, atol=1e-3 * float(moment.max()))


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_a_calibrated_encoder_decoder_is_nearer_to_the_float_one(name):
    reference, windows = tiny_seq2seq(name), windows_of(32, 64)

    def said(model) -> torch.Tensor:
        with torch.no_grad():
            return model(**called_with(model, windows)).logits.log_softmax(-1)

    wanted, divergence = said(reference), []
    for chosen in (None, windows):
        model = tiny_seq2seq(name)
        quantise_model(model, Grid(16, False), windows=chosen)
        divergence.append(float((wanted.exp() * (wanted - said(model))).sum(-1).mean()))
    assert divergence[1] < 0.95 * divergence[0]


def test_a_text_of_its_own_is_not_to_be_had_and_that_is_told(tmp_path, capsys):
    folder = write_seq2seq(tmp_path / "base")
    (tmp_path / "text.txt").write_text("lock the door and turn the lights off. " * 200)
    plain = load_base(Asked(str(folder), block_size=16))
    own = load_base(Asked(str(folder), block_size=16, calibration="own"))
    assert "does not generate its own; set calibration = PATH" in capsys.readouterr().err
    given = load_base(Asked(str(folder), block_size=16, calibration=str(tmp_path / "text.txt")))
    assert plain.fingerprint == own.fingerprint != given.fingerprint
    assert (plain.calibration, own.calibration) == ("none", "none")
    assert given.calibration.startswith("text ")
    oracle = eager(folder, "t5")
    take_ours(given, oracle)
    agree(given, oracle)


def test_layers_are_named_in_one_stack_or_in_both(tmp_path):
    """A number is a layer's within its stack; without a stack it is that layer of either."""
    model = tiny_seq2seq("t5")

    def meant(*asked: str) -> set[str]:
        return {name.replace(".layer.", ".") for name in named(asked).find(model, Grid(32, False), None).own}

    assert meant("encoder.up@0") == {"encoder.block.0.1.DenseReluDense.wi"}
    assert meant("decoder.value@2") == {"decoder.block.2.0.SelfAttention.v", "decoder.block.2.1.EncDecAttention.v"}
    assert meant("key@1") == meant("encoder.key@1", "decoder.key@1")
    assert len(meant("down")) == len(meant("encoder.down", "decoder.down")) == 5
    assert meant("down@2") == meant("decoder.down@2")
    assert meant("head") == meant("decoder.head") == {"lm_head"}
    for asked, words in (
        ("encoder.value@2", 'eight_bit names "encoder.value" in layer 2; it is in layers 0 to 1'),
        ("value@3", 'eight_bit names "value" in layer 3; it is in layers 0 to 2'),
        ("encoder.head", 'eight_bit names "head", but the encoder has no such layer'),
    ):
        with pytest.raises(BaseModelError, match=words):
            meant(asked)
    with pytest.raises(BaseModelError, match=r'"decoder\.value", but the model has one stack of layers; write "value"'):
        named(["decoder.value"]).find(tiny("opt"), Grid(32, False), None)
    folder = str(write_seq2seq(tmp_path / "base"))
    base = load_base(Asked(folder, block_size=16, mix=named(["encoder.value", "decoder.down@0"])))
    assert base.eight_bit == ("decoder.down@0", "encoder.value")
    assert {n for n, m in base.model.named_modules() if isinstance(m, GridLinear) and m.store.bits == 8} == {
        *(f"encoder.block.{i}.layer.0.SelfAttention.v" for i in range(2)),
        "decoder.block.0.layer.2.DenseReluDense.wo",
    }


def test_an_embedding_that_comes_on_a_grid_is_refused():
    """MLX quantises it: one table would be placed, and the stacks' own stay empty."""
    model = tiny_seq2seq("t5")
    store = Grid(32, False).store("shared", model.shared.weight, None)
    with pytest.raises(
        BaseModelError, match="shared is quantised, but quantised embeddings of encoder-decoders are not supported"
    ):
        place(model, "shared", store, None)
