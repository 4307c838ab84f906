"""Scores a file of examples.

Classification: the top-ranked label must equal the right one, or one of several right ones. Generation: exact match
after normalising, token F1, and chrF. Token classification: the share of words with the right label and, if labels mark
entities (qia3.tagged), F1 over entities.

chrF (Popović 2015) is an F-score over character n-grams, so a near miss in a word counts for something. It is computed
by sacrebleu, as published figures are, and left out if that is not installed: scoring on a device only needs numpy.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qia3.bundle.task import TAGS, Task
from qia3.errors import ConfigError, DataError
from qia3.examples import SHOWN, Example, contradiction, listed, read_examples
from qia3.names import NONE
from qia3.progress import say
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import answer_of, label, prepare, prompt_of, reply, tag, task_of
from qia3.runtime.cache import Floats
from qia3.runtime.encoder import Encoder
from qia3.runtime.load import AnyEngine
from qia3.runtime.replies import replies
from qia3.tagged import has_scheme, span_f1

Track = Callable[[list[Example]], Iterable[Example]]


@dataclass(frozen=True)
class Evaluation:
    """`labels` gives, per label, how many there were and how many were right; `f1` (0 to 1) and `chrf` (0 to 100, by
    sacrebleu over a whole file) are None for classification, `labels` is None if the task has no fixed choices. If
    words are labelled, `accuracy` and `labels` count words.

    `n` examples were asked; `left_out` lines could not be, and the first few are named.
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
    left_out: int | None = None
    left_out_lines: list[int] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v is not None}


def evaluate(
    engine: AnyEngine,
    bank: AdapterBank,
    given: Path | Sequence[Example],
    adapter: str | None,
    task: str | None = None,
    track: Track = lambda examples: examples,
) -> Evaluation:
    """`adapter` None or "none" scores the base, with the prompt of `task`; `track` wraps the examples (a progress bar).

    Lines that cannot be asked (too long for the context) are left out, counted and reported on stderr. Raises DataError
    that names each malformed line, or if no line can be asked.
    """
    chosen = _task(engine, adapter, task)
    if chosen.kind == "embed":
        raise ConfigError(f"{chosen.name!r} has no labels to score: it gives embeddings; name an adapter with labels")
    if isinstance(given, Path):
        read = read_examples(given, chosen.kind, chosen.choices or ())
        if remark := contradiction(read):
            say(f"warning: {remark}")
    else:
        read = list(given)
    examples, left_out = _askable(engine, chosen, read)
    vectors = bank.vectors(adapter)
    started = time.perf_counter()
    kept = [] if isinstance(engine, Encoder) else list(engine.begun)
    prepare(engine, chosen, vectors)
    answers = _answers(engine, chosen, vectors, examples, track)
    if not isinstance(engine, Encoder):
        engine.begun = kept
    seconds = time.perf_counter() - started
    return Evaluation(
        adapter=adapter or engine.bundle.merged_task or NONE,
        task=chosen.name,
        kind=chosen.kind,
        n=len(examples),
        **_marks(chosen, answers, examples),
        seconds=round(seconds, 2),
        examples_per_second=round(len(examples) / seconds, 2),
        left_out=len(left_out) or None,
        left_out_lines=[e.place.line for e in left_out[:SHOWN] if e.place] or None,
    )


def _marks(task: Task, answers: Sequence[str], examples: Sequence[Example]) -> dict[str, Any]:
    """Accuracy and the other measures of this kind of task."""
    pairs = list(zip(answers, examples, strict=True))
    if task.kind == TAGS:
        said = [answer.split(" ") for answer in answers]
        words = [pair for tags, e in zip(said, examples, strict=True) for pair in zip(tags, e.tags, strict=True)]
        f1 = span_f1(said, [e.tags for e in examples]) if has_scheme(task.choices or ()) else None
        counts = _by_label([label for _, label in words], [ours == label for ours, label in words])
        return {"accuracy": sum(a == b for a, b in words) / len(words), "f1": f1, "chrf": None, "labels": counts}
    if task.kind == "generate":
        scores = [token_f1(a, e.answer) for a, e in pairs]
        exact = sum(_normal(a) == _normal(e.answer) for a, e in pairs)
        chrf = corpus_chrf(answers, [e.answer for e in examples])
        return {"accuracy": exact / len(pairs), "f1": sum(scores) / len(scores), "chrf": chrf, "labels": None}
    right = [a in e.right for a, e in pairs]
    labels = _by_label([e.answer for e in examples], right) if task.choices else None
    return {"accuracy": sum(right) / len(right), "f1": None, "chrf": None, "labels": labels}


def _askable(engine: AnyEngine, task: Task, examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Examples that can be asked and those that cannot, which are reported on stderr. Raises DataError if none can."""
    reasons = {i: reason for i, e in enumerate(examples) if (reason := _why_not(engine, task, e))}
    if reasons:
        told = listed([f"{examples[i].place}: {reason}" for i, reason in reasons.items()])
        if len(reasons) == len(examples):
            raise DataError(f"none of these lines can be asked: {told}")
        say(f"warning: {len(reasons)} of {len(examples)} lines are left out: {told}")
    asked = [e for i, e in enumerate(examples) if i not in reasons]
    return asked, [examples[i] for i in reasons]


def _why_not(engine: AnyEngine, task: Task, example: Example) -> str | None:
    """Why a line cannot be asked, or None."""
    choices = (example.choices or task.choices or ()) if task.kind == "classify" else ()
    try:
        longest = max((len(answer_of(engine, task, choice)) for choice in choices), default=1)
        needed = engine.bundle.architecture.positions(len(prompt_of(engine, task, example.text)), longest - 1)
        if task.kind == TAGS:
            engine.tokens.words(task.prompt, example.words)
    except DataError as error:
        return str(error)
    return (
        f"{needed} tokens do not fit the context of {engine.context_length}" if needed > engine.context_length else None
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


def _task(engine: AnyEngine, adapter: str | None, task: str | None) -> Task:
    """The task; without an adapter and with only one task, that one."""
    tasks = list(engine.bundle.tasks)
    if task is None and adapter in (None, NONE) and len(tasks) == 1:
        task = tasks[0]
    return task_of(engine, adapter, task)


def _answers(
    engine: AnyEngine, task: Task, vectors: dict[str, Floats], examples: list[Example], track: Track
) -> list[str]:
    """The answer to each example, replies several at once; `track` goes on by one for each that is answered."""
    if isinstance(engine, Encoder) or task.kind != "generate":
        return [_answer(engine, task, vectors, e) for e in track(examples)]
    answered = replies(engine, task, vectors, [e.text for e in examples])
    found = {index: text for _, (index, text) in zip(track(examples), answered, strict=True)}
    return [found[index] for index in range(len(examples))]


def _answer(engine: AnyEngine, task: Task, vectors: dict[str, Floats], example: Example) -> str:
    if task.kind == "classify":
        return label(engine, task, vectors, example.text, example.choices)
    if task.kind == TAGS:
        return " ".join(tag(engine, task, vectors, example.words).labels)
    return "".join(reply(engine, task, vectors, example.text))


def _normal(text: str) -> str:
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(text.lower().split()).rstrip(".")


def _by_label(labels: Sequence[str], right: Sequence[bool]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for name, ok in zip(labels, right, strict=True):
        entry = counts.setdefault(name, {"n": 0, "right": 0})
        entry["n"] += 1
        entry["right"] += ok
    return dict(sorted(counts.items()))
