"""What it saves to run once what a task's prompts begin with: questions a second, one at a time, with `prepare` and
without.

    python benchmarks/beginnings.py dist/home-intents examples/home-intents/test.jsonl --adapter home-intents --rounds 5

Two engines over one bundle, both asked the same questions in turn; medians, and the median of the ratios. How many
answers are the same is printed as well: at accuracy_level 4 each position's activations are rounded by themselves, so
there is little that could make them differ.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from qia3.bundle.opened import Bundle
from qia3.examples import read_examples
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import classify, prepare, prompt_of, task_of
from qia3.runtime.bench import machine
from qia3.runtime.engine import Engine

QUESTIONS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    bundle = Bundle.open(asked.bundle)
    ways = {"whole prompts": Engine(bundle, asked.threads), "prepared": Engine(bundle, asked.threads)}
    vectors, task = AdapterBank(bundle).vectors(asked.adapter), task_of(ways["prepared"], asked.adapter)
    prepare(ways["prepared"], task, vectors)
    examples = read_examples(asked.file, task.kind, task.choices or ())[:QUESTIONS]
    tokens = statistics.median(len(prompt_of(ways["prepared"], task, e.text)) for e in examples)
    begun = [len(b.tokens) for b in ways["prepared"].begun]
    found: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, list[str]] = {}
    for round_ in range(asked.rounds + 1):
        for name, engine in ways.items():
            start = time.perf_counter()
            answers[name] = [classify(engine, task, vectors, e.text, e.choices).label for e in examples]
            if round_:
                found[name].append(len(examples) / (time.perf_counter() - start))
    same = sum(a == b for a, b in zip(*answers.values(), strict=True))
    threads = ways["prepared"].threads
    print(
        f"{machine()}, {threads} threads, {len(examples)} questions of {tokens:g} tokens (median), {begun} of them shared"
    )
    for name, values in found.items():
        ratio = statistics.median(v / w for v, w in zip(values, found["whole prompts"], strict=True))
        print(
            f"{name:14} {statistics.median(values):6.2f} questions/s ({min(values):.2f} to {max(values):.2f}), {ratio:.2f} of whole prompts"
        )
    print(f"{same} of {len(examples)} answers are the same")


if __name__ == "__main__":
    main()
