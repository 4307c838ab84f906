"""Adapters that PEFT wrote, in every form that people have: with PEFT's own logits, or one line with every bad tensor.

The oracle is PEFT on transformers' model, which shares no code with qia3.bundle.peft.
"""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import ids, tiny

from qia3.bundle.patterns import full_matches
from qia3.bundle.peft import open_peft, read_peft
from qia3.errors import AdapterError
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, set_vectors

KVD = ["k_proj", "v_proj", "down_proj"]
DOWN = ["down_proj"]


def peft_adapter(folder, family="llama", change=lambda name, vector: vector, **config):
    """PEFT's own model with vectors around one, saved in `folder`."""
    model = get_peft_model(tiny(family), IA3Config(task_type="CAUSAL_LM", **config)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ia3_l" in name:
                parameter.copy_(change(name, 1 + 0.3 * torch.randn(parameter.shape, generator=generator)))
    model.save_pretrained(str(folder))
    return model


def places(family="llama", queries=False):
    roles = find_roles(tiny(family))
    return (*roles.queries, *roles.sites) if queries else roles.sites, roles.linears


def ours(folder, family="llama", queries=False):
    """Our model with what was read from `folder`."""
    sites, layers = places(family, queries)
    model = tiny(family)
    set_vectors(attach(model, sites), read_peft(folder, sites, layers=layers).vectors)
    return model


def same(model, theirs):
    base = tiny(theirs.config.model_type)(input_ids=ids()).logits
    expected = theirs(input_ids=ids()).logits
    assert (expected - base).abs().max() > 0.1  # the adapter does something
    torch.testing.assert_close(model(input_ids=ids()).logits, expected, rtol=1e-4, atol=1e-4)


def refused(folder, family="llama", queries=False, layers=True):
    sites, roles = places(family, queries)
    with pytest.raises(AdapterError) as caught:
        read_peft(folder, sites, layers=roles if layers else None)
    said = str(caught.value)
    assert "\n" not in said
    return said


RIGHT = {
    "default": {},
    "list": {"target_modules": KVD, "feedforward_modules": DOWN},
    "regex": {"target_modules": r".*\.(k_proj|v_proj|down_proj)", "feedforward_modules": r".*\.down_proj"},
    "feed-forward-regex-of-folder": {"target_modules": r".*\.(v_proj|down_proj)", "feedforward_modules": r".*mlp.*"},
    "no-feed-forward": {"target_modules": ["k_proj", "v_proj"], "feedforward_modules": []},
    "feed-forward-ends": {
        "target_modules": [*KVD[:2], "n_proj"],
        "feedforward_modules": ["n_proj"],
    },  # no layer is called so
    "up-on-its-output": {"target_modules": ["v_proj", "up_proj"], "feedforward_modules": []},
    "one-layer-by-regex": {"target_modules": r"model\.layers\.1\..*(k_proj|down_proj)", "feedforward_modules": DOWN},
    "one-layer-by-path": {"target_modules": ["model.layers.0.self_attn.k_proj"], "feedforward_modules": []},
    "end-of-path": {
        "target_modules": ["self_attn.v_proj", "1.mlp.down_proj"],
        "feedforward_modules": ["1.mlp.down_proj"],
    },
    "excluded-list": {"target_modules": KVD, "feedforward_modules": DOWN, "exclude_modules": ["0.self_attn.k_proj"]},
    "excluded-regex": {"target_modules": KVD, "feedforward_modules": DOWN, "exclude_modules": r".*layers\.0\..*"},
    "up-and-down": {"target_modules": ["up_proj", "down_proj"], "feedforward_modules": DOWN},
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_fits_has_the_logits_of_peft(case, tmp_path):
    theirs = peft_adapter(tmp_path, **RIGHT[case])
    same(ours(tmp_path), theirs)


def test_a_regex_and_the_end_of_a_path_are_not_one_thing(tmp_path):
    """A list's feed-forward name means the end of a path, without a dot: "_proj" is all of them, as in PEFT."""
    theirs = peft_adapter(tmp_path, target_modules=r".*\.down_proj", feedforward_modules=r".*n_proj")
    same(ours(tmp_path), theirs)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"feedforward_modules": ["n_proj"]}))
    same(ours(tmp_path), PeftModel.from_pretrained(tiny("llama"), str(tmp_path)).eval())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"feedforward_modules": "n_proj"}))
    assert (
        refused(tmp_path).count("this base has no such vector") == 2
    )  # nothing matches as a whole: they scale outputs


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_query_vectors_fit_where_there_are_places_and_the_error_names_the_key_where_not(family, tmp_path):
    theirs = peft_adapter(tmp_path, family, target_modules=["q_proj", "v_proj"], feedforward_modules=[])
    same(ours(tmp_path, family, queries=True), theirs)
    for layers in (True, False):
        said = refused(tmp_path, family, layers=layers)
        assert "2 bad tensors" in said
        assert said.count("q_proj.ia3_l (this base has no such vector") == 2
        assert "query_vectors = true under [export]" in said


def test_two_vectors_on_a_fused_layer_are_multiplied(tmp_path):
    """Phi-3's gate|up layer: gate rows at one, up rows and the down projection's input both scaled."""

    def change(name, vector):
        if "gate_up_proj" in name:
            vector[: len(vector) // 2] = 1
        return vector

    config = {"target_modules": ["gate_up_proj", "down_proj"], "feedforward_modules": DOWN}
    theirs = peft_adapter(tmp_path, "phi3", change, **config)
    same(ours(tmp_path, "phi3"), theirs)
    peft_adapter(tmp_path / "gate", "phi3", **config)
    assert "gate rows of a fused layer" in refused(tmp_path / "gate", "phi3")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_read_as_peft_reads_them(dtype, tmp_path):
    peft_adapter(tmp_path, target_modules=KVD, feedforward_modules=DOWN)
    file = tmp_path / "adapter_model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    for name, tensor in open_peft(tmp_path).tensors.items():
        np.testing.assert_array_equal(tensor, tensors[name].float().numpy())
    same(ours(tmp_path), PeftModel.from_pretrained(tiny("llama"), str(tmp_path)).eval())


WITHOUT_PLACE = {
    "output-projection": (
        {"target_modules": ["o_proj"], "feedforward_modules": []},
        2,
        "o_proj.ia3_l (this base has no such vector",
    ),
    "gate": (
        {"target_modules": ["gate_proj"], "feedforward_modules": []},
        2,
        "gate_proj.ia3_l (this base has no such vector",
    ),
    "up-as-input": (
        {"target_modules": ["up_proj"], "feedforward_modules": ["up_proj"]},
        2,
        "up_proj.ia3_l (this base has no such vector",
    ),
    "down-as-output": (
        {"target_modules": DOWN, "feedforward_modules": []},
        2,
        "down_proj.ia3_l (this base has no such vector",
    ),
    "all-linear": (
        {"target_modules": "all-linear", "feedforward_modules": []},
        8,
        "q_proj.ia3_l (this base has no such vector",
    ),
}


@pytest.mark.parametrize("case", WITHOUT_PLACE)
def test_what_has_no_place_is_named(case, tmp_path):
    config, count, named = WITHOUT_PLACE[case]
    peft_adapter(tmp_path, **config)
    said = refused(tmp_path)
    assert f"{count} bad tensors" in said
    assert said.count("(this base has no such vector") == count
    assert named in said
    assert ("query_vectors" in said) == (case == "all-linear")


def test_layers_that_were_trained_whole_are_named(tmp_path):
    peft_adapter(tmp_path, target_modules=KVD, feedforward_modules=DOWN, modules_to_save=["lm_head"])
    assert "modules_to_save: lm_head" in refused(tmp_path)
    change_config(tmp_path, modules_to_save=None)
    assert "base_model.model.lm_head.weight (not an IA³ vector)" in refused(tmp_path)


def change_config(folder, **keys):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def change_tensors(folder, change):
    file = folder / "adapter_model.safetensors"
    save_file({n: t for name, tensor in load_file(file).items() for n, t in change(name, tensor)}, file)


@pytest.fixture
def adapter(tmp_path):
    peft_adapter(tmp_path / "a", target_modules=KVD, feedforward_modules=DOWN)
    return tmp_path / "a"


def test_a_missing_tensor_is_named(adapter):
    change_tensors(adapter, lambda name, tensor: [(name, tensor)] if ".0." in name else [])
    said = refused(adapter)
    assert "3 bad tensors" in said
    assert said.count(".layers.1.") == said.count("(missing)") == 3


def test_a_missing_tensor_of_a_layer_without_a_place_is_named(adapter):
    change_config(adapter, target_modules=[*KVD, "o_proj"])
    assert refused(adapter).count("o_proj.ia3_l (missing)") == 2


def test_a_surplus_tensor_is_named(adapter):
    change_config(adapter, target_modules=["k_proj", "down_proj"])
    assert refused(adapter).count("v_proj.ia3_l (not among the modules") == 2


def test_an_adapter_without_tensors_is_refused(adapter):
    change_tensors(adapter, lambda *_: [])
    assert "6 bad tensors" in refused(adapter)
    change_config(adapter, target_modules=["nothing"])
    assert "it has no IA³ tensors" in refused(adapter)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.k_proj.ia3_l", "base_model.model.x", "a\nb", ""])
def test_a_tensor_of_another_name_is_named_in_one_line(name, adapter):
    change_tensors(adapter, lambda old, t: [(old, t), (name, t.clone())] if "0.self_attn.k_proj" in old else [(old, t)])
    assert "1 bad tensor" in refused(adapter)
    assert "(not an IA³ vector)" in refused(adapter)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
def test_what_is_no_float_is_refused_by_name(dtype, adapter):
    change_tensors(adapter, lambda name, t: [(name, t.abs().to(dtype) if ".1." in name else t)])
    said = refused(adapter)
    assert "3 tensors that are not float64" in said
    assert said.count("layers.1.") == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_what_is_not_finite_in_float32_is_refused_by_name(value, adapter):
    def change(name, tensor):
        tensor = tensor.double()
        if "1.self_attn.v_proj" in name:
            tensor[3] = value
        return [(name, tensor)]

    change_tensors(adapter, change)
    assert "1 bad tensor: base_model.model.model.layers.1.self_attn.v_proj.ia3_l (holds NaN" in refused(adapter)


def test_another_shape_is_refused_by_name(adapter):
    change_tensors(adapter, lambda name, t: [(name, t.T.contiguous() if "k_proj" in name else t)])
    assert refused(adapter).count("(shape (1, 32), this base has (32, 1))") == 2


def test_a_folder_of_several_adapters_lists_them(adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "b")
    (tmp_path / "c").mkdir()
    assert refused(tmp_path).endswith("is not an adapter but holds 2: a, b; name one of these folders")


def test_pickles_shards_and_folders_in_place_of_weights_are_refused(adapter):
    file = adapter / "adapter_model.safetensors"
    file.rename(adapter / "adapter_model.bin")
    assert "is a pickle, which is never opened" in refused(adapter)
    (adapter / "adapter_model.bin").rename(adapter / "adapter_model-00001-of-00001.safetensors")
    assert "needs adapter_config.json and adapter_model.safetensors" in refused(adapter)
    file.mkdir()
    assert "needs adapter_config.json and adapter_model.safetensors" in refused(adapter)


def test_another_kind_of_adapter_is_refused(tmp_path):
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    get_peft_model(tiny("llama"), lora).save_pretrained(str(tmp_path))
    assert "is a LORA adapter" in refused(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (key, value)
        for key in ("target_modules", "feedforward_modules")
        for value in (None, 3, True, {"a": 1}, [1], [["a"]])
    ]
    + [("exclude_modules", 3), ("modules_to_save", {}), ("layers_to_transform", [0]), ("task_type", "SEQ_CLS")]
    + [("peft_type", v) for v in (None, 3, ["IA3"], "IA3\n")],
)
def test_a_configuration_that_is_not_understood_is_one_line_that_names_the_key(key, value, adapter):
    change_config(adapter, **{key: value})
    said = refused(adapter)
    assert key in said or (key, value) == ("task_type", "SEQ_CLS") or "adapter; only IA3" in said


@pytest.mark.parametrize(
    "text", ["[1]", "null", "3", "", "{", '{"peft_type": ' + "9" * 5000 + "}", '{"a":' * 100000, "\xff"]
)
def test_a_configuration_that_is_no_object_is_one_line(text, adapter):
    (adapter / "adapter_config.json").write_bytes(text.encode("latin-1"))
    assert "adapter_config.json" in refused(adapter)


@pytest.mark.parametrize("key", ["target_modules", "feedforward_modules", "exclude_modules"])
@pytest.mark.parametrize("pattern", ["(", "*", "(?P<a>x)(?P<a>y)", "a{99999999999999999999}", "(" * 5000, "\ud800("])
def test_what_is_no_regular_expression_is_one_line(key, pattern, adapter):
    change_config(adapter, **{key: pattern})
    assert key in refused(adapter)


def test_a_pattern_that_would_take_for_ever_is_given_up():
    began = time.monotonic()
    with pytest.raises(ValueError, match="takes more than 1 seconds"):
        full_matches(r"(.*.*)*(.|..)*x", ["model.layers.0.self_attn.k_proj"] * 2, seconds=1)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("cut", [0, 7, 8, 100, -1, -1000])
def test_a_torn_file_is_one_line(cut, adapter):
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    assert "cannot be read" in refused(adapter)
