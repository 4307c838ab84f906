"""Checkpoints that transformers and bitsandbytes wrote in NF4: the same codes, the same function, and a clear line for
every damaged one.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_build import tensors
from tiny_build import write_base, write_build
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from qia3 import cli
from qia3.base.bnb import STATE
from qia3.base.load import Asked, load_base
from qia3.base.modules import GridLinear
from qia3.base.nf4 import Nf4Weight
from qia3.errors import BaseModelError, QIA3Error
from qia3.grids import nf4
from qia3.ia3.mix import named


def serialised(folder: Path, family: str = "llama", double: bool = False) -> Path:
    """A checkpoint in NF4, made by the owners of the format."""
    source = write_base(folder / "float", family, tied=False)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, quantization_config=config, device_map="cpu"
        )
        model.save_pretrained(folder / "nf4")
    for file in [*source.glob("tokenizer*"), *source.glob("chat_template*")]:
        (folder / "nf4" / file.name).write_bytes(file.read_bytes())
    return folder / "nf4"


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_codes_are_kept_and_the_model_computes_what_they_mean(family, double, tmp_path):
    place = serialised(tmp_path, family, double)
    base = load_base(Asked(str(place), block_size=64))
    held, file = {}, load_file(place / "model.safetensors")
    for name, layer in base.model.named_modules():
        if isinstance(layer, GridLinear):
            assert isinstance(layer.store, Nf4Weight)
            np.testing.assert_array_equal(layer.store.codes.numpy(), file[f"{name}.weight"].numpy().reshape(-1))
            held[name] = layer.store.dense(torch.float32)
    assert len(held) == 2 * 7
    assert (base.grid, base.codes, base.block_size) == ("nf4", "nf4", 64)
    assert ("weight.nested_absmax" in " ".join(file)) == double
    floats = AutoModelForCausalLM.from_pretrained(tmp_path / "float", dtype=torch.float32).eval()
    for name, dense in held.items():
        weight = floats.get_submodule(name).weight
        near = nf4.dequantise(nf4.quantise(weight.detach().numpy()))
        tolerance = 0.02 if double else 0.0  # of a scale that was rounded to 8 bits
        np.testing.assert_allclose(dense.numpy(), near, atol=tolerance * np.abs(near).max(), rtol=0)
        weight.data = dense
    ids = torch.arange(3, 14)[None]
    torch.testing.assert_close(base.model(input_ids=ids).logits, floats(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def damaged(place: Path, change) -> None:
    tensors = load_file(place / "model.safetensors")
    change(tensors, next(n for n in tensors if n.endswith(STATE)).removesuffix(STATE))
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})


def state(tensors, name, **changes) -> None:
    found = json.loads(tensors[name + STATE].numpy().tobytes()) | changes
    tensors[name + STATE] = torch.tensor(list(json.dumps(found).encode()), dtype=torch.uint8)


DAMAGE = {
    "fp4": (lambda t, n: state(t, n, quant_type="fp4"), "NF4 in blocks"),
    "another shape": (lambda t, n: state(t, n, shape=[8, 8]), r"its shape is \[8, 8\]"),
    "a shape that is no shape": (lambda t, n: state(t, n, shape=[-4, 10**12]), "its shape is"),
    "a block that is none": (lambda t, n: state(t, n, blocksize=63), "NF4 in blocks"),
    "no JSON": (lambda t, n: t.update({n + STATE: torch.zeros(9, dtype=torch.uint8)}), "damaged"),
    "scales that are too few": (lambda t, n: t.update({f"{n}.weight.absmax": torch.ones(3)}), "absmax is"),
    "scales that are not finite": (lambda t, n: t[f"{n}.weight.absmax"].fill_(float("inf")), "NaN or infinity"),
    "other levels": (lambda t, n: t[f"{n}.weight.quant_map"].fill_(0.5), "not NF4's"),
    "no codes": (lambda t, n: t.pop(f"{n}.weight"), "is missing"),
}


@pytest.mark.parametrize("how", sorted(DAMAGE))
def test_damage_is_told_in_one_line(how, tmp_path):
    place = serialised(tmp_path)
    change, told = DAMAGE[how]
    damaged(place, change)
    with pytest.raises(BaseModelError, match=told) as found:
        load_base(Asked(str(place), block_size=64))
    assert "\n" not in str(found.value)


def test_eight_bits_are_refused(tmp_path):
    place = serialised(tmp_path)
    config = json.loads((place / "config.json").read_text())
    config["quantization_config"] |= {"load_in_4bit": False, "_load_in_4bit": False, "load_in_8bit": True}
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match="bitsandbytes to 8 bits, which is not supported"):
        load_base(Asked(str(place), block_size=64))


@pytest.mark.parametrize("role", ["head", "value"])
def test_layers_at_eight_bits_are_refused(role, tmp_path):
    with pytest.raises(BaseModelError, match="already in NF4"):
        load_base(Asked(str(serialised(tmp_path)), block_size=64, mix=named((role,))))


def test_no_mutation_of_the_file_crashes_the_reader(tmp_path):
    place = serialised(tmp_path)
    whole, draw = (place / "model.safetensors").read_bytes(), random.Random(0)
    for _ in range(40):
        changed = bytearray(whole)
        if draw.random() < 0.3:
            changed = changed[: draw.randrange(len(changed))]
        else:
            header = 8 + int.from_bytes(whole[:8], "little")
            for _ in range(draw.randint(1, 4)):
                changed[draw.randrange(header if draw.random() < 0.7 else len(changed))] = draw.randrange(256)
        (place / "model.safetensors").write_bytes(bytes(changed))
        with contextlib.suppress(QIA3Error):  # a changed code is another model, and no error
            load_base(Asked(str(place), block_size=64))


def test_a_bundle_ships_the_codes_of_the_checkpoint(tmp_path):
    place = serialised(tmp_path)
    file = write_build(tmp_path / "build", steps=2)
    shutil.rmtree(tmp_path / "build" / "base")
    shutil.copytree(place, tmp_path / "build" / "base")
    text = (
        file.read_text(encoding="utf-8").replace("block_size = 16", "block_size = 64").replace("ort-exact", "nf4-exact")
    )
    file.write_text(text + "min_top1 = 0\nmax_kl = 9\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(file), "--output", str(tmp_path / "bundle")])
    assert ended.value.code == 0
    held = load_file(place / "model.safetensors")
    codes = {tensor.numpy().tobytes() for name, tensor in held.items() if name.removesuffix(".weight") + STATE in held}
    assert {data for part, data in tensors(tmp_path / "bundle").values() if part == "codes"} == codes
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["base"]["grid"]["codes"] == manifest["base"]["grid"]["format"] == "nf4"
