"""Held-out accuracy of one task over seeds and learning rates, on ONNX Runtime, without and with its adapter.

    python benchmarks/seeds.py examples/home-intents/qia3.toml dist/home-intents --task home-intents --seeds 0 1 2

The base is loaded and the graph opened once; every run trains on that base and is scored through the graph of the
bundle that was built from the same file, so what is scored is what would ship. One JSON line a run, then medians. Runs
that were finished before are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

from qia3.batching.tables import NAMES
from qia3.build import load, plan_jobs
from qia3.bundle.opened import Bundle
from qia3.config import read_build
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.bench import machine
from qia3.runtime.engine import Engine
from qia3.runtime.evaluate import evaluate
from qia3.train.task import train_task


class Given(AdapterBank):
    """Vectors that were just trained, in place of a bundle's own."""

    def __init__(self, bundle: Bundle, vectors: dict) -> None:
        super().__init__(bundle)
        self.given = {name: vector.reshape(1, 1, -1) for name, vector in vectors.items()}

    def vectors(self, name: str | None) -> dict:
        return self.given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates (default: the build file's)")
    parser.add_argument("--steps", type=int, help="optimiser updates (default: the build file's)")
    parser.add_argument("--losses", nargs="+", choices=NAMES, help="what is trained (default: the build file's)")
    parser.add_argument("--work", type=Path, default=Path("dist/seeds.work"))
    asked = parser.parse_args()

    plan = read_build(asked.file, **{"train.steps": asked.steps})
    job = next(j for j in plan_jobs(plan) if j.task.name == asked.task)
    task = job.task
    adapted = load(plan)
    base, scaled = adapted.base, adapted.scaled
    engine = Engine(Bundle.open(asked.bundle))
    assert engine.bundle.fingerprint == base.fingerprint, "the bundle is of another base"
    before = evaluate(engine, AdapterBank(engine.bundle), task.test, None, task.name)
    print(
        json.dumps({"machine": machine(), "task": task.name, "n": before.n, "no_adapter": round(before.accuracy, 4)}),
        flush=True,
    )

    rates = asked.rates or [job.settings.learning_rate]
    found: dict[float, list[float]] = {rate: [] for rate in rates}
    for rate, seed in product(rates, asked.seeds):
        losses = tuple(asked.losses or job.settings.losses)
        settings = job.settings.model_copy(update={"learning_rate": rate, "losses": losses})
        folder = asked.work / f"{task.name}-{settings.steps}-{rate:g}-{'+'.join(losses)}-{seed}"
        trained = train_task(base, scaled, replace(job, settings=settings, seed=seed), folder)
        after = evaluate(engine, Given(engine.bundle, trained.vectors), task.test, task.name)
        found[rate].append(after.accuracy)
        row = {
            "rate": rate,
            "losses": losses,
            "steps": settings.steps,
            "seed": seed,
            "accuracy": round(after.accuracy, 4),
            "f1": after.f1,
        }
        print(
            json.dumps(row | {"loss": round(trained.record.final_loss, 4), "seconds": trained.record.seconds}),
            flush=True,
        )
    for rate, values in found.items():
        print(
            f"rate {rate:g}: median {statistics.median(values):.4f}, {min(values):.4f} to {max(values):.4f}, {len(values)} seeds"
        )


if __name__ == "__main__":
    sys.exit(main())
