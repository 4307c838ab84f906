"""Labelling words with an encoder.

    engine = open_engine(Bundle.open("dist/names"))
    tag_texts(engine, ["Anna lives in Rome"], "names")          # words are separated by spaces
    tag_texts(engine, [["Anna", "lives", "in", "Rome", "."]], "names")       # or given as a list

A word has the label of its first token, as in training. Rows of one batch may have different vectors and heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qia3.bundle.ports import HEAD_WEIGHT
from qia3.bundle.task import TAGS, Task
from qia3.errors import ConfigError, DataError
from qia3.runtime.adapters import for_texts
from qia3.runtime.cache import Floats
from qia3.runtime.encoder import Encoder

Text = str | Sequence[str]


@dataclass(frozen=True)
class Tagged:
    """Words with their labels and probabilities."""

    words: tuple[str, ...]
    labels: tuple[str, ...]
    scores: tuple[float, ...]


def tag_texts(engine: Encoder, texts: Sequence[Text], adapters: str | Sequence[str]) -> list[Tagged]:
    """The labels of each text's words, each text with its own adapter. Raises AdapterError, ConfigError and DataError."""
    names, vectors = for_texts(engine.bundle, len(texts), adapters)
    known = engine.bundle.tasks
    if strange := [name for name in names if name not in known or known[name].kind != TAGS]:
        raise ConfigError(f"{strange[0]!r} does not label words: its kind is not {TAGS!r}")
    return tagged(engine, [known[name] for name in names], vectors, texts)


def tagged(
    engine: Encoder, tasks: Sequence[Task], vectors: Mapping[str, Floats], texts: Sequence[Text]
) -> list[Tagged]:
    """The same, with vectors that are already loaded. Raises ConfigError if there is no head."""
    if HEAD_WEIGHT not in vectors and engine.bundle.mode == "side":
        raise ConfigError(f"{tasks[0].name!r} has no labels: labelling words needs an adapter that was trained for it")
    words = [words_of(text) for text in texts]
    placed = [engine.tokens.words(task.prompt, given) for task, given in zip(tasks, words, strict=True)]
    logits = engine.token_logits([ids for ids, _ in placed], vectors)
    return [
        told(given, task, row[list(places), : len(task.choices or ())])
        for given, task, (_, places), row in zip(words, tasks, placed, logits, strict=True)
    ]


def words_of(text: Text) -> tuple[str, ...]:
    """The words of a text, split at spaces, or as given. Raises DataError if there are none."""
    found = tuple(text.split() if isinstance(text, str) else text)
    if not found:
        raise DataError("the text has no words")
    return found


def told(words: tuple[str, ...], task: Task, logits: Floats) -> Tagged:
    """The labels for logits [words, labels]."""
    wide = logits.astype(np.float64)
    shares = np.exp(wide - wide.max(-1, keepdims=True))
    best = wide.argmax(-1)
    scores = shares.max(-1) / shares.sum(-1)
    choices = task.choices or ()
    return Tagged(words, tuple(choices[i] for i in best), tuple(round(float(s), 6) for s in scores))
