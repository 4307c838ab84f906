"""What int8 products give on WebAssembly, and what they cost in the answers: bundles of one training beside each other.

    qia3 export examples/home-intents/qia3.toml --target browser --work W --output dist/home-browser
    qia3 export examples/home-intents/qia3.toml --target browser-wasm --work W --output dist/home-wasm
    python benchmarks/browser_wasm.py dist/home-browser dist/home-wasm examples/home-intents/test.jsonl --adapter home-intents --packages runtime

In turn, in Node on WebAssembly: wall and processor time of a prompt and of each token after it, and the process's peak
memory. Natively: the KL of the token after a task's prompts from the first bundle's, and how many labels are right.
`--packages` is npm's folder, as for `qia3 page --runtime`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
from prompts8 import log_shares

from qia3.bundle.opened import Bundle
from qia3.examples import read_examples
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import label, prompt_of, task_of
from qia3.runtime.bench import machine
from qia3.runtime.engine import Engine

SCRIPT, WEB = Path(__file__).with_suffix(".mjs"), Path(__file__).parents[1] / "web"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("file", type=Path)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--examples", type=int, default=60)
    asked = parser.parse_args()
    bundles = {folder.name: Bundle.open(folder) for folder in asked.bundles}
    print(machine())
    timed: dict[str, list[dict[str, float]]] = {name: [] for name in bundles}
    for number in range(asked.rounds):
        for name in list(bundles) if number % 2 == 0 else list(reversed(bundles)):
            timed[name].append(in_node(bundles[name], asked.packages, asked.adapter, asked.tokens))
    for name, runs in timed.items():
        middle = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
        files = bundles[name].manifest.files
        megabytes = sum(files[file].bytes for file in files if "onnx/" in file) / 1e6
        print(f"{name}: {megabytes:.0f} MB, " + ", ".join(f"{key} {value:.3g}" for key, value in middle.items()))
    compare(bundles, asked)


def in_node(bundle: Bundle, packages: Path, adapter: str, tokens: int) -> dict[str, float]:
    command = ["node", str(SCRIPT), str(WEB), str(packages.resolve()), str(bundle.path.resolve()), adapter, str(tokens)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def compare(bundles: dict[str, Bundle], asked: argparse.Namespace) -> None:
    """Natively, at the targets' accuracy levels."""
    first: list[np.ndarray] = []
    for name, bundle in bundles.items():
        engine = Engine(bundle, 1)
        vectors, task = AdapterBank(bundle).vectors(asked.adapter), task_of(engine, asked.adapter)
        examples = read_examples(asked.file, task.kind, task.choices or ())[: asked.examples]
        prompts = [prompt_of(engine, task, example.text) for example in examples]
        found = [log_shares(engine.prefill([prompt], vectors, room=1)[0][0]) for prompt in prompts]
        right = sum(label(engine, task, vectors, x.text, x.choices) in x.right for x in examples)
        first = first or found
        kl = np.mean([(np.exp(p) * (p - q)).sum() for p, q in zip(first, found, strict=True)])
        same = sum(p.argmax() == q.argmax() for p, q in zip(first, found, strict=True))
        print(f"{name}: right {right} of {len(examples)}, KL {kl:.4f}, same token {same}")


if __name__ == "__main__":
    main()
