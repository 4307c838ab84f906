"""PEFT checkpoints, both ways, against PEFT itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from tiny import ids, random_vectors, tiny

from qia3.bundle.adapter import Adapter
from qia3.bundle.peft import read_peft, write_peft
from qia3.bundle.sites import Site
from qia3.errors import AdapterError
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, set_vectors

BASE = "f" * 64


def ours(family, vectors=None, queries=False):
    model = tiny(family)
    roles = find_roles(model)
    sites = (*roles.queries, *roles.sites) if queries else roles.sites
    scaled = attach(model, sites)
    if vectors is not None:
        set_vectors(scaled, vectors)
    return model, scaled, sites


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "phi3", "gpt2", "opt"])
def test_our_adapter_loads_in_peft_with_the_same_logits(family, tmp_path):
    model, scaled, sites = ours(family)
    vectors = random_vectors(scaled)
    set_vectors(scaled, vectors)
    write_peft(tmp_path, Adapter(vectors, BASE), sites, "tiny")
    theirs = PeftModel.from_pretrained(tiny(family), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(input_ids=ids()).logits, model(input_ids=ids()).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "targets", "feed_forward"),
    [
        ("llama", ["k_proj", "v_proj", "down_proj"], ["down_proj"]),
        ("qwen2", ["q_proj", "v_proj", "down_proj"], ["down_proj"]),
        ("phi3", ["down_proj"], ["down_proj"]),
        ("gpt2", ["mlp.c_proj"], ["mlp.c_proj"]),
    ],
)
def test_an_adapter_trained_by_peft_imports_with_the_same_logits(family, targets, feed_forward, tmp_path):
    config = IA3Config(
        task_type="CAUSAL_LM", target_modules=targets, feedforward_modules=feed_forward, init_ia3_weights=False
    )
    torch.manual_seed(3)
    theirs = get_peft_model(tiny(family), config).eval()
    theirs.save_pretrained(str(tmp_path))
    _, _, sites = ours(family, queries=True)
    model, _, _ = ours(family, read_peft(tmp_path, sites).vectors, queries=True)
    torch.testing.assert_close(model(input_ids=ids()).logits, theirs(input_ids=ids()).logits, rtol=1e-4, atol=1e-4)


def test_the_way_out_and_back_changes_nothing(tmp_path):
    _, scaled, sites = ours("llama")
    vectors = random_vectors(scaled)
    write_peft(tmp_path, Adapter(vectors, BASE), sites, "tiny")
    for name, vector in read_peft(tmp_path, sites, BASE).vectors.items():
        np.testing.assert_array_equal(vector, vectors[name])


def test_everybody_may_read_a_checkpoint_whom_the_umask_lets(tmp_path):
    """Files of safetensors' own writer are for one user's eyes, and a bundle is run by others."""
    write_peft(tmp_path / "a", Adapter({}, None), [Site("x", "key", "output", 3)], "tiny")
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "a").iterdir()}
    (tmp_path / "plain").touch()
    assert set(modes.values()) == {(tmp_path / "plain").stat().st_mode & 0o777}, modes


def test_a_foreign_base_is_refused(tmp_path):
    _, scaled, sites = ours("llama")
    write_peft(tmp_path, Adapter(random_vectors(scaled), BASE), sites, "tiny")
    with pytest.raises(AdapterError, match="another base"):
        read_peft(tmp_path, sites, "e" * 64)


def test_modules_that_do_not_exist_and_wrong_shapes_are_listed(tmp_path):
    _, scaled, sites = ours("llama")
    write_peft(tmp_path, Adapter(random_vectors(scaled), BASE), sites, "tiny")
    _, _, fewer = ours("qwen2")
    fewer = [s for s in fewer if "layers.1" not in s.module]
    with pytest.raises(AdapterError, match="3 bad tensors") as caught:
        read_peft(tmp_path, fewer)
    assert str(caught.value).count("layers.1") == 3


def test_another_kind_of_adapter_is_refused(tmp_path):
    get_peft_model(tiny("llama"), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained(
        str(tmp_path)
    )
    with pytest.raises(AdapterError, match="LORA adapter"):
        read_peft(tmp_path, ours("llama")[2])


def test_a_broken_checkpoint_is_one_clear_line(tmp_path):
    sites = ours("llama")[2]
    with pytest.raises(AdapterError, match=r"needs adapter_config\.json"):
        read_peft(tmp_path, sites)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(AdapterError, match="cannot be read"):
        read_peft(tmp_path, sites)
