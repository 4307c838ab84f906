"""Scores a file of examples.

Classification: the ranked label is the right one, character by character, or one of several right ones. Generation:
exact match after normalising, token F1, and chrF.

chrF (Popović 2015) is an F-score over character n-grams, so a near miss in a word counts for something. It comes from
sacrebleu, which is what published figures are made with, and is left out where that is not installed: a device needs no
more than numpy to be scored.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qia3.bundle.task import Task
from qia3.examples import Example, read_examples
from qia3.names import NONE
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import classify, prepare, reply, task_of
from qia3.runtime.cache import Floats
from qia3.runtime.engine import Engine

Track = Callable[[list[Example]], Iterable[Example]]


@dataclass(frozen=True)
class Evaluation:
    """`labels` gives per label how many there were and how many were right; `f1` (0 to 1) and `chrf` (0 to 100, as
    sacrebleu gives it for a whole file) are None for classification, `labels` where the task has no choices of its own.
    """

    adapter: str
    task: str
    kind: str
    n: int
    accuracy: float
    f1: float | None
    chrf: float | None
    labels: dict[str, dict[str, int]] | None
    seconds: float
    examples_per_second: float

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v is not None}


def evaluate(
    engine: Engine,
    bank: AdapterBank,
    path: Path,
    adapter: str | None,
    task: str | None = None,
    track: Track = lambda examples: examples,
) -> Evaluation:
    """`adapter` None or "none" scores the base, with the prompt of `task`; `track` wraps the examples (a progress bar).

    Raises DataError naming the line.
    """
    chosen = _task(engine, adapter, task)
    examples = read_examples(path, chosen.kind, chosen.choices or ())
    vectors = bank.vectors(adapter)
    started = time.perf_counter()
    kept = list(engine.begun)
    prepare(engine, chosen, vectors)
    answers = [_answer(engine, chosen, vectors, e) for e in track(examples)]
    engine.begun = kept
    seconds = time.perf_counter() - started
    generation = chosen.kind == "generate"
    right = [
        _normal(a) == _normal(e.answer) if generation else a in e.right for a, e in zip(answers, examples, strict=True)
    ]
    scores = [token_f1(a, e.answer) for a, e in zip(answers, examples, strict=True)]
    return Evaluation(
        adapter=adapter or engine.bundle.merged_task or NONE,
        task=chosen.name,
        kind=chosen.kind,
        n=len(examples),
        accuracy=sum(right) / len(examples),
        f1=sum(scores) / len(scores) if generation else None,
        chrf=corpus_chrf(answers, [e.answer for e in examples]) if generation else None,
        labels=_by_label(examples, right) if chosen.choices else None,
        seconds=round(seconds, 2),
        examples_per_second=round(len(examples) / seconds, 2),
    )


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of precision and recall over words, as counted in SQuAD."""
    said, wanted = _normal(answer).split(), _normal(expected).split()
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted)) if shared else 0.0


def corpus_chrf(answers: Sequence[str], expected: Sequence[str]) -> float | None:
    """chrF2 of all answers together, 0 to 100; None without sacrebleu."""
    try:
        from sacrebleu.metrics import CHRF
    except ModuleNotFoundError:
        return None
    return round(float(CHRF().corpus_score(list(answers), [list(expected)]).score), 2)


def _task(engine: Engine, adapter: str | None, task: str | None) -> Task:
    """With no adapter and one task only, that task's prompt is meant."""
    tasks = list(engine.bundle.tasks)
    if task is None and adapter in (None, NONE) and len(tasks) == 1:
        task = tasks[0]
    return task_of(engine, adapter, task)


def _answer(engine: Engine, task: Task, vectors: dict[str, Floats], example: Example) -> str:
    if task.kind == "classify":
        return classify(engine, task, vectors, example.text, example.choices).label
    return "".join(reply(engine, task, vectors, example.text))


def _normal(text: str) -> str:
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(text.lower().split()).rstrip(".")


def _by_label(examples: list[Example], right: list[bool]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for example, ok in zip(examples, right, strict=True):
        entry = counts.setdefault(example.answer, {"n": 0, "right": 0})
        entry["n"] += 1
        entry["right"] += ok
    return dict(sorted(counts.items()))
