"""What WebAssembly would gain from 8-bit products, and what that costs in the answers and in memory: a trial, no target.

    python benchmarks/browser_wasm.py dist/home-browser examples/home-intents/test.jsonl --adapter home-intents --packages runtime

ONNX Runtime's WebAssembly has no kernel for 4-bit products: it unpacks all weights to float32 at every call, for one row as
for many. Its integer products are compiled with SIMD. So this writes a copy of a bundle of the target `browser` in which every
4-bit product is the one of prompts8.py (weights rounded once more to int8, a scale for each column and --groups of the inputs),
and asks both in turn, in Node on WebAssembly: wall and processor time of a prompt and of each token after it, and the process's
peak memory; natively, the KL of the token after a task's prompts and how many labels are right. --float takes float32 weights
instead, the most that could be gained.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from prompts8 import CONSTANTS, log_shares, product_in_parts, weights

from qia3.bundle.opened import Bundle
from qia3.bundle.seal import seal_files
from qia3.examples import read_examples
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import label, prompt_of, task_of
from qia3.runtime.bench import machine
from qia3.runtime.engine import Engine

SCRIPT, WEB = Path(__file__).with_suffix(".mjs"), Path(__file__).parents[1] / "web"


def rewritten(model: onnx.ModelProto, groups: int, floats: bool) -> int:
    """Puts other products in the place of all 4-bit ones; how many there are."""
    stored = {i.name: i for i in model.graph.initializer}
    made = [numpy_helper.from_array(np.asarray(value), name) for name, value in CONSTANTS.items()]
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    gone: set[str] = set()
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            nodes.append(node)
            continue
        w, x, y = weights(node, stored), node.input[0], node.output[0]
        gone |= set(node.input[1:4])
        if floats:
            made.append(numpy_helper.from_array(np.ascontiguousarray(w.T), f"{y}.w"))
            nodes.append(helper.make_node("MatMul", [x, f"{y}.w"], [y]))
            continue
        new, held = product_in_parts(x, y, w, groups, done)
        nodes += new
        made += held
    used = {name for node in nodes for name in node.input}  # the embedding may read what a tied head did
    kept = [i for i in model.graph.initializer if i.name not in gone or i.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*kept, *made])
    return len(gone)


def written(bundle: Bundle, place: Path, groups: int, floats: bool) -> Bundle:
    """A copy of the bundle with the graph rewritten, sealed."""
    shutil.copytree(bundle.path, place)
    model = onnx.load(place / bundle.graph)  # onnx refuses files with other hard links
    rewritten(model, groups, floats)
    data = bundle.manifest.main.data
    (place / data).unlink()
    onnx.save(model, place / bundle.graph, save_as_external_data=True, location=Path(data).name)
    seal_files(place, bundle.manifest, lambda *_: {})
    return Bundle.open(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--packages", type=Path, required=True, help="npm's folder: qia3 page's --runtime")
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--float", dest="floats", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--examples", type=int, default=60)
    asked = parser.parse_args()
    plain = Bundle.open(asked.bundle)
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        forms = {"4 bits": plain}
        for groups in asked.groups:
            forms[f"8 bits, {groups} groups"] = written(plain, Path(scratch) / str(groups), groups, False)
        if asked.floats:
            forms["float32"] = written(plain, Path(scratch) / "float", 1, True)
        timed: dict[str, list[dict[str, float]]] = {name: [] for name in forms}
        for _ in range(asked.rounds):
            for name, bundle in forms.items():
                timed[name].append(in_node(bundle, asked.packages, asked.adapter, asked.tokens))
        for name, runs in timed.items():
            middle = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
            megabytes = (
                sum(forms[name].manifest.files[n].bytes for n in forms[name].manifest.files if "onnx/" in n) / 1e6
            )
            print(f"{name}: {megabytes:.0f} MB, " + ", ".join(f"{key} {value:.3g}" for key, value in middle.items()))
        compare(plain, {name: bundle for name, bundle in forms.items() if name != "4 bits"}, asked)


def in_node(bundle: Bundle, packages: Path, adapter: str, tokens: int) -> dict[str, float]:
    command = ["node", str(SCRIPT), str(WEB), str(packages.resolve()), str(bundle.path.resolve()), adapter, str(tokens)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def compare(plain: Bundle, others: dict[str, Bundle], asked: argparse.Namespace) -> None:
    """Natively: each form's answers beside the plain one's, which are at the target's accuracy level."""
    engine = Engine(plain, 1)
    vectors, task = AdapterBank(plain).vectors(asked.adapter), task_of(engine, asked.adapter)
    examples = read_examples(asked.file, task.kind, task.choices or ())[: asked.examples]
    prompts = [prompt_of(engine, task, example.text) for example in examples]
    before = [log_shares(engine.prefill([prompt], vectors, room=1)[0][0]) for prompt in prompts]
    right = sum(label(engine, task, vectors, x.text, x.choices) in x.right for x in examples)
    print(f"4 bits: right {right} of {len(examples)}")
    for name, bundle in others.items():
        other = Engine(bundle, 1)
        after = [log_shares(other.prefill([prompt], vectors, room=1)[0][0]) for prompt in prompts]
        kl = np.mean([(np.exp(p) * (p - q)).sum() for p, q in zip(before, after, strict=True)])
        same = sum(p.argmax() == q.argmax() for p, q in zip(before, after, strict=True))
        right = sum(label(other, task, vectors, x.text, x.choices) in x.right for x in examples)
        print(f"{name}: KL {kl:.4f}, same token {same}, right {right}")


if __name__ == "__main__":
    main()
