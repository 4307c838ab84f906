"""The tasks of benchmarks/quality.py: real sentences with labels, split by hash, so that no sentence is ever on two
sides.

sentiment     vaderSentiment 3.3.2 (MIT): sentences of product reviews, by the sign of their mean score; a score of zero is left out
the others    bigbench 1.0.0 (Apache-2.0): JSON tasks with choices, more than 400 examples, short enough for a small model

A task's examples, each text once, stand in the order of the SHA-256 of their text. The first 200 are the test set, the
next 100 are for choosing learning rates, and training sets are drawn from the rest, so they do not depend on what else
is drawn, and no choice was made on the test set.
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

from qia3.examples import Example

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
    RealTask(
        "hotels",
        "multiemo/hotels_sentence_en",
        "Is this opinion positive, negative, neutral or ambivalent?\n{text}\nIt is",
    ),
    RealTask("units", "unit_conversion/unit_identification", "Complete the sentence.\n{text}"),
    RealTask("implicatures", "implicatures", "Does Speaker 2's answer mean yes or no?\n{text}\nIt means"),
    RealTask(
        "metaphors", "metaphor_boolean", "Is the second sentence a correct paraphrase of the first?\n{text}\nAnswer:"
    ),
    RealTask("sports", "sports_understanding", "Is this statement plausible or implausible?\n{text}\nIt is"),
)
# what vectors may be trained on before a task of CORE: other tasks, none of which is about sentiment, intents or
# implicature
MIXTURE = (
    *(task for task in TASKS if task.name in ("units", "metaphors", "sports")),
    RealTask("support", "social_support", "Is this reply supportive, unsupportive or neutral?\n{text}\nIt is"),
    RealTask("social", "social_iqa", "Answer the question.\n{text}"),
    RealTask("nli", "presuppositions_as_nli", "Does the first sentence entail the second?\n{text}"),
    RealTask("fever", "fact_checker/fever", "Check the claim.\n{text}"),
    RealTask("pronouns", "disambiguation_qa", "What does the pronoun stand for?\n{text}"),
    RealTask("goals", "goal_step_wikihow/goal_inference", "Complete the sentence.\n{text}"),
    RealTask("strategy", "strategyqa", "Answer with yes or no.\n{text}"),
    RealTask("claims", "vitaminc_fact_verification", "Is the claim true, false or neither?\n{text}"),
    RealTask("misconceptions", "misconceptions", "Is this true (T) or false (F)?\n{text}"),
    RealTask("sarcasm", "snarks", "Answer the question.\n{text}"),
    RealTask("polarity", "entailed_polarity", "Answer with yes or no.\n{text}"),
    RealTask("fallacies", "logical_fallacy_detection", "Is there a fallacy?\n{text}"),
    RealTask("epistemic", "epistemic_reasoning", "Does the premise entail the hypothesis?\n{text}"),
    RealTask("related", "phrase_relatedness", "Which of these is most related?\n{text}"),
    RealTask("ethics", "simple_ethical_questions", "Answer the question.\n{text}"),
)
PER_TASK = 150
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


def mixture() -> Iterator[tuple[RealTask, tuple[Example, ...]]]:
    """The tasks of MIXTURE, with up to PER_TASK examples of each."""
    for task in MIXTURE:
        assert task.source is not None
        examples = sorted(
            {e.text: e for e in _bigbench(task.source)}.values(), key=lambda e: hashlib.sha256(e.text.encode()).digest()
        )
        yield task, tuple(examples[:PER_TASK])


def _reviews() -> Iterator[Example]:
    for _, score, sentence in rows(REVIEWS):
        if float(score):
            yield Example(sentence.strip(), "positive" if float(score) > 0 else "negative", ("negative", "positive"))


def _bigbench(source: str) -> Iterator[Example]:
    every = [
        f"bigbench/benchmark_tasks/{task.source}/task.json" for task in dict.fromkeys((*TASKS, *MIXTURE)) if task.source
    ]
    place = dict(zip(every, members(BIGBENCH, SHA256, every), strict=True))[
        f"bigbench/benchmark_tasks/{source}/task.json"
    ]
    for example in json.loads(place.read_text(encoding="utf-8"))["examples"]:
        scores = example["target_scores"]
        right = max(scores, key=scores.get)
        yield Example(example["input"].strip(), right, tuple(sorted(scores)))
