"""Streaming: byte for byte the base that comes of the whole float model, one layer in memory at a time, and left alone
where it cannot be.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import DECODERS, FAMILIES, ids, tiny
from tiny_build import write_base
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from qia3.base import load, streaming
from qia3.base.frozen import fingerprint
from qia3.base.load import Asked, load_base
from qia3.base.quantise import Grid, quantise_model
from qia3.base.shards import entries
from qia3.base.streaming import open_stream

RENAMED = ["gpt_neox"]  # transformers renames its head on the way in


def write(family, folder, dtype=torch.float32, shard="40KB", **config):
    """A float model as save_pretrained writes it, in several files."""
    model = tiny(family)
    for name, value in config.items():
        setattr(model.config, name, value)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)


def stream(folder):
    return open_stream(folder, entries(folder))


def streamed(folder, symmetric=False):
    found = stream(folder)
    quantise_model(found.model.eval(), Grid(32, symmetric), found.layers)
    return found.model


def loaded(folder, symmetric=False):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    quantise_model(model, Grid(32, symmetric))
    return model


def tied(model):
    return getattr(model.get_input_embeddings(), "store", 1) is getattr(model.get_output_embeddings(), "store", 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", [f for f in DECODERS if f not in RENAMED])
def test_the_streamed_base_is_the_loaded_base_byte_for_byte(family, dtype, tmp_path):
    write(family, tmp_path, dtype)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found, wanted = streamed(tmp_path, family == "opt"), loaded(tmp_path, family == "opt")
    assert fingerprint(found) == fingerprint(wanted)
    for (name, tensor), (same, other) in zip(found.named_buffers(), wanted.named_buffers(), strict=True):
        assert (name, tensor.dtype) == (same, other.dtype)
        assert torch.equal(tensor, other), name  # rotary tables and scales of embeddings among them
    with torch.no_grad():
        assert torch.equal(found(input_ids=ids()).logits, wanted(input_ids=ids()).logits)
    assert found.generation_config == wanted.generation_config
    assert found.config.to_dict() == wanted.config.to_dict() | {"_name_or_path": found.config._name_or_path}
    assert tied(found) == tied(wanted)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_weights_pass_through_the_type_of_the_configuration_as_transformers_has_it(stored, tmp_path):
    """A float32 file whose config says bfloat16 is rounded to bfloat16 first, by both ways; without a type in the
    config, the file's holds.
    """
    write("llama", tmp_path, stored)
    config = json.loads((tmp_path / "config.json").read_text())
    codes = []
    for dtype in ("bfloat16", "float32", None):
        (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
        codes.append(fingerprint(streamed(tmp_path)))
        assert codes[-1] == fingerprint(loaded(tmp_path))
    assert (codes[0] == codes[1]) == (stored == torch.bfloat16)


def test_no_more_than_one_layer_is_float_at_a_time(tmp_path):
    write("llama", tmp_path)
    found = stream(tmp_path)
    floats = []

    def seen(names):
        for name in found.layers(names):
            floats.append([n for n, p in found.model.named_parameters() if not p.is_meta])
            yield name

    quantise_model(found.model.eval(), Grid(32, False), seen)
    assert all(len({n.rpartition(".")[0] for n in names}) == 1 for names in floats)
    assert len(floats) == 15  # seven in each layer, and the head
    assert not any(p.is_meta for p in found.model.parameters())
    assert not found.sources  # which would keep the embedding's floats


@pytest.mark.parametrize("family", RENAMED)
def test_what_transformers_renames_is_left_to_it(family, tmp_path):
    write(family, tmp_path)
    assert stream(tmp_path) is None


def test_experts_that_are_fused_on_the_way_are_left_to_transformers(tmp_path):
    config = AutoConfig.for_model(
        "qwen3_moe", **FAMILIES["qwen3"], num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert stream(tmp_path) is None


def change(folder, **tensors):
    """Tensors added, replaced or (None) taken out, by name with __ for dots."""
    held = load_file(folder / "model.safetensors")
    held |= {name.replace("__", "."): t for name, t in tensors.items()}
    save_file({n: t for n, t in held.items() if t is not None}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "tensors",
    [
        {"model__norm__weight": None},
        {"model__layers__0__mlp__up_proj__weight": torch.zeros(160, 95)},
        {"model__layers__0__mlp__up_proj__weight": torch.zeros(160, 96, dtype=torch.int8)},
        {"lm_head__weight": torch.zeros(101, 96)},  # tied in the config, and yet another weight in the file
    ],
)
def test_files_that_do_not_hold_every_parameter_once_are_left_to_transformers(tensors, tmp_path):
    write("smollm3", tmp_path, shard="1GB")
    assert stream(tmp_path) is not None
    change(tmp_path, **tensors)
    assert stream(tmp_path) is None


def test_tensors_that_the_model_does_not_have_are_ignored(tmp_path):
    write("llama", tmp_path, shard="1GB")
    wanted = fingerprint(loaded(tmp_path))
    change(tmp_path, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8))
    assert fingerprint(streamed(tmp_path)) == wanted


def test_a_checkpoint_that_is_quantised_already_is_left_to_others(tmp_path):
    write("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    assert stream(tmp_path) is None


@pytest.mark.parametrize("tied", [False, True])
def test_load_base_streams_where_it_can_and_gives_the_same_base(tied, tmp_path, monkeypatch):
    folder = str(write_base(tmp_path / "base", tied=tied))
    monkeypatch.setattr(load, "open_stream", lambda folder, found: None)
    wanted = load_base(Asked(folder, block_size=32))
    monkeypatch.setattr(load, "open_stream", streaming.open_stream)
    monkeypatch.setattr(load, "_float_model", None)  # calling it would fail
    found = load_base(Asked(folder, block_size=32))
    assert (found.fingerprint, found.parameters) == (wanted.fingerprint, wanted.parameters)
    with pytest.raises(TypeError):
        load_base(Asked(folder, block_size=32, calibration="own"))  # which needs the float model


def test_floats_are_released_as_their_4_bit_form_appears(tmp_path):
    """Whoever still holds the old layer holds no weight."""
    write("llama", tmp_path)
    found = stream(tmp_path)
    layers = [m for m in found.model.modules() if isinstance(m, nn.Linear)]
    quantise_model(found.model.eval(), Grid(32, False), found.layers)
    assert not any(m._parameters for m in layers)
