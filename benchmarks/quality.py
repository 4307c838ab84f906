"""Accuracy on real tasks: ours and its rivals on equal terms, cell by cell, with the bytes and the memory that each
costs.

    make demo && qia3 export examples/home-intents/qia3.toml --mode merged --task home-intents --work dist/home-intents.work --output dist/home-merged
    python benchmarks/quality.py --n 64 --seeds 0 1 2                    # the core: four tasks, all methods
    python benchmarks/quality.py --sweep --tasks intent hotels           # learning rates, on the development sets
    python benchmarks/quality.py --table                                 # what is known so far, cells that were not run among it

(The second line of the first command makes the merged bundle in the same way as any other; both are only the graphs
that answers are read from.) Every run appends a line to benchmarks/results/quality.jsonl, or quality_sweep.jsonl, and
is not repeated: the grid can be stopped and go on at any time. A training run of one method may give two cells (side
and merged). Methods, data and their splits: quality_methods.py, quality_tasks.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from decode_models import write_float
from quality_methods import Cell, Methods
from quality_tasks import BY_NAME, CORE, Split, load

from qia3.runtime.bench import machine

RESULTS = Path(__file__).parent / "results"
STEPS = {16: 32, 64: 64, 256: 128}
# by --sweep (benchmarks/LOG.md); None: nothing is trained
RATES: dict[str, float | None] = {
    "zero-shot": None,
    "zero-shot-int4": None,
    "in-context-16": None,
    "qia3-int4": 4e-2,
    "lora-r8": 4e-3,
    "ia3-float32": 4e-2,
    "lora-r1": 2e-2,
    "qia3-nf4": 4e-2,
    "lora-r8-nf4": 4e-3,
    "full": 5e-5,
    "blocks-int4": 1e-2,
    "qia3-int4-values8": 4e-2,
    "qia3-int4-losses": 4e-2,
    "lora-r8-losses": 4e-3,
    "qia3-int4-unseen": None,
    "qia3-int4-started": 4e-2,
}
SWEEP = {
    "qia3-int4": (5e-3, 1e-2, 2e-2, 4e-2, 8e-2),
    "lora-r8": (1e-3, 2e-3, 4e-3, 8e-3),
    "lora-r1": (4e-3, 1e-2, 2e-2),
    "full": (5e-5, 1e-4),
    "qia3-int4-losses": (1e-2, 2e-2, 4e-2, 8e-2),
    "lora-r8-losses": (2e-3, 4e-3),
    "qia3-int4-started": (1e-2, 2e-2, 4e-2),
    "blocks-int4": (5e-3, 1e-2, 2e-2),
}
EXTRA = (
    "blocks-int4",
    "qia3-int4-values8",
    "qia3-int4-losses",
    "lora-r8-losses",
    "qia3-int4-unseen",
    "qia3-int4-started",
)  # asked for by name
SEEDLESS = ("zero-shot", "zero-shot-int4", "qia3-int4-unseen")
PAIRS = (
    ("IA³ merged into 4 bits, against LoRA r=8 on float32", "qia3-int4-merged", "lora-r8"),
    ("IA³ merged into 4 bits, against the same vectors unmerged", "qia3-int4-merged", "qia3-int4-side"),
    ("LoRA r=8 merged into NF4, against the same unmerged", "lora-r8-nf4-merged", "lora-r8-nf4"),
    ("IA³ merged into 4 bits, against LoRA r=8 merged into NF4", "qia3-int4-merged", "lora-r8-nf4-merged"),
    ("IA³ on 4 bits, against IA³ on float32", "qia3-int4-side", "ia3-float32"),
    ("LoRA r=8 on NF4, against LoRA r=8 on float32", "lora-r8-nf4", "lora-r8"),
    ("IA³ on float32, against LoRA r=8 on float32", "ia3-float32", "lora-r8"),
    ("IA³ on float32, against LoRA r=1 on float32", "ia3-float32", "lora-r1"),
    ("IA³ on NF4, against LoRA r=8 on NF4", "qia3-nf4", "lora-r8-nf4"),
    ("IA³ on 4 bits with values at 8, against without", "qia3-int4-values8", "qia3-int4-side"),
    ("full fine-tuning, against LoRA r=8", "full", "lora-r8"),
    ("IA³ on 4 bits with T-Few's losses, against without", "qia3-int4-losses", "qia3-int4-side"),
    (
        "IA³ on 4 bits with T-Few's losses, started from other tasks, against from ones",
        "qia3-int4-started",
        "qia3-int4-losses",
    ),
    ("LoRA r=8 on float32 with T-Few's losses, against without", "lora-r8-losses", "lora-r8"),
    (
        "IA³ merged into 4 bits, with T-Few's losses, against LoRA r=8 on float32 with the same",
        "qia3-int4-losses-merged",
        "lora-r8-losses",
    ),
    (
        "IA³ merged into 4 bits, with T-Few's losses, against LoRA r=8 on float32 without",
        "qia3-int4-losses-merged",
        "lora-r8",
    ),
)
VARIANTS = (
    "zero-shot",
    "zero-shot-int4",
    "in-context-16",
    "ia3-float32",
    "qia3-int4-side",
    "qia3-int4-merged",
    "qia3-nf4",
    "lora-r1",
    "lora-r8",
    "lora-r8-nf4",
    "lora-r8-nf4-merged",
    "full",
    "blocks-int4",
    "qia3-int4-values8",
    "qia3-int4-losses",
    "qia3-int4-losses-sum",
    "qia3-int4-losses-side",
    "qia3-int4-losses-merged",
    "lora-r8-losses",
    "lora-r8-losses-sum",
    "qia3-int4-unseen",
    "qia3-int4-started",
)


def runs(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is to be run, in order: all methods on one task and seed before the next."""
    for n, seed, task, method in product(asked.n, asked.seeds, asked.tasks, asked.methods):
        given = RATES[method]
        for rate in SWEEP.get(method, ()) if asked.sweep else (given,):
            if not (method in SEEDLESS and seed != asked.seeds[0]):
                yield {"task": task, "n": n, "seed": seed, "method": method, "steps": STEPS[n], "rate": rate}


def key(row: dict[str, Any]) -> str:
    trained = RATES[row["method"]] is not None
    return json.dumps(
        [
            row[k]
            for k in ("task", "method", *(("n", "steps", "rate") if trained else ()), "seed")
            if k != "seed" or not free(row)
        ]
    )


def free(row: dict[str, Any]) -> bool:
    """Whether a run is the same for every seed."""
    return row["method"] in SEEDLESS


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def measure(
    methods: Methods, row: dict[str, Any], development: bool, split: Callable[[], Split] | None = None
) -> dict[str, Any]:
    """One run: what is to be recorded of it. `split`: where a task's examples come from, if not from quality_tasks.py."""
    cell = Cell(
        split() if split else load(row["task"]), row["n"], row["seed"], row["steps"], row["rate"] or 0.0, development
    )
    started = time.perf_counter()
    found = methods.run(row["method"], cell)
    return row | {
        "trained_on": min(row["n"], len(cell.split.pool)),
        "asked": len(cell.asked),
        "accuracy": found.accuracy,
        "bytes": found.bytes,
        "training": None if found.training is None else asdict(found.training),
        "seconds": round(time.perf_counter() - started, 1),
        "torch": torch.__version__,
        "machine": machine(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Median and quartiles over seeds, by task of the core and number of examples; the mean of the medians; then what
    differs from what.
    """
    lines = []
    rows = [row for row in rows if row["task"] in CORE]
    for n in sorted({row["n"] for row in rows}):
        head = ["method", *CORE, "mean", "bytes a task", "peak MiB"]
        lines += [f"\n{n} examples\n", f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
        for variant in VARIANTS:
            of_variant = [
                row for row in rows if variant in row["accuracy"] and (row["n"] == n or RATES[row["method"]] is None)
            ]
            by_task = [[100 * row["accuracy"][variant] for row in of_variant if row["task"] == t] for t in CORE]
            cells = [spread(found) for found in by_task]
            mean = f"{statistics.mean(map(statistics.median, by_task)):.1f}" if all(by_task) else "not run"
            size = f"{max(row['bytes'][variant] for row in of_variant):,}" if of_variant else ""
            memory = (
                f"{max(r['training']['peak_mib'] for r in of_variant):,}"
                if of_variant and of_variant[0]["training"]
                else ""
            )
            lines.append(f"| {variant} | {' | '.join(cells)} | {mean} | {size} | {memory} |")
        lines += ["\n| | points, mean of pairs of one task and seed | standard error | pairs |", "|---|---:|---:|---:|"]
        lines += [differing(rows, n, ours, theirs, what) for what, ours, theirs in PAIRS]
    return "\n".join(lines)


def differing(rows: list[dict[str, Any]], n: int, ours: str, theirs: str, what: str) -> str:
    """How far two variants are apart where both were trained on the same examples."""
    found = [
        {(r["task"], r["seed"]): 100 * r["accuracy"][variant] for r in rows if r["n"] == n and variant in r["accuracy"]}
        for variant in (ours, theirs)
    ]
    apart = [found[0][pair] - found[1][pair] for pair in found[0].keys() & found[1].keys()]
    if len(apart) < 2:
        return f"| {what} | not run | | {len(apart)} |"
    return (
        f"| {what} | {statistics.mean(apart):+.1f} | {statistics.stdev(apart) / len(apart) ** 0.5:.1f} | {len(apart)} |"
    )


def spread(found: list[float]) -> str:
    if not found:
        return "not run"
    if len(found) < 3:
        return f"{statistics.median(found):.1f} ({len(found)} run)"
    low, _, high = statistics.quantiles(found, n=4, method="inclusive")
    return f"{statistics.median(found):.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--n", type=int, nargs="+", default=[64], choices=sorted(STEPS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", default=list(CORE), choices=sorted(BY_NAME))
    parser.add_argument("--methods", nargs="+", default=[m for m in RATES if m not in EXTRA], choices=sorted(RATES))
    parser.add_argument("--sweep", action="store_true", help="learning rates, scored on the development sets, seed 100")
    parser.add_argument("--table", action="store_true", help="print what was found so far")
    parser.add_argument(
        "--float", type=Path, default=Path("dist/quality/float"), help="the float32 model (made if it is not there)"
    )
    parser.add_argument("--bundle", type=Path, default=Path("dist/home-intents"))
    parser.add_argument("--merged", type=Path, default=Path("dist/home-merged"))
    asked = parser.parse_args()
    file = RESULTS / ("quality_sweep.jsonl" if asked.sweep else "quality.jsonl")
    if asked.table:
        print(table(read(file)))
        return
    if asked.sweep:
        asked.seeds, asked.methods = [100], [m for m in asked.methods if m in SWEEP]
    if not (asked.float / "config.json").exists():
        write_float("smollm2", asked.float)
    file.parent.mkdir(exist_ok=True)
    methods, done = Methods(asked.float, asked.bundle, asked.merged), {key(row) for row in read(file)}
    for row in runs(asked):
        if key(row) in done:
            continue
        found = measure(methods, row, asked.sweep)
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(found) + "\n")
        print(
            {k: found[k] for k in ("task", "n", "seed", "method", "rate", "accuracy", "training", "seconds")},
            flush=True,
        )


if __name__ == "__main__":
    main()
