"""transformers.js itself opens a bundle with no option at all: the same tokens as our own runtime, swappable adapters
included.

Needs Node and a folder with the packages, which are not Python's to install:

    npm install --prefix PACKAGES @huggingface/transformers
    QIA3_TRANSFORMERS_JS=PACKAGES pytest tests/test_transformers_js.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_build import built

from qia3.bundle.opened import Bundle
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.engine import Engine
from qia3.runtime.generate import generate

PACKAGES = os.environ.get("QIA3_TRANSFORMERS_JS", "")
pytestmark = [
    pytest.mark.skipif(not shutil.which("node"), reason="there is no node here"),
    pytest.mark.skipif(not PACKAGES, reason="QIA3_TRANSFORMERS_JS names no folder with @huggingface/transformers"),
]
TEXTS = ["turn the lights off", "lock the door and play a song, then dim the hall"]
NEW = 24


def node(script: str, *arguments: object) -> dict:
    command = ["node", str(Path(__file__).with_name(script)), PACKAGES, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def ours(bundle: Bundle, adapter: str) -> list[dict]:
    """Each text's ids and those that come after it; transformers.js gives the token that ends an answer too."""
    engine = Engine(bundle, threads=1)
    vectors = AdapterBank(bundle).vectors(adapter) if bundle.mode == "side" else {}
    prompts = [engine.encode(text) for text in TEXTS]
    return [{"prompt": p, "new": list(generate(engine, p, vectors, NEW, bundle.stop_tokens))} for p in prompts]


def without_end(row: dict, stop_tokens: tuple[int, ...]) -> dict:
    return row | {"new": [t for t in row["new"] if t not in stop_tokens]}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Bundle]:
    options = {"side": [], "browser": ["--target", "browser"], "merged": ["--mode", "merged", "--task", "topics"]}
    return {form: Bundle.open(built(tmp_path_factory.mktemp(form), *options[form])) for form in options}


CASES = [("side", "none"), ("merged", "none"), ("browser", "none"), ("browser", "topics"), ("browser", "commands")]


@pytest.mark.parametrize(("form", "adapter"), CASES)
def test_transformers_js_says_the_same_token_for_token(bundles, form, adapter):
    bundle = bundles[form]
    found = node("transformers_js.mjs", bundle.path, adapter, NEW, *TEXTS)
    assert [without_end(row, bundle.stop_tokens) for row in found["rows"]] == ours(bundle, adapter)
    for together, row in zip(found["batch"], found["rows"], strict=True):
        assert together[: len(row["new"])] == row["new"]  # a row that is done goes on until all are
    assert found["chat"] == "u:hi<|end|>"
    assert [name for name in found["inputs"] if name.endswith(".ia3_l")] == (
        list(bundle.vectors) if form == "browser" else []
    )


@pytest.mark.parametrize("form", ["side", "merged"])
def test_webassembly_says_the_same_token_for_token(bundles, form):
    """At accuracy_level 0: at level 4 WebAssembly rounds differently from native code, which random weights do not
    forgive.
    """
    bundle = bundles[form]
    expected = ours(bundle, "none")[0]
    found = node("onnxruntime_web.mjs", bundle.path, NEW, *expected["prompt"])
    assert found["new"][: len(expected["new"])] == expected["new"]
