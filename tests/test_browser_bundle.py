"""A bundle in a real browser, on WebAssembly and on WebGPU, by transformers.js as it is and by
qia3.mjs (make browser).

The base's rows have an odd number of blocks (96 / 32 = 3), which is what a 4-bit look-up was refused for on WebGPU. A browser
multiplies in float32 where native code rounds activations, so the oracle is the graph at accuracy_level 0.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from places import whole
from test_browser import CHROMIUM, MODULES
from test_browser import pytestmark as there
from test_web import in_chromium, node
from tiny_build import write_build
from tiny_bundle import seal

from qia3 import cli
from qia3.bundle.layout import GRAPH, int8_name
from qia3.bundle.opened import Bundle
from qia3.graph.forced import OrtDecoder
from qia3.graph.passes import AccuracyLevel
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import classify, prompt_of, task_of
from qia3.runtime.generate import generate
from qia3.runtime.load import open_engine

pytestmark = [*there, whole]
ANSWER = Path(__file__).parent / "browser" / "answer.mjs"
PROMPTS, NEW = [[5, 9, 250, 17], [33, 80, 4, 61, 12, 99, 7]], 8


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    file = write_build(folder, steps=4)
    text = (
        file.read_text(encoding="utf-8").replace("block_size = 16", "block_size = 32").replace("ort-exact", "browser")
    )
    file.write_text(text + "min_top1 = 0\nmax_kl = 9\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(file), "--output", str(folder / "bundle")])
    assert ended.value.code == 0
    return folder / "bundle"


@pytest.fixture(scope="module")
def merged(bundle):
    """With the vectors of one task in its scales."""
    folder = bundle.parent
    options = ["--mode", "merged", "--task", "topics", "--work", str(folder / "bundle.work")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(folder / "qia3.toml"), "--output", str(folder / "merged"), *options])
    assert ended.value.code == 0
    return folder / "merged"


@pytest.fixture(scope="module")
def rounded(bundle):
    """With int8 products."""
    folder = bundle.parent
    options = ["--target", "browser-wasm", "--work", str(folder / "bundle.work")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(folder / "qia3.toml"), "--output", str(folder / "rounded"), *options])
    assert ended.value.code == 0
    return folder / "rounded"


@node
def test_qia3_mjs_says_what_the_runtime_says_with_int8_products(rounded):
    """The same codes on both sides but where a sum of floats falls on the other side; "auto" is WebAssembly for it."""
    asked, right = questions(open_engine(Bundle.open(rounded), 1))
    found = in_chromium({"eight": rounded}, [["ask", "eight", {"device": "auto", "worker": True}, asked]])
    assert found["console"] == []
    assert found["results"][0]["facts"]["device"] == "wasm"
    for answer, wanted in zip(found["results"][0]["answers"], right, strict=True):
        assert answer == (pytest.approx(wanted, abs=1e-2) if isinstance(wanted, dict) else wanted)


def test_transformers_js_says_the_same_tokens_with_int8_products(rounded):
    found = in_a_browser(rounded, "wasm", "topics")
    assert found["console"] == []
    decoder, opened = OrtDecoder(rounded / int8_name(GRAPH)), Bundle.open(rounded)
    vectors = {n: v.reshape(1, 1, -1) for n, v in AdapterBank(opened).vectors("topics").items()}
    assert found["new"] == [greedy(decoder, vectors, prompt, NEW, opened.stop_tokens) for prompt in PROMPTS]


@node
@pytest.mark.parametrize("device", ["wasm", "webgpu"])
def test_qia3_mjs_says_what_the_runtime_says_with_products_in_float32(bundle, tmp_path, device):
    exact = exactly(bundle, tmp_path / "exact")
    manifest = json.loads((exact / "manifest.json").read_text())
    manifest.pop("files")
    seal(exact, manifest)
    asked, right = questions(open_engine(Bundle.open(exact), 1))
    found = in_chromium({"odd": bundle}, [["ask", "odd", {"device": device, "worker": True}, asked]])
    assert found["console"] == []
    for answer, wanted in zip(found["results"][0]["answers"], right, strict=True):
        assert answer == (pytest.approx(wanted, abs=1e-3) if isinstance(wanted, dict) else wanted)


def questions(engine, text="turn the lights off"):
    """What is asked, and the engine's answers."""
    bank, asked, right = AdapterBank(engine.bundle), [], []
    for adapter in ("none", "topics", "commands"):
        vectors, job = bank.vectors(adapter), task_of(engine, adapter, "commands")
        asked += [
            ["scores", text, adapter, {"task": "topics"}],
            ["generateTokens", text, adapter, {"task": "commands"}],
        ]
        right.append(classify(engine, task_of(engine, adapter, "topics"), vectors, text).scores)
        right.append(list(generate(engine, prompt_of(engine, job, text), vectors, 6, engine.bundle.stop_tokens)))
    return asked, right


def exactly(bundle: Path, folder: Path) -> Path:
    """A copy with products in float32."""
    shutil.copytree(bundle, folder)
    model = ir.load(folder / GRAPH)
    AccuracyLevel(0)(model)
    ir.save(model, folder / GRAPH)
    return folder


def expected(bundle: Path, adapter: str, new: int, folder: Path) -> list[list[int]]:
    """Each prompt's greedy tokens by the same graph with its products in float32."""
    exact, opened = OrtDecoder(exactly(bundle, folder) / GRAPH), Bundle.open(bundle)
    held = {} if opened.mode == "merged" else AdapterBank(opened).vectors(None if adapter == "none" else adapter)
    sizes = opened.vectors.items()
    vectors = {n: np.asarray(held.get(n, np.ones(d)), np.float32).reshape(1, 1, d) for n, d in sizes}
    return [greedy(exact, vectors, prompt, new, opened.stop_tokens) for prompt in PROMPTS]


def greedy(decoder: OrtDecoder, vectors, prompt: list[int], new: int, stop: tuple[int, ...]) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < new and not (chosen and chosen[-1] in stop):
        chosen.append(int(decoder.logits(prompt, chosen, vectors)[-1].argmax()))
    return chosen


@pytest.mark.parametrize(("form", "adapter"), [("bundle", "none"), ("bundle", "topics"), ("merged", "none")])
@pytest.mark.parametrize("device", ["wasm", "webgpu"])
def test_a_browser_says_the_same_tokens(request, tmp_path, device, form, adapter):
    path = request.getfixturevalue(form)
    found = in_a_browser(path, device, adapter)
    assert found["console"] == []
    assert found["new"] == expected(path, adapter, NEW, tmp_path / "exact")


def in_a_browser(bundle, device, adapter):
    command = ["node", ANSWER, CHROMIUM, MODULES, bundle, device, adapter, NEW, json.dumps(PROMPTS)]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=400, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
