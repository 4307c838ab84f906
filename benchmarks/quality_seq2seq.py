r"""Accuracy of adapters on a small T5 that somebody trained (small_t5.py), on tasks that it never saw: ours and its rivals
on equal terms.

    python benchmarks/small_t5.py --output dist/small-t5
    qia3 build examples/small-t5-commands/qia3.toml
    qia3 export examples/small-t5-commands/qia3.toml --mode merged --task assignments \
        --work dist/small-t5-commands.work --output dist/small-t5-commands-merged
    python benchmarks/quality_seq2seq.py --sweep                     # learning rates, on the development sets
    python benchmarks/quality_seq2seq.py --seeds 0 1 2               # all tasks and methods
    python benchmarks/quality_seq2seq.py --table

Five tasks of unseen_tasks.py are generated, and right where they are so character by character. Two are ranked, with real
sentences that nobody made of templates: `intent` (bigbench 1.0.0, seven intents) and `home` (the requests of
examples/home-intents, eight topics). Every run appends a line to benchmarks/results/quality_seq2seq.jsonl and is not
repeated. Training is that of quality_methods.py: AdamW, a rise over 10 steps and a fall to zero, products in bfloat16; the
right answer alone where a task generates, T-Few's three losses where it ranks, for every method alike.

A method's rate is the one that is best in the mean of SWEPT's development lines at seed 100. The grid is of CORE, tasks
of which adapters had more than 5 % of development lines before any test line was asked, so that no two noughts pass for
agreement; the others are asked for by name. What differs from what is paired by task and seed, its interval of 95 % by
Student's t over those pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from quality import measure, read
from quality_pairs import BY_NAME, Pairs

RESULTS = Path(__file__).parent / "results"
STEPS = {16: 100, 64: 200}
CORE = ("slashed dates", "assignments", "quantities")
SWEPT = CORE[:1]
RATES: dict[str, float | None] = {
    "zero-shot": None,
    "zero-shot-int4": None,
    "ia3-float32": 8e-2,
    "qia3-int4": 1.5e-1,
    "lora-r8": 4e-3,
}
SWEEP = {
    "ia3-float32": (4e-2, 8e-2, 1.5e-1),
    "qia3-int4": (8e-2, 1.5e-1, 3e-1),
    "lora-r8": (2e-3, 4e-3, 8e-3),
}
# Student's t of 95 %, two sides, of 1 to 8 degrees of freedom
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31)
SHOWN = {
    "zero-shot": "no adapter, float32",
    "zero-shot-int4": "no adapter, int4",
    "ia3-float32": "IA³ (PEFT), float32",
    "qia3-int4-side": "IA³, ours, int4, side",
    "qia3-int4-merged": "IA³, ours, int4, merged",
    "lora-r8": "LoRA r=8, float32",
}
PAIRS = (
    ("IA³ merged into 4 bits, against LoRA r=8 on float32", "qia3-int4-merged", "lora-r8"),
    ("IA³ on float32, against LoRA r=8 on float32", "ia3-float32", "lora-r8"),
    ("IA³ on 4 bits, against IA³ on float32", "qia3-int4-side", "ia3-float32"),
    ("IA³ merged into 4 bits, against the same vectors unmerged", "qia3-int4-merged", "qia3-int4-side"),
)


def runs(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for n, seed, task, method in product(asked.n, asked.seeds, asked.tasks, asked.methods):
        rates = SWEEP.get(method, ()) if asked.sweep else (RATES[method],)
        for rate in rates:
            if rate is not None or seed == asked.seeds[0]:
                yield {"task": task, "n": n, "seed": seed, "method": method, "steps": STEPS[n], "rate": rate}


def key(row: dict[str, Any]) -> str:
    trained = RATES[row["method"]] is not None
    return json.dumps([row[k] for k in ("task", "method", *(("n", "steps", "rate", "seed") if trained else ()))])


def table(rows: list[dict[str, Any]]) -> str:
    """Median and range over seeds, by task and number of examples; the mean of the medians; what differs from what."""
    lines = []
    tasks = [task for task in BY_NAME if any(row["task"] == task for row in rows)]
    for n in sorted({row["n"] for row in rows}):
        head = [f"{n} examples", *tasks, "mean", "bytes a task"]
        lines += [f"\n| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
        for variant, name in SHOWN.items():
            found = [r for r in rows if variant in r["accuracy"] and (r["n"] == n or RATES[r["method"]] is None)]
            by_task = [[100 * r["accuracy"][variant] for r in found if r["task"] == task] for task in tasks]
            mean = f"{statistics.mean(map(statistics.median, by_task)):.1f}" if all(by_task) else "not run"
            size = f"{max(r['bytes'][variant] for r in found):,}" if found else ""
            lines.append(f"| {name} | {' | '.join(map(_range, by_task))} | {mean} | {size} |")
        lines += [f"\n| points | {' | '.join(tasks)} | mean | 95 % | pairs |", "|---|" + "---:|" * (len(tasks) + 3)]
        lines += [differing(rows, n, tasks, ours, theirs, what) for what, ours, theirs in PAIRS]
    return "\n".join(lines)


def _range(found: list[float]) -> str:
    if len(found) < 2:
        return f"{found[0]:.1f}" if found else "not run"
    return f"{statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})"


def differing(rows: list[dict[str, Any]], n: int, tasks: list[str], ours: str, theirs: str, what: str) -> str:
    """How far two variants are apart where both were trained on the same examples: by task, in the mean, and its interval."""
    found = [
        {(r["task"], r["seed"]): 100 * r["accuracy"][variant] for r in rows if r["n"] == n and variant in r["accuracy"]}
        for variant in (ours, theirs)
    ]
    apart = {pair: found[0][pair] - found[1][pair] for pair in found[0].keys() & found[1].keys()}
    by_task = [[d for (of, _), d in apart.items() if of == task] for task in tasks]
    cells = [f"{statistics.mean(ds):+.1f}" if ds else "not run" for ds in by_task]
    if len(apart) < 2:
        return f"| {what} | {' | '.join(cells)} | not run | | {len(apart)} |"
    mean, error = statistics.mean(apart.values()), statistics.stdev(apart.values()) / len(apart) ** 0.5
    half = T95[min(len(apart) - 1, len(T95)) - 1] * error
    return f"| {what} | {' | '.join(cells)} | {mean:+.1f} | {mean - half:+.1f} to {mean + half:+.1f} | {len(apart)} |"


def sweep_table(rows: list[dict[str, Any]]) -> str:
    """The mean over tasks of each method and rate, by number of examples."""
    lines = ["| method | n | rate | mean | tasks |", "|---|---:|---:|---:|---:|"]
    for method, n in product(SWEEP, sorted({row["n"] for row in rows})):
        for rate in SWEEP[method]:
            found = [r for r in rows if (r["method"], r["n"], r["rate"]) == (method, n, rate)]
            if found:
                mean = statistics.mean(100 * max(r["accuracy"].values()) for r in found)
                lines.append(f"| {method} | {n} | {rate:g} | {mean:.1f} | {len(found)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--n", type=int, nargs="+", default=[64], choices=sorted(STEPS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", default=list(CORE), choices=sorted(BY_NAME))
    parser.add_argument("--methods", nargs="+", default=list(RATES), choices=sorted(RATES))
    parser.add_argument("--sweep", action="store_true", help="learning rates, scored on the development sets, seed 100")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no run after so long")
    parser.add_argument("--table", action="store_true", help="print what was found so far")
    parser.add_argument("--float", type=Path, default=Path("dist/small-t5"))
    parser.add_argument("--bundle", type=Path, default=Path("dist/small-t5-commands"))
    parser.add_argument("--merged", type=Path, default=Path("dist/small-t5-commands-merged"))
    asked = parser.parse_args()
    file = RESULTS / ("quality_seq2seq_sweep.jsonl" if asked.sweep else "quality_seq2seq.jsonl")
    if asked.table:
        print((sweep_table if asked.sweep else table)(read(file)))
        return
    if asked.sweep:
        asked.seeds, asked.methods = [100], [m for m in asked.methods if m in SWEEP]
        asked.tasks = [t for t in asked.tasks if t in SWEPT]
    methods, done = Pairs(asked.float, asked.bundle, asked.merged), {key(row) for row in read(file)}
    begun = time.monotonic()
    for row in runs(asked):
        if key(row) in done:
            continue
        if time.monotonic() - begun > asked.seconds:
            raise SystemExit(3)
        found = measure(methods, row, asked.sweep, BY_NAME[row["task"]])
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(found) + "\n")
        print({k: found[k] for k in ("task", "n", "seed", "method", "rate", "accuracy", "seconds")}, flush=True)


if __name__ == "__main__":
    main()
