"""Greedy tokens of a bundle in plain OpenVINO, which reads the .onnx by itself: `python openvino_loads.py BUNDLE NEW`.

stdin is JSON, {"prompts": [[ids], ...], "vectors": {input: [values]}}; ones where a vector has to be fed and none is given. Prints
{"version", "new": [[ids], ...]}, or {"error"}. Products are in float32: OpenVINO's own rounding of activations is off.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import openvino as ov

HINTS = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "INFERENCE_NUM_THREADS": "1"}


def told(bundle: Path, new: int, prompts: list[list[int]], vectors: dict[str, list[float]]) -> list[list[int]]:
    graph = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["graphs"]["decoder"]["file"]
    core = ov.Core()
    request = core.compile_model(str(bundle / graph), "CPU", HINTS).create_infer_request()
    ports = {port.any_name: port.partial_shape for port in request.model_inputs}
    fixed = {}
    for name in [name for name in ports if name.endswith(".ia3_l")]:
        size = ports[name][2].get_length()
        fixed[name] = np.asarray(vectors.get(name, np.ones(size)), np.float32).reshape(1, 1, size)
    found = []
    for prompt in prompts:
        empty = {n: s for n, s in ports.items() if n.startswith("past_key_values.")}
        past = {n: np.zeros((1, s[1].get_length(), 0, s[3].get_length()), np.float32) for n, s in empty.items()}
        row, seen, chosen = list(prompt), 0, []
        while len(chosen) < new:
            seen += len(row)
            ids = {"input_ids": np.array([row], np.int64), "attention_mask": np.ones((1, seen), np.int64)}
            given = ids | past | fixed
            request.infer(given)
            row = [int(request.get_tensor("logits").data[0, -1].argmax())]
            chosen += row
            past = {n: request.get_tensor(n.replace("past_key_values", "present")).data.copy() for n in past}
        found.append(chosen)
    return found


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    try:
        answer = {"version": ov.__version__, "new": told(Path(sys.argv[1]), int(sys.argv[2]), **asked)}
    except RuntimeError as error:
        answer = {"error": str(error).strip().splitlines()[-1]}
    print(json.dumps(answer))
