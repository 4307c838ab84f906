"""What it saves to run once what a task's prompts begin with, and to ask for the label alone: questions per second, one
at a time, with `prepare` and without, with every choice's probability and without.

    python benchmarks/beginnings.py dist/home-intents examples/home-intents/test.jsonl --adapter home-intents --rounds 5

Two engines over one bundle, asked the same questions in turn; medians, and the median of the ratios. How many
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
from qia3.runtime.answer import classify, label, prepare, prompt_of, task_of
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
    plain, begun_engine = Engine(bundle, asked.threads), Engine(bundle, asked.threads)
    vectors, task = AdapterBank(bundle).vectors(asked.adapter), task_of(plain, asked.adapter)
    prepare(begun_engine, task, vectors)
    ways = {
        "whole prompts": lambda e: classify(plain, task, vectors, e.text, e.choices).label,
        "prepared": lambda e: classify(begun_engine, task, vectors, e.text, e.choices).label,
        "prepared, the label alone": lambda e: label(begun_engine, task, vectors, e.text, e.choices),
    }
    examples = read_examples(asked.file, task.kind, task.choices or ())[:QUESTIONS]
    tokens = statistics.median(len(prompt_of(plain, task, e.text)) for e in examples)
    begun = [len(b.tokens) for b in begun_engine.begun]
    found: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, list[str]] = {}
    for round_ in range(asked.rounds + 1):
        for name, ask in ways.items():
            start = time.perf_counter()
            answers[name] = [ask(e) for e in examples]
            if round_:
                found[name].append(len(examples) / (time.perf_counter() - start))
    same = sum(len(set(each)) == 1 for each in zip(*answers.values(), strict=True))
    threads = plain.threads
    print(
        f"{machine()}, {threads} threads, {len(examples)} questions of {tokens:g} tokens (median), {begun} of them shared"
    )
    for name, values in found.items():
        ratio = statistics.median(v / w for v, w in zip(values, found["whole prompts"], strict=True))
        print(
            f"{name:26} {statistics.median(values):6.2f} questions/s ({min(values):.2f} to {max(values):.2f}), {ratio:.2f} of whole prompts"
        )
    print(f"{same} of {len(examples)} answers are the same")


if __name__ == "__main__":
    main()
