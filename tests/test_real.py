"""The product, with the real model:

SmolLM2-135M-Instruct through one short build, and what the bundle must be. About three minutes.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_build import QUANTISED, qia3, tensors
from test_runtime_answer import without_torch

from qia3 import cli
from qia3.base.load import Asked, load_base
from qia3.base.weights import GridWeight
from qia3.bundle.layout import GRAPH
from qia3.bundle.opened import Bundle
from qia3.graph.export import export_decoder
from qia3.graph.external import write_graph
from qia3.graph.forced import OrtDecoder
from qia3.grids.int4 import bits_per_weight
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, detach, fold, set_vectors
from qia3.runtime.adapters import AdapterBank

pytestmark = pytest.mark.real
EXAMPLE = Path(__file__).parents[1] / "examples" / "home-intents"
STEPS, SENTENCES = 24, 48


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """The example's classification, trained for a quarter of its steps, scored on a fifth of its sentences."""
    folder = tmp_path_factory.mktemp("real")
    text = re.sub(
        r"\[\[task\]\]\nname = \"home-commands\".*?(?=\[export\])", "", (EXAMPLE / "qia3.toml").read_text(), flags=re.S
    )
    (folder / "qia3.toml").write_text(text)
    (folder / "train.jsonl").write_text((EXAMPLE / "train.jsonl").read_text())
    (folder / "test.jsonl").write_text(
        "".join((EXAMPLE / "test.jsonl").read_text().splitlines(keepends=True)[:SENTENCES])
    )
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(folder / "qia3.toml"), "--steps", str(STEPS), "--output", str(folder / "bundle")])
    assert ended.value.code == 0
    return folder / "bundle"


@pytest.fixture(scope="module")
def report(bundle) -> dict:
    return json.loads((bundle / "report.json").read_text())


def test_the_adapter_teaches(report):
    """A short run: the full one gains more (README)."""
    scores = report["evaluation"]["home-intents"]
    assert scores["n"] == SENTENCES
    assert scores["after"]["accuracy"] >= scores["before"]["accuracy"] + 0.2


def test_the_adapter_is_small_and_the_weights_follow_the_grid(bundle, report):
    assert (bundle / "adapters" / "home-intents.onnx_adapter").stat().st_size < 300_000
    assert report["account"]["bits_per_weight"] == pytest.approx(bits_per_weight(64, symmetric=False), rel=0.02)
    assert report["adapters"][0]["parameters"] == 30 * (192 + 192 + 1536)  # layers x (keys + values + feed-forward)


def test_parity_with_torch(report):
    for adapter in ("none", "home-intents"):
        assert report["parity"][adapter]["exact"]["max_difference"] < 1e-3
        assert report["parity"][adapter]["shipped"]["kl"] < 0.02


def exact_copy(bundle: Path, folder: Path) -> Path:
    """The bundle's own graph, its products at accuracy_level 0."""
    shutil.copytree(bundle / "onnx", folder / "onnx")
    graph = onnx.load(folder / GRAPH, load_external_data=False)
    levels = [a for node in graph.graph.node for a in node.attribute if a.name == "accuracy_level"]
    assert {level.i for level in levels} == {4}
    for level in levels:
        level.i = 0
    onnx.save(graph, folder / GRAPH)
    return folder / GRAPH


def test_what_was_trained_is_what_ships_and_merged_is_side(bundle, tmp_path):
    """Laws 1 and 2 at full size: bytes by SHA-256, logits within 1e-3 at accuracy_level 0."""
    base = load_base(Asked("smollm2-135m-instruct", block_size=64, calibration="own"))
    stores = [m for m in base.model.modules() if isinstance(m, GridWeight)]
    shipped = tensors(bundle)
    assert {hashlib.sha256(b.numpy().tobytes()).hexdigest() for s in stores for b in s.buffers()} == {
        hashlib.sha256(data).hexdigest() for part, data in shipped.values() if part in QUANTISED
    }
    scaled = attach(base.model, find_roles(base.model).sites)
    vectors = AdapterBank(Bundle.open(bundle)).vectors("home-intents")
    set_vectors(scaled, {n: v.reshape(-1) for n, v in vectors.items()})
    fold(scaled)
    detach(base.model, scaled)
    write_graph(export_decoder(base.model, 0, 256, "last"), tmp_path, ["model.embed_tokens", "lm_head"])
    decoders = [OrtDecoder(exact_copy(bundle, tmp_path / "side")), OrtDecoder(tmp_path / GRAPH)]
    prompt = base.tokenizer.encode("It's freezing in here, and the lights are off.")
    forced = base.tokenizer.encode(" lights, then the heating")
    side, merged = decoders[0].logits(prompt, forced, vectors), decoders[1].logits(prompt, forced, {})
    assert np.abs(side - merged).max() < 1e-3
    assert np.abs(side - decoders[0].logits(prompt, forced, {})).max() > 1
    codes = {n: d for n, (part, d) in shipped.items() if "codes" in part or "zero" in part}
    assert len(codes) > 400
    folded = {n: m for n, m in base.model.state_dict().items() if n.endswith(("codes", "zero_points"))}
    assert {hashlib.sha256(t.numpy().tobytes()).hexdigest() for t in folded.values()} == {
        hashlib.sha256(d).hexdigest() for d in codes.values()
    }


def test_it_answers_where_torch_cannot_be_imported(bundle, capsys):
    words = ["run", str(bundle), "it's freezing in here"]
    found = without_torch("from qia3.cli import main; main(sys.argv[1:])", *words)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.strip() in Bundle.open(bundle).tasks["home-intents"].choices
    assert qia3(capsys, *words)[1] == found.stdout


def test_the_base_still_speaks(bundle):
    """With no adapter the bundle is the chat model that it was made of."""
    command = [
        sys.executable,
        "-m",
        "qia3",
        "run",
        str(bundle),
        "What is the capital of France?",
        "--adapter",
        "none",
        "--max-new-tokens",
        "16",
    ]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "Paris" in found.stdout
