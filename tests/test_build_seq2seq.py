"""An encoder-decoder through the whole road: build, run, eval, report, adapters in and out, merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from predicted import hold_against
from test_build import qia3
from tiny_build import write_build
from tiny_seq2seq import write_seq2seq

from qia3.bundle.opened import Bundle
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.load import open_engine

TEXTS = ["turn the lights off", "lock the door", "a louder song and more music"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, kept_graphs) -> Path:
    """A T5 v1.1: gated, so that every vector folds, its head a table of its own."""
    folder = tmp_path_factory.mktemp("pair")
    write_build(folder, steps=4)
    shutil.rmtree(folder / "base")
    write_seq2seq(folder / "base", "t5 v1.1")
    return folder


@pytest.fixture(scope="module")
def bundle(place) -> Path:
    from qia3.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["build", str(place / "qia3.toml"), "--output", str(place / "out")])
    assert not ended.value.code
    return place / "out"


def logits(bundle: Path, adapter: str | None) -> np.ndarray:
    """After the start token, of each text alone."""
    engine, bank = open_engine(Bundle.open(bundle)), AdapterBank(Bundle.open(bundle))
    prompts = [engine.tokens.prompt("Topic of {text}?<|end|>", text) for text in TEXTS]
    return np.concatenate([engine.prefill([p], bank.vectors(adapter))[0] for p in prompts])


def test_a_bundle_has_an_encoder_and_a_decoder_over_one_data_file(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert set(manifest["graphs"]) == {"encoder", "decoder"}
    assert {g["data"] for g in manifest["graphs"].values()} == {"onnx/decoder_model_merged_q4.onnx_data"}
    assert all(p["exact"]["max_difference"] < 1e-3 for p in manifest["parity"].values())
    parts = {part: sum(t["bytes"] for t in manifest["tensors"] if t["part"] == part) for part in ("dense", "other")}
    assert parts == {"dense": 4 * (2 + 3) * 96 * 224, "other": parts["other"]}  # each layer's wo, in float32
    assert parts["other"] < 4096  # the tables of distances
    names = [v["name"] for g in manifest["graphs"].values() for v in g["vectors"]]
    assert len(set(names)) == len(names) == 2 * 3 + 3 * 5  # k, v and the feed-forward; twice k, v in a decoder's layer
    assert not (bundle / "genai_config.json").exists()


def test_config_json_says_the_head_and_the_scaling_as_transformers_4_reads_them(bundle):
    config = json.loads((bundle / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert json.loads((bundle / "generation_config.json").read_text())["decoder_start_token_id"] == 0


@pytest.mark.parametrize("verb", ["run", "eval", "report", "bench"])
def test_the_verbs_work_alike(bundle, place, capsys, verb):
    arguments = {
        "run": [bundle, TEXTS[0], "--adapter", "topics"],
        "eval": [bundle, place / "commands-test.jsonl", "--adapter", "commands", "--json"],
        "report": [bundle, "--json"],
        "bench": [bundle, "--json"],
    }[verb]
    code, out, err = qia3(capsys, verb, *arguments)
    assert (code, bool(out.strip())) == (0, True), err


def test_an_adapter_goes_out_as_peft_and_comes_back(bundle, tmp_path, capsys):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    assert qia3(capsys, "adapter", "export", copy, "topics", tmp_path / "peft")[0] == 0
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    assert qia3(capsys, "adapter", "import", copy, tmp_path / "peft", "--name", "again")[0] == 0
    np.testing.assert_array_equal(logits(copy, "again"), logits(bundle, "topics"))
    assert np.abs(logits(bundle, "topics") - logits(bundle, None)).max() > 1e-3


def test_merged_it_is_the_adapter_and_codes_are_untouched(bundle, place, tmp_path, capsys):
    out = tmp_path / "merged"
    words = ["--mode", "merged", "--task", "topics", "--work", place / "out.work", "--output", out]
    code, _, err = qia3(capsys, "export", place / "qia3.toml", *words)
    assert code == 0, err
    np.testing.assert_allclose(logits(out, None), logits(bundle, "topics"), atol=1e-3)
    side, merged = (codes(folder) for folder in (bundle, out))
    assert side.keys() == merged.keys()
    assert all(np.array_equal(side[name], merged[name]) for name in side)


def codes(bundle: Path) -> dict[str, np.ndarray]:
    manifest = json.loads((bundle / "manifest.json").read_text())
    data = (bundle / "onnx/decoder_model_merged_q4.onnx_data").read_bytes()
    return {
        t["name"]: np.frombuffer(data[t["offset"] : t["offset"] + t["bytes"]], np.uint8)
        for t in manifest["tensors"]
        if t["name"].endswith((".codes", ".zero_points"))
    }


def test_its_cost_was_known_before_it_was_built(place, bundle):
    hold_against(place / "base", bundle, 16)
