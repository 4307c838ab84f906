"""The tasks of benchmarks/quality.py: real sentences with labels, split by hash, so that no sentence is ever on two sides.

sentiment     vaderSentiment 3.3.2 (MIT): sentences of product reviews, by the sign of their mean score; a score of zero is left out
the others    bigbench 1.0.0 (Apache-2.0): JSON tasks with choices, more than 400 examples, short enough for a small model

A task's examples, each text once, stand in the order of the SHA-256 of their text. The first 200 are the test set, the next 100 are for choosing
learning rates, and training sets are drawn from the rest, so they do not depend on what else is drawn, and no choice was made on the test set.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from sdists import members
from texts import REVIEWS, rows

from qia3.runtime.examples import Example

BIGBENCH = "bigbench==1.0.0"
SHA256 = "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2"
TEST, DEVELOPMENT = 200, 100


@dataclass(frozen=True)
class RealTask:
    """`source`: the folder in bigbench, or None for the reviews."""

    name: str
    source: str | None
    prompt: str


TASKS = (
    RealTask("sentiment", None, "Is this sentence of a product review positive or negative?\n{text}\nIt is"),
    RealTask("intent", "intent_recognition", "Name the intent of the utterance.\n{text}\nIntent:"),
    RealTask("hotels", "multiemo/hotels_sentence_en", "Is this opinion positive, negative, neutral or ambivalent?\n{text}\nIt is"),
    RealTask("units", "unit_conversion/unit_identification", "Complete the sentence.\n{text}"),
    RealTask("implicatures", "implicatures", "Does Speaker 2's answer mean yes or no?\n{text}\nIt means"),
    RealTask("metaphors", "metaphor_boolean", "Is the second sentence a correct paraphrase of the first?\n{text}\nAnswer:"),
    RealTask("sports", "sports_understanding", "Is this statement plausible or implausible?\n{text}\nIt is"),
)
CORE = ("sentiment", "intent", "hotels", "implicatures")
BY_NAME = {task.name: task for task in TASKS}


@dataclass(frozen=True)
class Split:
    """`choices` None: every example brings its own."""

    task: RealTask
    test: tuple[Example, ...]
    development: tuple[Example, ...]
    pool: tuple[Example, ...]
    choices: tuple[str, ...] | None

    def draw(self, n: int, seed: int) -> tuple[Example, ...]:
        """A training set of n, or of all that there is."""
        return tuple(random.Random(f"{self.task.name}/{seed}").sample(self.pool, min(n, len(self.pool))))


@cache
def load(name: str) -> Split:
    """A task's examples, split."""
    task = BY_NAME[name]
    found = {e.text: e for e in (_reviews() if task.source is None else _bigbench(task.source))}
    examples = sorted(found.values(), key=lambda e: hashlib.sha256(e.text.encode()).digest())
    choices = {e.choices for e in examples}
    fixed = choices.pop() if len(choices) == 1 else None
    test, development = TEST, TEST + DEVELOPMENT
    return Split(task, tuple(examples[:test]), tuple(examples[test:development]), tuple(examples[development:]), fixed)


def _reviews() -> Iterator[Example]:
    for _, score, sentence in rows(REVIEWS):
        if float(score):
            yield Example(sentence.strip(), "positive" if float(score) > 0 else "negative", ("negative", "positive"))


def _bigbench(source: str) -> Iterator[Example]:
    every = [f"bigbench/benchmark_tasks/{task.source}/task.json" for task in TASKS if task.source]
    place = dict(zip(every, members(BIGBENCH, SHA256, every), strict=True))[f"bigbench/benchmark_tasks/{source}/task.json"]
    for example in json.loads(place.read_text(encoding="utf-8"))["examples"]:
        scores = example["target_scores"]
        right = max(scores, key=scores.get)
        yield Example(example["input"].strip(), right, tuple(sorted(scores)))
