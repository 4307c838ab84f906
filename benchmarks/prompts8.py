"""What prompts gain from 8-bit products, and what that costs in the answers: the trial that qia3/graph/int8_products.py was
made from, without its smoothing.

    python benchmarks/prompts8.py dist/home-intents examples/home-intents/test.jsonl --adapter home-intents --keep down_proj

ONNX Runtime's 4-bit product takes its int8 dots a block at a time and keeps no matrix unit busy. Its plain integer
product (uint8 times int8, MatMulIntegerToFloat) does where the processor has one. So this writes a copy of the graph
into a scratch folder in which every 4-bit product that all positions of a prompt go through is

    w [K, N]: the 4-bit weights, rounded once more to int8, a scale for each column
    x [M, K]: rounded to 8 bits, a scale for each row and group: --groups of K in `down_proj`, --all-groups elsewhere
    y = (x - 128) w * scale of the row * scale of the column

and measures both in turn: processor time at several lengths, one thread, and the KL of the token after a task's prompts.
--keep WORD leaves layers whose names hold it in 4 bits. The copy takes twice the weights' bytes and decodes slower, so
the package's stands beside the 4-bit graph and runs prompts only.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qia3.bundle.opened import Bundle
from qia3.examples import read_examples
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import label, prompt_of, task_of
from qia3.runtime.bench import machine
from qia3.runtime.engine import Engine

CONSTANTS = {
    "q8.axis": np.array([-1], np.int64),
    "q8.step": np.float32(1 / 127),
    "q8.one": np.float32(1),
    "q8.middle": np.uint8(128),
    "q8.least": np.float32(1e-20),  # of a row of noughts
}
Floats = NDArray[np.float32]


def weights(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> Floats:
    """[N, K] of a MatMulNBits of 4 bits with zero points."""
    sizes = {a.name: a.i for a in node.attribute}
    codes, scales, zeros = (numpy_helper.to_array(stored[name]) for name in node.input[1:4])
    rows, blocks, _ = codes.shape
    unpacked = [np.stack([a & 15, a >> 4], -1).reshape(rows, -1) for a in (codes, zeros.reshape(rows, -1))]
    values = unpacked[0].reshape(rows, blocks, -1) - unpacked[1][:, :blocks, None].astype(np.float32)
    found: Floats = (values * scales.reshape(rows, blocks, 1)).reshape(rows, -1)[:, : sizes["K"]]
    return found


def quantised(x: str) -> list[onnx.NodeProto]:
    """x -> x.u8 and a scale for each row, x.scale."""
    steps = [
        ("Abs", [x], "abs"),
        ("ReduceMax", [f"{x}.abs", "q8.axis"], "top"),
        ("Max", [f"{x}.top", "q8.least"], "most"),
        ("Mul", [f"{x}.most", "q8.step"], "scale"),
        ("Div", [x, f"{x}.scale"], "steps"),
        ("QuantizeLinear", [f"{x}.steps", "q8.one", "q8.middle"], "u8"),
    ]
    return [helper.make_node(op, reads, [f"{x}.{made}"]) for op, reads, made in steps]


def product(x: str, y: str, w: Floats) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """y = x w^T of the quantised x; w [N, K]."""
    scale = np.abs(w).max(1) / 127
    held = {f"{y}.w8": np.ascontiguousarray(np.rint(w / scale[:, None]).astype(np.int8).T), f"{y}.s8": scale}
    reads = [f"{x}.u8", f"{y}.w8", "q8.one", f"{y}.s8", "q8.middle"]
    nodes = [
        helper.make_node("MatMulIntegerToFloat", reads, [f"{y}.p8"], domain="com.microsoft"),
        helper.make_node("Mul", [f"{y}.p8", f"{x}.scale"], [y]),
    ]
    return nodes, [numpy_helper.from_array(a, n) for n, a in held.items()]


def product_in_parts(
    x: str, y: str, w: Floats, parts: int, done: set[str]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The same with a scale of its own for each of so many groups of inputs. `done`: inputs that are quantised already."""
    nodes: list[onnx.NodeProto] = []
    made: list[onnx.TensorProto] = []
    inputs, outputs = [x], [y]
    if parts > 1:
        inputs, outputs = [f"{x}.{i}" for i in range(parts)], [f"{y}.{i}" for i in range(parts)]
        if inputs[0] not in done:
            nodes.append(helper.make_node("Split", [x], inputs, axis=-1, num_outputs=parts))
    for one, other, part in zip(inputs, outputs, np.split(w, parts, axis=1), strict=True):
        nodes += [] if one in done else quantised(one)
        done.add(one)
        new, held = product(one, other, part)
        nodes += new
        made += held
    if parts > 1:
        nodes.append(helper.make_node("Sum", outputs, [y]))
    return nodes, made


def rewritten(model: onnx.ModelProto, keep: Sequence[str], groups: int, others: int) -> int:
    """Puts the products in place; how many there are."""
    stored, nodes, count = {i.name: i for i in model.graph.initializer}, [], 0
    done: set[str] = set()
    gone: set[str] = set()
    made = [numpy_helper.from_array(np.asarray(value), name) for name, value in CONSTANTS.items()]
    gathered = False  # behind the last layer's gather there is one position
    for node in model.graph.node:
        gathered |= node.op_type == "GatherND"
        if node.op_type != "MatMulNBits" or gathered or any(word in node.input[1] for word in keep):
            nodes.append(node)
            continue
        w, x, y = weights(node, stored), node.input[0], node.output[0]
        parts = groups if "down_proj" in node.input[1] else others
        new, held = product_in_parts(x, y, w, parts, done)
        nodes += new
        made += held
        gone, count = gone | set(node.input[1:4]), count + 1
    kept = [i for i in model.graph.initializer if i.name not in gone]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*kept, *made])
    return count


def written(bundle: Bundle, place: Path, keep: Sequence[str], groups: int, others: int) -> Bundle:
    """A copy of the bundle with the graph rewritten."""
    shutil.copytree(bundle.path, place)
    model = onnx.load(bundle.path / bundle.graph)
    count = rewritten(model, keep, groups, others)
    data = bundle.manifest.main.data
    (place / data).unlink()
    onnx.save(model, place / bundle.graph, save_as_external_data=True, location=Path(data).name)
    print(
        f"{count} products in 8 bits, in 4 bits: {', '.join(keep) or 'none'}, groups: {groups} in down_proj, {others} elsewhere"
    )
    return Bundle.open(place, verify=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--keep", nargs="+", default=[])
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--all-groups", type=int, default=1)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 32, 128, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="with several, time on the wall: for a quiet machine")
    parser.add_argument("--examples", type=int, default=120)
    asked = parser.parse_args()
    plain = Bundle.open(asked.bundle)
    with tempfile.TemporaryDirectory() as scratch:
        eight = written(plain, Path(scratch) / "b", asked.keep, asked.groups, asked.all_groups)
        engines = [Engine(bundle, asked.threads) for bundle in (plain, eight)]
        vectors, task = AdapterBank(plain).vectors(asked.adapter), task_of(engines[0], asked.adapter)
        clock = time.process_time if asked.threads == 1 else time.perf_counter
        print(f"{machine()}, {asked.threads} threads")
        for length in asked.lengths:
            row, times = [i * 37 % 9000 + 100 for i in range(length)], []
            for _ in range(asked.rounds + 1):
                starts = [clock()]
                for engine in engines:
                    engine.prefill([row], vectors, room=1)
                    starts.append(clock())
                times.append(np.diff(starts))
            before, after = np.median(times[1:], 0)
            ratio = statistics.median(a / b for a, b in times[1:])
            print(f"{length:4} tokens: {length / before:.0f} and {length / after:.0f} tokens/s, {ratio:.2f}")
        examples = read_examples(asked.file, task.kind, task.choices or ())[: asked.examples]
        found = []
        for example in examples:
            prompt = prompt_of(engines[0], task, example.text)
            p, q = (log_shares(engine.prefill([prompt], vectors, room=1)[0][0]) for engine in engines)
            found.append(((np.exp(p) * (p - q)).sum(), p.argmax() == q.argmax()))
        print(f"KL {np.mean([kl for kl, _ in found]):.4f}, same token {sum(same for _, same in found)} of {len(found)}")
        if task.kind == "classify":
            right = [sum(label(e, task, vectors, x.text, x.choices) in x.right for x in examples) for e in engines]
            print(f"right: {right[0]} and {right[1]} of {len(examples)}")


def log_shares(logits: Floats) -> NDArray[np.float64]:
    wide = logits.astype(np.float64) - logits.max()
    shares: NDArray[np.float64] = wide - np.log(np.exp(wide).sum())
    return shares


if __name__ == "__main__":
    main()
