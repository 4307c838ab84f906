"""A bundle in a real browser, on WebAssembly and on WebGPU, by transformers.js as it is (make browser).

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
from test_browser import CHROMIUM, MODULES, pytestmark  # noqa: F401
from tiny_build import write_build

from qia3 import cli
from qia3.bundle.layout import GRAPH
from qia3.bundle.opened import Bundle
from qia3.graph.forced import OrtDecoder
from qia3.graph.passes import AccuracyLevel
from qia3.runtime.adapters import AdapterBank

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
def exact(bundle, tmp_path_factory):
    """The same graph with its products in float32."""
    folder = tmp_path_factory.mktemp("exact") / "bundle"
    shutil.copytree(bundle, folder)
    model = ir.load(folder / GRAPH)
    AccuracyLevel(0)(model)
    ir.save(model, folder / GRAPH)
    return OrtDecoder(folder / GRAPH)


@pytest.mark.parametrize("adapter", ["none", "topics"])
@pytest.mark.parametrize("device", ["wasm", "webgpu"])
def test_a_browser_says_the_same_tokens(bundle, exact, device, adapter):
    opened = Bundle.open(bundle)
    sizes = opened.vectors
    held = AdapterBank(opened).vectors(None if adapter == "none" else adapter)
    vectors = {n: np.asarray(held.get(n, np.ones(d)), np.float32).reshape(1, 1, d) for n, d in sizes.items()}
    found = in_a_browser(bundle, device, adapter)
    assert found["console"] == []
    for prompt, new in zip(PROMPTS, found["new"], strict=True):
        chosen: list[int] = []
        while len(chosen) < NEW and not (chosen and chosen[-1] in opened.stop_tokens):
            chosen.append(int(exact.logits([*prompt, *chosen], [], vectors)[-1].argmax()))
        assert new == chosen


def in_a_browser(bundle, device, adapter):
    command = ["node", ANSWER, CHROMIUM, MODULES, bundle, device, adapter, NEW, json.dumps(PROMPTS)]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=400, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
