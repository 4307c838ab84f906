"""Where an encoder-decoder's time and memory go, operator by operator, as ONNX Runtime's own profiler has it.

    python benchmarks/operators.py dist/bench/flan-t5-base/merged-128-wo8 --threads 2

Three parts: the encoder over a source of --source tokens, the decoder's first run (which makes the keys and values of
the source), and a step, the median over --new of them after a source of 128. A product is told by its sizes K x N, for
what a layer costs is in those. Recording costs a microsecond or two a node, so the sum of the nodes is beside what the
same run takes unrecorded. Then what the process held (RssAnon) after each thing that it did.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from seq2seq_worker import resident

from qia3.bundle.opened import Bundle
from qia3.runtime import session as sessions
from qia3.runtime.load import open_engine
from qia3.runtime.seq2seq import Seq2Seq

PROFILED = sessions.options  # what the runtime asks for
STEP_SOURCE = 128


def recording(folder: Path) -> Any:
    def options(threads: int) -> ort.SessionOptions:
        asked = PROFILED(threads)
        asked.enable_profiling, asked.profile_file_prefix = True, str(folder / f"{len(list(folder.iterdir()))}_")
        return asked

    return options


def opened(folder: Path, threads: int) -> Seq2Seq:
    engine = open_engine(Bundle.open(folder, verify=False), threads)
    if not isinstance(engine, Seq2Seq):
        raise SystemExit(f"{folder} is no encoder-decoder's bundle")
    return engine


def runs(session: ort.InferenceSession) -> list[list[dict[str, Any]]]:
    """The nodes of each run of a session, in the order of the runs."""
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spans = [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run"]
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    return [[n for n in nodes if start <= n["ts"] <= end] for start, end in sorted(spans)]


def kind(node: dict[str, Any]) -> str:
    """An operator and, of a product, its sizes."""
    name = str(node["args"]["op_name"])
    if not name.startswith("MatMul"):
        return name
    (x,), (y,) = (node["args"][of][0].values() for of in ("input_type_shape", "output_type_shape"))
    return f"{name} {x[-1]} x {y[-1]}" + (", of no rows" if 0 in x else "")


def table(recorded: list[list[dict[str, Any]]], title: str, plain: float) -> str:
    """Medians over runs of one sort, in microseconds. `plain`: seconds of such a run unrecorded."""
    costs: dict[str, list[list[float]]] = defaultdict(lambda: [[] for _ in recorded])
    for i, nodes in enumerate(recorded):
        for node in nodes:
            costs[kind(node)][i].append(node["dur"])
    rows = [(statistics.median(map(sum, found)), len(found[0]), name) for name, found in costs.items()]
    whole = sum(row[0] for row in rows)
    lines = [
        f"\n{title}: {len(recorded[0])} nodes, {whole / 1e3:.2f} ms in them; unrecorded {plain * 1e3:.2f} ms\n",
        "| operator | nodes | us | share |",
        "|---|---:|---:|---:|",
    ]
    lines += [f"| {name} | {count} | {us:.0f} | {us / whole:.1%} |" for us, count, name in sorted(rows, reverse=True)]
    return "\n".join(lines)


def answered(engine: Seq2Seq, source: int, new: int) -> tuple[float, list[float]]:
    """Seconds of the beginning, and of each step."""
    ids = np.random.default_rng(source).integers(3, 32000, source).tolist()
    begun = time.perf_counter()
    logits, cache = engine.prefill([ids], {}, room=new)
    first, steps = time.perf_counter() - begun, []
    for _ in range(new):
        begun = time.perf_counter()
        logits, cache = engine.step([int(logits[0].argmax())], cache, {})
        steps.append(time.perf_counter() - begun)
    return first, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--source", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    asked = parser.parse_args()
    held = {"libraries": resident()}
    engine = opened(asked.bundle, asked.threads)
    held["both sessions"] = resident()
    first = min(answered(engine, asked.source, 0)[0] for _ in range(3))
    held[f"a source of {asked.source}"] = resident()
    steps = answered(engine, STEP_SOURCE, asked.new)[1]
    held[f"{asked.new} tokens"] = resident()
    with tempfile.TemporaryDirectory() as folder:
        sessions.options = recording(Path(folder))
        recorded = opened(asked.bundle, asked.threads)
        sessions.options = PROFILED
        answered(recorded, STEP_SOURCE, asked.new)
        for _ in range(3):
            answered(recorded, asked.source, 0)
        encoder, decoder = runs(recorded.encoder.session), runs(recorded.session)
    print(table(encoder[-3:], f"encoder, {asked.source} tokens", first))
    print(table(decoder[-3:], f"decoder's first run, {asked.source} tokens of source", first))
    print(table(decoder[1 : 1 + asked.new], "a step", statistics.median(steps)))
    print(
        "\n"
        + "\n".join(
            f"{what}: {r['anonymous_bytes'] / 2**20:.0f} MiB held, {r['file_bytes'] / 2**20:.0f} mapped"
            for what, r in held.items()
        )
    )


if __name__ == "__main__":
    main()
