"""Int8 products in place of 4-bit ones on the whole road: the target browser-wasm for the three kinds of base, and
`prompts = "int8"` for those that have an encoder.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import test_build_encoder
from test_build import complaint, qia3
from tiny_build import write_build
from tiny_encoders import write_encoder
from tiny_seq2seq import write_seq2seq
from transformers import LlamaConfig

from qia3 import cli
from qia3.bundle.opened import Bundle
from qia3.config import Export
from qia3.errors import BaseModelError, BundleError
from qia3.footprint.bundle_page import bundle_page
from qia3.footprint.devices import load_device
from qia3.footprint.estimate import estimate
from qia3.footprint.report import build_report
from qia3.printers.markdown import markdown
from qia3.rounding import check_rounding
from qia3.runtime import int8_products
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.load import open_engine

KINDS = ("decoder", "pair", "encoder")
FORMS = {
    "four": ["--target", "browser"],
    "wasm": ["--target", "browser-wasm"],
    "merged": ["--target", "browser-wasm", "--mode", "merged", "--task", "topics"],
}
PROMPTS = {"prompts": ["--target", "ort-cpu", "--prompts", "int8"]}
TABLE = ("embedding_codes", "embedding_scales", "embedding_zero_points")
TEXT = "turn the lights off, please, and then play a song"


@pytest.fixture(scope="module", params=KINDS)
def place(request, tmp_path_factory, kept_graphs) -> Path:
    """A folder named after its kind, with a bundle per form, all of one training."""
    folder = tmp_path_factory.mktemp("int8") / request.param
    folder.mkdir()
    if request.param == "encoder":
        write_encoder(folder / "base", "bert")
        (folder / "topics.jsonl").write_text(test_build_encoder.lines({}))
        file = folder / "qia3.toml"
        file.write_text(test_build_encoder.FILE.partition('[[task]]\nname = "door"')[0] + "[parity]\nprompts = 3\n")
    else:
        file = write_build(folder, steps=4)
        file.write_text(file.read_text().replace('target = "ort-exact"\n', ""))
        if request.param == "pair":
            shutil.rmtree(folder / "base")
            write_seq2seq(folder / "base", "t5 v1.1")
    file.write_text(file.read_text() + "min_top1 = 0\nmax_kl = 9\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", str(file), "--work", str(folder / "work")])
    assert not ended.value.code
    forms = FORMS | (PROMPTS if request.param != "decoder" else {})
    for name, options in forms.items():
        with pytest.raises(SystemExit) as ended:
            cli.main(
                [
                    "export",
                    str(file),
                    "--output",
                    str(folder / name),
                    "--work",
                    str(folder / "work"),
                    "--no-evaluation",
                    *options,
                ]
            )
        assert not ended.value.code, name
    return folder


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def graphs(folder):
    return {role: ir.load(folder / graph["file"]) for role, graph in manifest(folder)["graphs"].items()}


@pytest.mark.parametrize("name", ["wasm", "merged"])
def test_no_4_bit_product_is_left_and_no_other_file(place, name):
    found = manifest(place / name)
    for role, model in graphs(place / name).items():
        kinds = {node.op_type for node in model.graph}
        assert "MatMulNBits" not in kinds, role
        assert {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"} & kinds
        assert found["graphs"][role]["file"].endswith("_int8.onnx")
    inside = {p.relative_to(place / name).as_posix() for p in (place / name / "onnx").rglob("*")}
    assert inside == {f for graph in found["graphs"].values() for f in (graph["file"], graph["data"])}
    assert {layer.get("products") for layer in found["linears"]} == {"int8"}
    config = json.loads((place / name / "config.json").read_text())
    assert config["transformers.js_config"]["dtype"] == "int8"
    genai = place / name / "genai_config.json"
    if genai.exists():
        assert (place / name / json.loads(genai.read_text())["model"]["decoder"]["filename"]).is_file()


def test_parity_has_the_graph_in_4_bits_beside_it(place):
    four, wasm = manifest(place / "four")["parity"], manifest(place / "wasm")["parity"]
    for name, both in wasm.items():
        assert both["exact"] == four[name]["exact"]
        assert both["four_bit_products"] == four[name]["shipped"]
        assert both["shipped"] != both["four_bit_products"]
    text = (place / "wasm" / "report.md").read_text(encoding="utf-8")
    assert "4-bit products" in text
    assert "int8 weights" in text
    assert "embedding: codes" in text
    assert "embedding and head: codes" not in text


@pytest.mark.parametrize("name", ["wasm", "merged"])
def test_bytes_add_up_and_weights_are_a_byte_each(place, name):
    opened = Bundle.open(place / name)
    report = build_report(place / name, opened.manifest)
    assert sum(report.account.parts.values()) == report.account.total
    weights = sum(layer.inputs * layer.outputs for layer in opened.manifest.linears)
    assert weights <= report.account.parts["int8_weights"] <= 1.3 * weights  # scales, and small layers have small rows
    assert "codes" not in report.account.parts
    assert report.memory.kernels["x64-int8"].held_bytes >= weights
    table = report.account.quantised_weights - weights  # an embedding that is left on the grid
    expected = 8 * sum(report.account.parts.get(part, 0) for part in ("int8_weights", *TABLE)) / (weights + table)
    assert report.account.bits_per_weight == pytest.approx(expected, abs=1e-4)
    assert report.account.grid_bits_per_weight == pytest.approx(expected, rel=0.05)  # without smoothing
    layers = report.predicted[0]
    assert layers.measured >= weights
    assert abs(layers.error) < 0.05
    assert [s.name for s in report.systems][2:] == [
        f"int8 base, {way}" for way in ("LoRA r=8", "IA³ unmerged", "IA³ merged")
    ]


def test_merged_vectors_are_counted_like_unmerged_ones(place):
    """An encoder's head is trained with them, but is not one of them."""
    side, merged = (build_report(place / n, Bundle.open(place / n).manifest) for n in ("wasm", "merged"))
    assert merged.adapters[0].parameters == side.adapters[0].parameters


def test_a_merged_encoder_still_multiplies_by_the_vectors_that_do_not_fold(place):
    """Counted in its graph: a Mul by a constant of the feed-forward's width before each down projection."""
    bundle = Bundle.open(place / "merged")
    report = build_report(place / "merged", bundle.manifest)
    left = 0
    for graph in graphs(place / "merged").values():
        known = {name: value for name, value in graph.graph.initializers.items() if name.endswith(".vector")}
        left += sum(
            known[v.name].const_value.size
            for node in graph.graph
            if node.op_type == "Mul"
            for v in node.inputs
            if v.name in known
        )
    assert (left > 0) is (place.name == "encoder")
    assert report.adapters[0].operations_per_token == report.systems[-1].operations_per_token == left
    said = markdown(bundle_page(report))
    assert (f"{left:,} entries, behind an activation function, are constants of the graph" in said) is (left > 0)
    assert ("nothing is loaded or added" in said) is (left == 0)
    side = build_report(place / "wasm", Bundle.open(place / "wasm").manifest)
    assert side.systems[-1].operations_per_token == left


def test_operators_are_counted_for_4_bit_products_only(place):
    four, wasm = (build_report(place / n, Bundle.open(place / n).manifest).memory for n in ("four", "wasm"))
    assert four.nodes
    assert wasm.nodes is None


def test_no_speed_is_estimated_of_int8_products(place):
    """A device's figures are those of 4-bit products."""
    board = load_device("raspberry-pi-5")
    four, wasm = (estimate(board, build_report(place / n, Bundle.open(place / n).manifest)) for n in ("four", "wasm"))
    assert (four.decode_tokens_per_second_low is None) is (place.name == "encoder")
    assert (wasm.decode_tokens_per_second_low, wasm.decode_tokens_per_second_ceiling) == (None, None)
    assert wasm.fits


def answer(folder, adapter):
    """Logits after a text (an encoder's: of its head)."""
    bundle = Bundle.open(folder)
    engine = open_engine(bundle, 1)
    vectors = AdapterBank(bundle).vectors(adapter) if bundle.manifest.mode == "side" else {}
    row = list(engine.tokens.prompt("Topic of {text}?", TEXT))
    return engine.logits([row], vectors) if hasattr(engine, "embed") else engine.prefill([row], vectors)[0]


def distance(found, expected):
    return np.sqrt(np.square(found - expected).mean() / np.square(expected).mean())


def test_answers_are_those_of_4_bits_within_rounding_and_merging_is_the_adapter(place):
    four, wasm, merged = (answer(place / name, "topics") for name in ("four", "wasm", "merged"))
    assert 0 < distance(wasm, four) < 0.15
    assert distance(merged[:, : four.shape[1]], four) < 0.15


def test_the_verbs_work(place, capsys):
    for verb, words in (("run", [TEXT, "--adapter", "topics"]), ("report", []), ("bench", ["--json"])):
        code, out, err = qia3(capsys, verb, place / "wasm", *words)
        assert (code, bool(out.strip())) == (0, True), err


def test_prompts_in_int8_replace_the_encoders_products(place):
    if place.name == "decoder":
        pytest.skip("a decoder has a second graph: tests/test_build_prompts.py")
    found, plain = manifest(place / "prompts"), manifest(place / "four")
    assert found["graphs"].keys() == plain["graphs"].keys()
    for role, model in graphs(place / "prompts").items():
        assert ("MatMulNBits" in {node.op_type for node in model.graph}) is (role == "decoder")
    for layer in found["linears"]:
        assert layer.get("products", "grid") == (
            "grid" if "decoder" in layer["name"] or layer["role"] == "head" else "int8"
        )
    one, other = answer(place / "prompts", "topics"), answer(place / "four", "topics")
    assert 0 < distance(one, other) < 0.15
    for name, both in found["parity"].items():
        assert both["four_bit_products"] == plain["parity"][name]["shipped"]
    report = build_report(place / "prompts", Bundle.open(place / "prompts").manifest)
    assert sum(report.account.parts.values()) == report.account.total
    assert report.account.bits_per_weight == pytest.approx(report.account.grid_bits_per_weight, rel=0.05)


def test_a_mixture_of_experts_is_refused():
    """Of experts no int8 product is written: without this they would stay in 4 bits without a word."""
    experts = ir.Model(ir.Graph([], [], nodes=[ir.Node("com.microsoft", "QMoE", [])]), ir_version=10)
    model = SimpleNamespace(config=LlamaConfig())
    with pytest.raises(BaseModelError, match=r"'browser-wasm' in .* no int8 products for a mixture of experts"):
        check_rounding(Export(target="browser-wasm"), model, {"decoder": experts})
    check_rounding(Export(target="browser"), model, {"decoder": experts})


def test_a_processor_that_adds_wrongly_is_refused(place, monkeypatch):
    assert int8_products.exact()
    monkeypatch.setattr(int8_products, "exact", lambda: False)
    with pytest.raises(BundleError, match=r"adds up wrongly.*export it again for the target ort-cpu"):
        open_engine(Bundle.open(place / "wasm"))
    open_engine(Bundle.open(place / "four"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prompts", "int8"], "all of its products are in int8"),
        (["--cache", "int8"], "browsers have no kernel for it"),
    ],
)
def test_what_does_not_fit_the_target_is_told_before_anything_is_loaded(tmp_path, capsys, monkeypatch, words, told):
    file = write_build(tmp_path)
    monkeypatch.setattr("qia3.build.load_base", None)
    assert told in complaint(capsys, "build", file, "--output", tmp_path / "x", "--target", "browser-wasm", *words)
    file.write_text(file.read_text().replace("[export]", "[export]\ntrainable = true"))
    said = complaint(capsys, "build", file, "--output", tmp_path / "x", "--target", "browser-wasm")
    assert "gradients need the 4-bit weights" in said
