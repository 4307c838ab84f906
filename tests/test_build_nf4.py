"""Bases on NF4 through the whole command: exact, merged, and written on the grids that devices multiply fast, with the
drift in the report.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from test_build import tensors
from tiny_build import write_build

from qia3 import cli
from qia3.base.load import Asked, load_base
from qia3.base.modules import GridLinear
from qia3.bundle.opened import Bundle
from qia3.graph.forced import torch_logits
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, set_vectors
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.engine import Engine


@pytest.fixture(scope="module")
def place(tmp_path_factory, kept_graphs) -> Path:
    """A tiny base on NF4 with blocks of 32 (its rows are 96 and 160 inputs), trained once and exported in five ways."""
    folder = tmp_path_factory.mktemp("nf4")
    file = write_build(folder, steps=4)
    text = (
        file.read_text(encoding="utf-8")
        .replace("block_size = 16", 'grid = "nf4"\nblock_size = 32')
        .replace("ort-exact", "nf4-exact")
    )
    file.write_text(text + "min_top1 = 0\nmax_kl = 9\n", encoding="utf-8")
    for name, options in {
        "exact": [],
        "merged": ["--mode", "merged", "--task", "topics"],
        "int8": ["--target", "ort-exact"],
        "v8": ["--target", "ort-arm-v8"],
    }.items():
        run("export" if name != "exact" else "build", str(file), folder / name, *options)
    file.write_text(file.read_text(encoding="utf-8").replace("[export]", '[export]\nrecode = "int4"'), encoding="utf-8")
    run("export", str(file), folder / "int4", "--target", "ort-exact")
    return folder


def run(verb: str, file: str, output: Path, *options: str) -> None:
    work = output.with_name("exact.work")
    if work.is_dir():
        output.with_name(f"{output.name}.work").symlink_to(work)
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, file, "--output", str(output), *options])
    assert ended.value.code == 0


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def logits(folder: Path, adapter: str | None) -> np.ndarray:
    bundle = Bundle.open(folder)
    engine = Engine(bundle)
    vectors = AdapterBank(bundle).vectors(adapter) if bundle.mode == "side" else {}
    return engine.prefill([engine.encode("turn the lights off")], vectors)[0]


def test_the_exact_bundle_ships_the_bytes_that_trained(place):
    base = load_base(Asked(str(place / "base"), block_size=32, grid="nf4"))
    assert base.fingerprint == manifest(place / "exact")["base"]["fingerprint"]
    trained = {
        t.numpy().tobytes()
        for m in base.model.modules()
        if isinstance(m, GridLinear)
        for t in (m.store.codes, m.store.scales)
    }
    assert {data for part, data in tensors(place / "exact").values() if part in ("codes", "scales")} == trained
    assert {layer["format"] for layer in manifest(place / "exact")["linears"]} == {"nf4"}
    report = json.loads((place / "exact" / "report.json").read_text(encoding="utf-8"))
    assert report["account"]["tied"]  # the float embedding is the head, and is there once
    assert report["account"]["parts"]["embedding_weights"] == base.model.lm_head.weight.numel() * 4


def test_the_exact_bundle_is_the_model_with_its_adapter(place):
    base = load_base(Asked(str(place / "base"), block_size=32, grid="nf4"))
    scaled = attach(base.model, find_roles(base.model).sites)
    bundle = Bundle.open(place / "exact")
    set_vectors(scaled, {n: v.reshape(-1) for n, v in AdapterBank(bundle).vectors("topics").items()})
    prompt = Engine(bundle).encode("turn the lights off")
    np.testing.assert_allclose(logits(place / "exact", "topics"), torch_logits(base.model, prompt, []), atol=1e-3)


def test_merged_is_side(place):
    np.testing.assert_allclose(logits(place / "merged", None), logits(place / "exact", "topics"), atol=1e-3)
    codes = {n: data for n, (part, data) in tensors(place / "exact").items() if part == "codes"}
    assert codes == {n: data for n, (part, data) in tensors(place / "merged").items() if part == "codes"}


def test_on_another_grid_the_drift_is_in_the_report(place):
    """int8 moves weights by a few thousandths, int4 by a tenth; what is reported is what the bundles do."""
    drifts = {name: manifest(place / name)["base"]["drift"] for name in ("int8", "int4")}
    assert drifts["int8"]["relative_rms"] < 0.006
    assert drifts["int8"]["relative_rms"] < drifts["int4"]["relative_rms"] < 0.2
    assert {layer["format"] for layer in manifest(place / "int8")["linears"]} == {"int8"}
    exact = logits(place / "exact", "topics")
    far = {name: np.abs(logits(place / name, "topics") - exact).max() for name in drifts}
    assert 0 < far["int8"] < far["int4"]
    for name, drift in drifts.items():
        assert set(drift["logits"]) == {"none", "topics", "commands"}
        text = (place / name / "report.md").read_text(encoding="utf-8")
        assert f"layers were recoded from NF4 to {name}" in text
        assert f"shipped as {name}" in text
    assert "Drift" not in (place / "exact" / "report.md").read_text(encoding="utf-8")


def test_a_target_without_a_kernel_for_eight_bits_gets_four_unasked(place):
    linears = {name: manifest(place / name)["linears"] for name in ("v8", "int4")}
    assert linears["v8"] == linears["int4"]
    assert {layer["format"] for layer in linears["v8"]} == {"int4"}


def test_adapters_of_one_form_fit_the_others(place):
    """The vectors are bound to the base that trained them, whichever grid it ships on."""
    assert {manifest(place / name)["base"]["fingerprint"] for name in ("exact", "merged", "int8", "int4")} == {
        manifest(place / "exact")["base"]["fingerprint"]
    }


def test_a_grid_that_cannot_be_is_told_in_one_line(tmp_path, capsys):
    file = write_build(tmp_path, steps=2)
    file.write_text(
        file.read_text(encoding="utf-8").replace("block_size = 16", 'block_size = 16\ngrid = "nf4"'), encoding="utf-8"
    )
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(file)])
    assert ended.value.code == 2
    assert re.search(r"on the nf4 grid block_size must be 32 or more", capsys.readouterr().err)


def test_rows_that_are_no_whole_blocks_cannot_be_merged_exactly(tmp_path, capsys):
    file = write_build(tmp_path, steps=2)
    text = (
        file.read_text(encoding="utf-8")
        .replace("block_size = 16", 'grid = "nf4"\nblock_size = 64')
        .replace("ort-exact", "nf4-exact")
    )
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(file), "--output", str(tmp_path / "bundle"), "--mode", "merged", "--task", "topics"])
    assert ended.value.code == 2
    assert "cannot be folded" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
