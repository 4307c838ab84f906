"""What drafts of the next tokens would save a task that writes, before anything is built: an n-gram that stood in the
prompt or in the text so far proposes what followed it there (prompt lookup), one run of the graph checks all of it.

    python benchmarks/drafts.py dist/home-intents examples/home-intents/commands-test.jsonl --adapter home-commands

Three parts. What k tokens after a past cost in one row beside one (in turn, processor time, medians of ratios). The
likeliest texts of the task, as they are today. And the runs that each would have taken with drafts, counted, which is
exact: a draft is kept as far as it is what the model says anyway. The speed is the runs at their cost; to give logits
at every drafted position would cost more (today's graph has the last one's), so this is the most that can be had.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from qia3.bundle.opened import Bundle
from qia3.examples import read_examples
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import prepare, prompt_of, task_of
from qia3.runtime.bench import machine
from qia3.runtime.engine import Engine
from qia3.runtime.generate import generate

PAST, MOST = 80, 8  # tokens before, tokens in one run
LONGEST = 3  # of the n-grams that are looked for, the longest first


def costs(engine: Engine, adapter: str, rounds: int) -> list[float]:
    """[k - 1]: what k tokens in one row cost, of what one does."""
    vectors = AdapterBank(engine.bundle).vectors(adapter)
    _, cache = engine.prefill([[100] * PAST], vectors, room=MOST)
    found: list[list[float]] = [[] for _ in range(MOST)]
    for _ in range(rounds):
        for count, times in enumerate(found, 1):
            start = time.process_time()
            engine.extend([100] * count, cache, vectors)
            times.append(time.process_time() - start)
            cache.buffers.newest = cache.lengths  # back to the past, in place
    return [statistics.median(t / one for t, one in zip(times, found[0], strict=True)) for times in found]


def draft(before: Sequence[int], least: int, count: int) -> Sequence[int]:
    """What followed the last n-gram of at least `least` tokens where it stood before, latest first."""
    for n in range(LONGEST, least - 1, -1):
        for start in range(len(before) - n - 1, -1, -1):
            if before[start : start + n] == before[-n:]:
                return before[start + n : start + n + count]
    return []


def runs(prompt: Sequence[int], text: Sequence[int], least: int, count: int) -> list[int]:
    """Tokens that go into each run after the prompt's, which gives the first token."""
    done, found = 1, []
    while done < len(text):
        drafted = draft([*prompt, *text[:done]], least, min(count, len(text) - done - 1))
        found.append(1 + len(drafted))
        done += 1 + sum(itertools.takewhile(bool, (d == t for d, t in zip(drafted, text[done:], strict=False))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--examples", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    engine = Engine(Bundle.open(asked.bundle), asked.threads)
    vectors, task = AdapterBank(engine.bundle).vectors(asked.adapter), task_of(engine, asked.adapter)
    cost = costs(engine, asked.adapter, asked.rounds)
    print(f"{machine()}, {engine.threads} threads; k tokens in one row after {PAST}, of what one costs:")
    print(", ".join(f"{count}: {value:.2f}" for count, value in enumerate(cost, 1)))
    prepare(engine, task, vectors)
    stops, texts = engine.bundle.stop_tokens, []
    for example in read_examples(asked.file, task.kind, task.choices or ())[: asked.examples]:
        prompt = prompt_of(engine, task, example.text)
        texts.append((prompt, [*generate(engine, prompt, vectors, task.max_new_tokens, stops), stops[0]]))
    plain = sum(len(text) - 1 for _, text in texts)
    print(f"{len(texts)} texts, {plain} runs of one token after their prompts; with drafts at most:")
    for least, count in itertools.product((1, 2), (1, 2, 4, 7)):
        each = [size for prompt, text in texts for size in runs(prompt, text, least, count)]
        speed = plain / sum(cost[size - 1] for size in each)
        print(f"n-grams of {least} to {LONGEST}, drafts of {count}: {len(each)} runs, {speed:.2f} of today's speed")


if __name__ == "__main__":
    main()
