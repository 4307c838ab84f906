"""What it costs that every row of a batch has its own adapter: eight rows with one shared adapter beside eight rows
with eight.

    python benchmarks/rows.py dist/home-intents --rows 8 --rounds 15
    python benchmarks/rows.py dist/home-intents --counts 1 2 4 8 --rounds 5

One engine, both ways in turn, medians and the median of the ratios. The vectors of the mixed batch are the bundle's
adapters in turn, and the base (ones); nothing is switched between steps, as in a server whose rows stay for a while.

`--counts`: steps of so many rows instead, after prompts of 128 tokens, which run one by one. From both follows what a
server on this machine can reach at most with N requests at once: N 64 / (N prompt + 64 step of N rows).
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
from qia3.runtime.slots import Slots

PROMPT, NEW = 64, 32
ASKED, ANSWERED = 128, 64  # tokens of a request and its answer, as in serving.py


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--counts", type=int, nargs="+", help="time steps of these numbers of rows instead")
    asked = parser.parse_args()
    bundle = Bundle.open(asked.bundle)
    engine, bank = Engine(bundle), AdapterBank(bundle)
    if asked.counts:
        by_count(engine, bank, asked.counts, asked.rounds)
        return
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


def by_count(engine: Engine, bank: AdapterBank, counts: list[int], rounds: int) -> None:
    names = [*engine.bundle.adapters, None]
    prompts: list[float] = []
    steps: dict[int, list[float]] = {count: [] for count in counts}
    for round_ in range(rounds + 1):
        for count in counts:
            slots = Slots(engine, count, ASKED + ANSWERED)
            for i in range(count):
                vectors = bank.vectors(names[i % len(names)])
                start = time.perf_counter()
                _, cache = engine.prefill([[100 + i] * ASKED], vectors)
                if round_:
                    prompts.append(time.perf_counter() - start)
                slots.join(cache, vectors)
            start = time.perf_counter()
            for _ in range(ANSWERED):
                slots.step([100] * count)
            if round_:
                steps[count].append((time.perf_counter() - start) / ANSWERED)
    prompt = statistics.median(prompts)
    print(f"{machine()}, {engine.threads} threads, {rounds} rounds; a prompt of {ASKED} tokens {prompt * 1e3:.0f} ms")
    one = statistics.median(steps[counts[0]])
    alone = ANSWERED / (prompt + ANSWERED * one)
    for count, times in steps.items():
        step = statistics.median(times)
        whole = count * ANSWERED / (count * prompt + ANSWERED * step)
        print(
            f"{count} rows: {step * 1e3:6.2f} ms a step ({min(times) * 1e3:.2f} to {max(times) * 1e3:.2f}), "
            f"{count / step:5.0f} tokens/s, {count * one / step:.2f} of {counts[0]}; prompts included at most "
            f"{whole:.0f}, {whole / alone:.2f}"
        )


if __name__ == "__main__":
    main()
