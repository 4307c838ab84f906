"""What a processor answers: of every single product in a folder, and of a tiny bundle. No torch, no QIA³ but its runtime.

python answers.py FOLDER OUTPUT.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

from qia3.bundle.opened import Bundle
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.engine import Engine

ROWS = [[5, 9, 250, 17, 33, 80, 4, 61, 12, 99, 7], [8, 44, 3, 190], [77]]
NAMES = ["lamps", None, "echo"]


def products(folder: Path) -> dict[str, np.ndarray]:
    """[16, N] of each model's product with the folder's x [16, K]."""
    x, found = np.load(folder / "x.npy"), {}
    for file in sorted(folder.glob("*.onnx")):
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        found[file.stem] = ort.InferenceSession(file, options).run(None, {"x": x})[0]
    return found


def logits(folder: Path) -> np.ndarray:
    """[3, 3, V] after three prompts of three tasks in one batch, and after two more tokens."""
    bundle = Bundle.open(folder)
    engine, vectors = Engine(bundle, threads=1), AdapterBank(bundle).rows(NAMES)
    found, cache = engine.prefill(ROWS, vectors)
    steps = [found.copy()]
    for token in (40, 50):
        found, cache = engine.step([token + i for i in range(len(ROWS))], cache, vectors)
        steps.append(found.copy())
    return np.stack(steps)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    np.savez(sys.argv[2], bundle=logits(place / "bundle"), **products(place))
