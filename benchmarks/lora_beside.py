"""LoRA beside IA³ on one task, one 4-bit base and one runtime: trained, shipped and measured in the same run.

    qia3 build examples/home-intents/qia3.toml --output dist/home-intents
    qia3 export examples/home-intents/qia3.toml --mode merged --task home-intents --work dist/home-intents.work --output dist/merged
    python benchmarks/lora_beside.py dist/home-intents dist/merged --work dist/lora

The base is the bundle's own: its codes, scales and zero points, dequantised, are the weights that PEFT's LoRA (r=8 on
queries and values) trains beside, on the same examples, steps and loss as the bundle's vectors. Then it ships twice:

    at the side  two products and a sum in each layer, on q|k|v: x A [576, 16] B [16, 960] is added to what the 4-bit product
                 gives. A and B are graph inputs with these defaults, so that another adapter can be fed, as IA³'s vectors can
    merged       W + 2 B A is quantised again (blocks of 64, to nearest) into the bundle's own regions

Both are copies of the merged bundle's folder, whose graph has no vectors; scales are those of the bundle at the side, so
nothing of IA³ is in them. Accuracy is by ONNX Runtime as shipped; memory and speed are those of fresh processes (`qia3
bench`), in turn, with a pause, medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from peft import get_peft_model
from quality_methods import Cell, Methods, lora
from quality_parts import places
from quality_tasks import RealTask
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from qia3.base.load import Asked, load_base
from qia3.bundle.manifest import Manifest
from qia3.bundle.opened import Bundle
from qia3.examples import Example, read_examples
from qia3.footprint.measure import measure
from qia3.grids import int4
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.evaluate import evaluate
from qia3.runtime.load import open_engine

EXAMPLE = Path(__file__).parents[1] / "examples" / "home-intents"
RANK, SCALE = 8, 2.0  # lora_alpha is twice the rank
PAUSE, THREADS = 2.0, 1  # one thread, for on a shared machine two wait for each other


@dataclass(frozen=True)
class HomeIntents:
    """Drawn from as benchmarks/quality_tasks.Split is."""

    task: RealTask
    choices: tuple[str, ...]
    train: tuple[Example, ...]

    def draw(self, n: int, seed: int) -> tuple[Example, ...]:
        return self.train


def dequantised(manifest: Manifest, data: bytes) -> dict[str, np.ndarray]:
    """Every layer's weight, and the embedding's, by module."""
    found = {}
    for layer in manifest.linears:
        name = "model.embed_tokens" if layer.role == "head" else layer.name
        found[name] = int4.dequantise(stored(manifest, data, name, layer.outputs, layer.inputs, layer.block_size))
    return found


def stored(manifest: Manifest, data: bytes, name: str, outputs: int, inputs: int, block: int) -> int4.Int4:
    where, blocks = places(asdict(manifest)), -(-inputs // block)

    def read(part: str, kind: Any, *shape: int) -> np.ndarray:
        start, size = where[f"{name}.{part}"]
        return np.frombuffer(data[start : start + size], kind).reshape(shape).copy()

    codes = read("codes", np.uint8, outputs, blocks, block // 2)
    scales = read("scales", np.float32, outputs, blocks)
    return int4.Int4(codes, scales, read("zero_points", np.uint8, outputs, -(-blocks // 2)), inputs)


def write_float(bundle: Bundle, place: Path) -> None:
    """The base that the bundle means, in float32, for transformers and PEFT."""
    weights = dequantised(bundle.manifest, (bundle.path / bundle.manifest.main.data).read_bytes())
    base = load_base(Asked("smollm2-135m-instruct", block_size=64, calibration="own")).model
    model = LlamaForCausalLM(base.config)
    kept = {name: p for name, p in base.state_dict().items() if name.endswith("norm.weight")}
    given = {f"{name}.weight": torch.from_numpy(w) for name, w in weights.items()} | kept
    missing, extra = model.load_state_dict(given, strict=False)
    assert set(missing) <= {"lm_head.weight"}, missing
    assert not extra, extra
    model.tie_weights()
    model.save_pretrained(place)
    AutoTokenizer.from_pretrained(bundle.path).save_pretrained(place)


def train(bundle: Bundle, place: Path, methods: Methods, steps: int, rate: float) -> dict[str, Any]:
    """Writes `lora.safetensors`: A [rank, inputs] and B [outputs, rank] by module, B times the scale."""
    task = bundle.manifest.tasks["home-intents"]
    prompt = next(t["prompt"] for t in bundle.manifest.config["task"] if t["name"] == "home-intents")
    examples = tuple(read_examples(EXAMPLE / "train.jsonl", "classify", task.choices or ()))
    split = HomeIntents(RealTask("home-intents", None, prompt), task.choices or (), examples)
    peft = get_peft_model(methods.float_model(), lora(RANK))
    cell = Cell(split, len(examples), 0, steps, rate)  # type: ignore[arg-type]
    done = methods.train_plain(peft.get_base_model(), cell)
    found = {}
    for name, module in peft.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            found[f"{name}.A"], found[f"{name}.B"] = a.detach().numpy(), SCALE * b.detach().numpy()
    save_file({n: np.ascontiguousarray(v) for n, v in found.items()}, str(place))
    return {"loss": round(done.loss, 4), "seconds": done.seconds, "peak_mib": done.peak_mib}


def copied(merged: Path, side: Path, place: Path) -> Path:
    """The merged bundle's folder with the weights of the one at the side."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(merged, place)
    manifest = Bundle.open(merged).manifest
    theirs = Bundle.open(side).manifest
    data, given = bytearray((merged / manifest.main.data).read_bytes()), (side / theirs.main.data).read_bytes()
    here, there = places(asdict(manifest)), places(asdict(theirs))
    for name, (start, size) in here.items():
        if name.endswith(".scales"):
            begin, length = there[name]
            assert length == size, name
            data[start : start + size] = given[begin : begin + length]
    (place / manifest.main.data).write_bytes(data)
    return place


def at_side(place: Path, adapter: Mapping[str, np.ndarray]) -> None:
    """Two products and a sum after each q|k|v."""
    file = place / Bundle.open(place, verify=False).manifest.main.file
    model = onnx.load(file, load_external_data=False)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type != "MatMulNBits" or "qkv_proj.codes" not in node.input[1]:
            continue
        layer = node.input[1].removesuffix(".qkv_proj.codes")
        a, b = block(adapter, layer)
        names = {part: f"{layer}.lora_{part}" for part in ("A", "B", "x", "xb", "before")}
        for part, value in (("A", a), ("B", b)):
            model.graph.initializer.append(numpy_helper.from_array(value, names[part]))
            model.graph.input.append(helper.make_tensor_value_info(names[part], TensorProto.FLOAT, value.shape))
        y, node.output[0] = node.output[0], names["before"]
        nodes += [
            helper.make_node("MatMul", [node.input[0], names["A"]], [names["x"]]),
            helper.make_node("MatMul", [names["x"], names["B"]], [names["xb"]]),
            helper.make_node("Add", [names["before"], names["xb"]], [y]),
        ]
    assert len(nodes) > len(model.graph.node), "no q|k|v in this graph"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, file)


def block(adapter: Mapping[str, np.ndarray], layer: str) -> tuple[np.ndarray, np.ndarray]:
    """A [hidden, 2 r] and B [2 r, q + k + v] of a layer: queries' columns, none for keys, values'."""
    aq, av, bq, bv = (adapter[f"{layer}.{m}_proj.{part}"] for part in "AB" for m in "qv")
    keys, rank = len(bv), len(aq)
    b = np.zeros((2 * rank, len(bq) + 2 * keys), np.float32)
    b[:rank, : len(bq)], b[rank:, len(bq) + keys :] = bq.T, bv.T
    return np.ascontiguousarray(np.concatenate([aq, av]).T, np.float32), b


def merged_anew(place: Path, adapter: Mapping[str, np.ndarray]) -> None:
    """W + B A, quantised again, where W was."""
    manifest = Bundle.open(place, verify=False).manifest
    file = place / manifest.main.data
    data, where = bytearray(file.read_bytes()), places(asdict(manifest))
    for layer in manifest.linears:
        if f"{layer.name}.A" not in adapter:
            continue
        old = stored(manifest, bytes(data), layer.name, layer.outputs, layer.inputs, layer.block_size)
        weight = int4.dequantise(old) + adapter[f"{layer.name}.B"] @ adapter[f"{layer.name}.A"]
        made = int4.quantise(weight.astype(np.float32), layer.block_size)
        for part in ("codes", "scales", "zero_points"):
            start, size = where[f"{layer.name}.{part}"]
            content = getattr(made, part).tobytes()
            assert len(content) == size
            data[start : start + size] = content
    file.write_bytes(data)


def accuracy(folder: Path, adapter: str | None) -> float:
    bundle = Bundle.open(folder, verify=False)
    found = evaluate(open_engine(bundle), AdapterBank(bundle), EXAMPLE / "test.jsonl", adapter, "home-intents")
    return found.accuracy


def disk(folder: Path, adapter_bytes: int) -> int:
    """Graph, weights and a task's adapter."""
    manifest = Bundle.open(folder, verify=False).manifest
    return sum((folder / name).stat().st_size for name in (manifest.main.file, manifest.main.data)) + adapter_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("side", type=Path)
    parser.add_argument("merged", type=Path)
    parser.add_argument("--work", type=Path, default=Path("dist/lora"))
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--rate", type=float, default=4e-3, help="quality.py's for LoRA r=8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("train", "ship", "accuracy", "speed"), nargs="+")
    asked = parser.parse_args()
    stages = asked.only or ("train", "ship", "accuracy", "speed")
    asked.work.mkdir(parents=True, exist_ok=True)
    bundle, floats, file = (
        Bundle.open(asked.side),
        asked.work / "float",
        asked.work / f"lora-{asked.rate:g}.safetensors",
    )
    ways = {"LoRA r=8 at the side": asked.work / "side", "LoRA r=8 merged, 4 bits anew": asked.work / "merged"}
    if "train" in stages:
        if not (floats / "config.json").is_file():
            write_float(bundle, floats)
        print(json.dumps(train(bundle, file, Methods(floats, asked.side, asked.merged), asked.steps, asked.rate)))
    if "ship" in stages:
        adapter = load_file(str(file))
        at_side(copied(asked.merged, asked.side, ways["LoRA r=8 at the side"]), adapter)
        merged_anew(copied(asked.merged, asked.side, ways["LoRA r=8 merged, 4 bits anew"]), adapter)
    vectors = next((asked.side / "adapters").glob("home-intents.onnx_adapter"))
    systems: dict[str, tuple[Path, str | None, int]] = {
        "IA³ at the side": (asked.side, "home-intents", vectors.stat().st_size),
        "IA³ merged": (asked.merged, None, 0),
        "LoRA r=8 at the side": (asked.work / "side", None, file.stat().st_size),
        "LoRA r=8 merged, 4 bits anew": (asked.work / "merged", None, 0),
    }
    rows: dict[str, dict[str, Any]] = {
        name: {"disk_bytes": disk(s[0], s[2]), "adapter_bytes": s[2]} for name, s in systems.items()
    }
    # its graph has the adapter once more, as defaults
    rows["LoRA r=8 at the side"]["disk_bytes"] = disk(asked.merged, file.stat().st_size)
    if "accuracy" in stages:
        for name, (folder, adapter_name, _) in systems.items():
            rows[name]["accuracy"] = accuracy(folder, adapter_name)
            print(name, rows[name]["accuracy"], flush=True)
    if "speed" in stages:
        speeds(systems, rows, asked.rounds)
    print(json.dumps(rows, indent=1))


def speeds(
    systems: Mapping[str, tuple[Path, str | None, int]], rows: Mapping[str, dict[str, Any]], rounds: int
) -> None:
    """In turn, each round begun with another; medians."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    names = list(systems)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            time.sleep(PAUSE)
            folder, adapter, _ = systems[name]
            found[name].append(asdict(measure(folder, adapter, THREADS)))
            print(json.dumps({"system": name, **found[name][-1]}, ensure_ascii=False), flush=True)
    keys = ("peak_anonymous_bytes", "peak_file_bytes", "peak_resident_bytes", "load_seconds")
    for name, runs in found.items():
        for key in (*keys, "prompt_tokens_per_second", "decode_tokens_per_second"):
            values = [run[key] for run in runs]
            rows[name][key] = [statistics.median(values), min(values), max(values)]
        rows[name]["machine"] = runs[0]["machine"]


if __name__ == "__main__":
    main()
