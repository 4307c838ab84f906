"""What it costs that every row of a batch has its own adapter: eight rows with one shared adapter beside eight rows
with eight.

    python benchmarks/rows.py dist/home-intents --rows 8 --rounds 15

One engine, both ways in turn, medians and the median of the ratios. The vectors of the mixed batch are the bundle's
adapters in turn, and the base (ones); nothing is switched between steps, as in a server whose rows stay for a while.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from qia3.bundle.opened import Bundle
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.bench import machine
from qia3.runtime.engine import Engine

PROMPT, NEW = 64, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    bundle = Bundle.open(asked.bundle)
    engine, bank = Engine(bundle), AdapterBank(bundle)
    names = [*bundle.adapters, None]
    ways = {
        "no adapter fed": {},
        "one adapter for all": bank.vectors(bundle.adapters[0]),
        "an adapter each": bank.rows([names[i % len(names)] for i in range(asked.rows)]),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(asked.rounds + 1):
        for name, vectors in ways.items():
            _, cache = engine.prefill([[100] * PROMPT] * asked.rows, vectors, room=NEW)
            start = time.perf_counter()
            for _ in range(NEW):
                _, cache = engine.step([100] * asked.rows, cache, vectors)
            if round_:
                found[name].append(asked.rows * NEW / (time.perf_counter() - start))
    print(f"{machine()}, {engine.threads} threads, {asked.rows} rows, {asked.rounds} rounds")
    shared = found["one adapter for all"]
    for name, values in found.items():
        ratio = statistics.median(v / s for v, s in zip(values, shared, strict=True))
        print(
            f"{name:22} {statistics.median(values):7.1f} tokens/s ({min(values):.1f} to {max(values):.1f}), {ratio:.3f} of one adapter for all"
        )


if __name__ == "__main__":
    main()
