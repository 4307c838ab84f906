"""Stock loaders open encoders' bundles and give our numbers: optimum-onnx (make interop, test_interop.py) and transformers.js
(test_transformers_js.py), labels of texts and of words where a head is merged, states where it is unmerged.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_build_encoder import write_encoder_build

from qia3 import cli
from qia3.bundle.opened import Bundle
from qia3.bundle.task import TAGS
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.load import open_engine

OPTIMUM, PACKAGES = os.environ.get("QIA3_OPTIMUM", ""), os.environ.get("QIA3_TRANSFORMERS_JS", "")
pytestmark = pytest.mark.skipif(
    not OPTIMUM and not PACKAGES, reason="QIA3_OPTIMUM and QIA3_TRANSFORMERS_JS name nothing"
)
HERE = Path(__file__).parent
TEXTS = ["turn the lights off", "lock the door", "play a song , please , and then stop the music"]
CLASSES = {"side": ("ORTModelForFeatureExtraction", "BertModel"),
           "topics": ("ORTModelForSequenceClassification", "BertForSequenceClassification"),
           "things": ("ORTModelForTokenClassification", "BertForTokenClassification")}  # fmt: skip


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Bundle]:
    folder = write_encoder_build(tmp_path_factory.mktemp("labels"))
    made = {}
    for form in CLASSES:
        merged = [] if form == "side" else ["--mode", "merged", "--task", form, "--work", str(folder / "side.work")]
        verb = "build" if form == "side" else "export"
        with pytest.raises(SystemExit) as ended:
            cli.main([verb, str(folder / "qia3.toml"), "--output", str(folder / form), *merged])
        assert not ended.value.code
        made[form] = Bundle.open(folder / form)
    return made


def run(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def ours(bundle: Bundle) -> tuple[list[list[int]], list[np.ndarray]]:
    engine = open_engine(bundle, 1)
    rows = [list(engine.tokens.prompt(bundle.prefix + "{text}" + bundle.suffix, text)) for text in TEXTS]
    if bundle.mode == "side":
        vectors = AdapterBank(bundle).vectors("none")
        return rows, [engine._run("last_hidden_state", [row], vectors)[0] for row in rows]
    tags = bundle.tasks[str(bundle.merged_task)].kind == TAGS
    read = engine.token_logits if tags else engine.logits
    return rows, [read([row], {})[0] for row in rows]


@pytest.mark.parametrize("form", CLASSES)
@pytest.mark.skipif(not OPTIMUM, reason="QIA3_OPTIMUM names no Python that has optimum-onnx (make interop)")
def test_optimum_reads_the_same(bundles, form):
    told = run([OPTIMUM, str(HERE / "optimum_labels.py"), str(bundles[form].path), *TEXTS])
    ids, expected = ours(bundles[form])
    assert (told["class"], told["ids"]) == (CLASSES[form][0], ids)
    for row, batched, ids_, wanted in zip(told["rows"], told["batch"], ids, expected, strict=True):
        np.testing.assert_allclose(row, wanted, atol=1e-5)
        np.testing.assert_allclose(batched if form == "topics" else batched[: len(ids_)], wanted, atol=1e-4)
    if form != "side":
        assert tuple(told["labels"].values()) == bundles[form].tasks[form].choices


@pytest.mark.parametrize("form", CLASSES)
@pytest.mark.skipif(not PACKAGES or not shutil.which("node"), reason="no node, or no packages for it")
def test_transformers_js_reads_the_same(bundles, form):
    told = run(["node", str(HERE / "transformers_js_labels.mjs"), PACKAGES, str(bundles[form].path), *TEXTS])
    ids, expected = ours(bundles[form])
    assert told["class"] == CLASSES[form][1]
    for row, ids_, wanted in zip(told["rows"], ids, expected, strict=True):
        assert row["ids"] == ids_
        np.testing.assert_allclose(np.reshape(row["values"], row["dims"])[0], wanted, atol=1e-5)
