"""A bundle lies as stock loaders expect it: each rule of layout_rules.toml, checked on a bundle that was really
exported.

The rules were read in the loaders' sources and are data; nothing here asks the package where its files are, except for
the two constants under test. tests/test_genai.py and tests/test_transformers_js.py open the same folder with the
loaders themselves.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from tiny import DECODERS, tiny
from tiny_build import built

from qia3.base.quantise import Grid, quantise_model
from qia3.bundle.layout import DATA, GRAPH
from qia3.graph.export import export_decoder
from qia3.graph.external import write_graph
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach
from qia3.targets import all_targets

FILE = tomllib.loads(Path(__file__).with_name("layout_rules.toml").read_text(encoding="utf-8"))
RULES = FILE["rule"]
TYPES = {onnx.TensorProto.INT64: "int64", onnx.TensorProto.FLOAT: "float32"}


def read_graph(path: Path) -> SimpleNamespace:
    """Inputs (those without a default), defaulted inputs and outputs: name -> (type, dimensions)."""
    graph = onnx.load(path, load_external_data=False).graph
    held = {t.name for t in graph.initializer}

    def values(infos: Any) -> dict[str, tuple[str, list[str | int]]]:
        types = {v.name: v.type.tensor_type for v in infos}
        return {n: (TYPES[t.elem_type], [d.dim_param or d.dim_value for d in t.shape.dim]) for n, t in types.items()}

    fed = values(v for v in graph.input if v.name not in held)
    defaulted = values(v for v in graph.input if v.name in held)
    places = {entry.value for t in graph.initializer for entry in t.external_data if entry.key == "location"}
    return SimpleNamespace(inputs=fed, defaulted=defaulted, outputs=values(graph.output), places=places)


@pytest.fixture(scope="module", params=["side", "merged", "browser"])
def bundle(request, tmp_path_factory) -> SimpleNamespace:
    """The bundle in each form, opened without the package."""
    folder = tmp_path_factory.mktemp("layout")
    options = {"side": [], "merged": ["--mode", "merged", "--task", "topics"], "browser": ["--target", "browser"]}
    path = built(folder, *options[request.param])
    texts = {p.name: json.loads(p.read_text(encoding="utf-8")) for p in path.glob("*.json")}
    return SimpleNamespace(
        path=path, form=request.param, graph=read_graph(path / GRAPH), json=texts, config=texts["config.json"]
    )


def cache_inputs(layers: int) -> list[str]:
    return [name.format(i=i) for i in range(layers) for name in RULES["cache_names"]["input"]]


def stated_layers(config: dict[str, Any]) -> int:
    keys = RULES["cache_names"]["layers"]
    return config[keys.get(config["model_type"], keys["*"])]


def empty_cache_shape(config: dict[str, Any]) -> list[int]:
    """[heads, 0, size], as transformers.js 3 computes it from config.json."""
    keys = next(k for k in RULES["cache_shapes"]["keys"].values() if config["model_type"] in k["types"])
    normal = {name: config.get(key) for name, key in keys.items() if name != "types"}
    if normal.get("dim_kv") is not None:
        return [normal["heads"], 0, normal["dim_kv"]]
    return [normal["heads"], 0, normal["hidden_size"] // (normal.get("num_attention_heads") or normal["heads"])]


def test_every_rule_has_its_source_and_its_test():
    assert {rule["source"] for rule in RULES.values()} <= set(FILE["source"])
    assert all(rule["read_in"] and rule["says"] for rule in RULES.values())
    assert all(source["version"] and source["commit"] for source in FILE["source"].values())
    assert {f"test_{name}" for name in RULES} <= set(globals())


def test_graph_file(bundle):
    rule, dtype = RULES["graph_file"], bundle.config["transformers.js_config"]["dtype"]
    assert f"{rule['subfolder']}/{rule['session']}{rule['suffix'][dtype]}.onnx" == GRAPH
    assert [p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*.onnx")] == [GRAPH]


def test_data_files(bundle):
    count = int(bundle.config["transformers.js_config"]["use_external_data_format"])
    names = {f"{Path(GRAPH).name}_data{f'_{i}' if i else ''}" for i in range(count)}
    assert 0 < count <= RULES["data_files"]["largest_count"]
    assert bundle.graph.places == names == {Path(DATA).name}
    assert {p.name for p in (bundle.path / GRAPH).parent.iterdir()} == names | {Path(GRAPH).name}


def test_config_block(bundle):
    assert set(bundle.config[RULES["config_block"]["key"]]) <= set(RULES["config_block"]["may_hold"])


def test_files(bundle):
    assert set(RULES["files"]["names"]) <= set(bundle.json)
    assert bundle.config["model_type"] == "llama"
    assert bundle.config["architectures"] == ["LlamaForCausalLM"]


def test_chat_template(bundle):
    rule = RULES["chat_template"]
    assert "add_generation_prompt" in bundle.json[rule["file"]][rule["key"]]


def test_inputs(bundle):
    rule = RULES["inputs"]
    cache = cache_inputs(stated_layers(bundle.config))
    vectors = {n for n in bundle.graph.inputs if n.endswith(".ia3_l")}
    assert bool(vectors) == (bundle.form == "browser")  # the caller adds them to model.forward_params
    assert set(rule["required"]) <= set(bundle.graph.inputs)
    assert set(bundle.graph.inputs) - vectors <= {*rule["required"], *rule["optional"], *cache}
    assert {bundle.graph.inputs[name][0] for name in rule["required"]} == {rule["type"]}


def test_defaults(bundle):
    """Where the two loaders part: og.Adapters sets inputs that have a default, transformers.js can feed only those that
    have none.
    """
    assert bool(bundle.graph.defaulted) == (bundle.form == "side")
    assert all(name.endswith(".ia3_l") for name in bundle.graph.defaulted)
    assert [t.name for t in all_targets() if t.vectors == "required"] == ["browser", "browser-wasm"]


def test_cache_names(bundle):
    assert [n for n in bundle.graph.inputs if n.startswith("past")] == cache_inputs(stated_layers(bundle.config))
    assert set(DECODERS) == set(RULES["cache_names"]["known"])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox"])
def test_cache_shapes(family, tmp_path):
    model = tiny(family)
    quantise_model(model, Grid(32, False))
    attach(model, find_roles(model).sites)
    write_graph(export_decoder(model, 0, 48, "last"), tmp_path, [])
    graph, config = read_graph(tmp_path / GRAPH), model.config.to_dict()
    heads, _, size = empty_cache_shape(config)
    cache = {n: v for n, v in graph.inputs.items() if n.startswith("past")}
    assert list(cache) == cache_inputs(stated_layers(config))
    assert {(kind, *shape[1:4:2]) for kind, shape in cache.values()} == {(RULES["cache_shapes"]["type"], heads, size)}


def test_cache_dimensions(bundle):
    """The same empty cache from the graph's own words, as transformers.js 4 makes it."""
    symbols = dict.fromkeys(RULES["cache_dimensions"]["symbols"], 3)
    shapes = [s for n, (_, s) in bundle.graph.inputs.items() if n.startswith("past")]
    resolved = {tuple(d if isinstance(d, int) else symbols.get(d, 0) for d in shape) for shape in shapes}
    assert resolved == {(3, *empty_cache_shape(bundle.config))}


def test_outputs(bundle):
    rule, layers = RULES["outputs"], stated_layers(bundle.config)
    assert list(bundle.graph.outputs) == [
        rule["logits"],
        *(n.format(i=i) for i in range(layers) for n in rule["present"]),
    ]
    kind, (batch, _, words) = bundle.graph.outputs[rule["logits"]]
    assert (kind, batch, words) == ("float32", "batch_size", bundle.config["vocab_size"])


def test_dimension_names(bundle):
    rule = RULES["dimension_names"]
    assert bundle.graph.inputs["input_ids"][1] == rule["input_ids"]
    assert all(s[0::2] == rule["past"][0::2] for n, (_, s) in bundle.graph.inputs.items() if n.startswith("past"))


def test_total_dimension(bundle):
    rule = RULES["total_dimension"]
    assert bundle.graph.inputs["attention_mask"][1] == rule["attention_mask"]
    assert all(
        s[0::2] == rule["present"][0::2] for n, (_, s) in bundle.graph.outputs.items() if n.startswith("present")
    )


def test_stop(bundle):
    rule, manifest = RULES["stop"], bundle.json["manifest.json"]
    assert bundle.json["generation_config.json"][rule["end"]] == manifest["stop_tokens"]
    assert bundle.config[rule["limit"]] == manifest["architecture"]["context_length"] == 96  # the base has 128


def test_genai(bundle):
    decoder = bundle.json[RULES["genai"]["file"]]["model"]["decoder"]
    assert decoder["filename"] == GRAPH
    assert set(decoder["inputs"].values()) - {n.replace(".0.", ".%d.") for n in bundle.graph.inputs} == set()
    assert set(decoder["outputs"].values()) - {n.replace(".0.", ".%d.") for n in bundle.graph.outputs} == set()
