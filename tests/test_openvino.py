"""Plain OpenVINO opens a bundle's graph: the tokens of the same graph with its products in float32 (make interop).

It is asked in a Python of its own, which has openvino:

    QIA3_OPENVINO=PYTHON pytest tests/test_openvino.py

The base's rows have an odd number of blocks, which is what OpenVINO refused ONNX Runtime's own look-up for.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from test_browser_bundle import NEW, PROMPTS, bundle, expected, merged  # noqa: F401

from qia3.bundle.opened import Bundle
from qia3.runtime.adapters import AdapterBank

PYTHON = os.environ.get("QIA3_OPENVINO", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="QIA3_OPENVINO names no Python that has openvino (make interop)")


@pytest.mark.parametrize(("form", "adapter"), [("bundle", "none"), ("bundle", "topics"), ("merged", "none")])
def test_openvino_says_the_same_tokens(request, tmp_path, form, adapter):
    path = request.getfixturevalue(form)
    vectors = {}
    if adapter != "none":
        held = AdapterBank(Bundle.open(path)).vectors(adapter)
        vectors = {name: vector.flatten().tolist() for name, vector in held.items()}
    script = Path(__file__).with_name("openvino_loads.py")
    given = json.dumps({"prompts": PROMPTS, "vectors": vectors})
    ran = subprocess.run(
        [PYTHON, str(script), str(path), str(NEW)], input=given, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    right, stop = expected(path, adapter, NEW, tmp_path / "exact"), Bundle.open(path).stop_tokens
    ends = [next((i for i, token in enumerate(new) if token in stop), NEW) for new in told["new"]]
    assert [new[: end + 1] for new, end in zip(told["new"], ends, strict=True)] == right
