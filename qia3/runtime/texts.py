"""Labelling and embedding many texts at once with an encoder.

    engine = open_engine(Bundle.open("dist/intents"))
    classify_texts(engine, ["dim the hall", "stop the music"], ["home", "player"])    # one task per text, or one for all
    embed_texts(engine, ["dim the hall", "stop the music"])                           # float32 [2, hidden]

Rows of one batch may have different vectors and heads, so texts of several tasks need one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qia3.bundle.ports import HEAD_WEIGHT
from qia3.bundle.task import TAGS, Task
from qia3.errors import ConfigError
from qia3.names import NONE
from qia3.runtime.adapters import AdapterBank, for_texts
from qia3.runtime.cache import Floats
from qia3.runtime.encoder import Encoder
from qia3.runtime.score import Answer, chosen


def classify_texts(engine: Encoder, texts: Sequence[str], adapters: str | Sequence[str]) -> list[Answer]:
    """The label of each text, with its own adapter. Raises AdapterError, and ConfigError for a task without labels."""
    names, vectors = for_texts(engine.bundle, len(texts), adapters)
    tasks = [engine.bundle.tasks.get(name) or _unlabelled(name) for name in names]
    return labelled(engine, tasks, vectors, texts)


def labelled(
    engine: Encoder, tasks: Sequence[Task], vectors: Mapping[str, Floats], texts: Sequence[str]
) -> list[Answer]:
    """The same, with vectors that are already loaded. Raises ConfigError if there is no head."""
    for task in tasks:
        if task.kind == TAGS:
            raise ConfigError(f"{task.name!r} labels words, not texts (qia3.runtime.tags)")
        if not task.choices or (HEAD_WEIGHT not in vectors and engine.bundle.mode == "side"):
            _unlabelled(task.name)
    rows = [engine.tokens.prompt(task.prompt, text) for task, text in zip(tasks, texts, strict=True)]
    logits = engine.logits(rows, vectors)
    return [
        chosen(task.choices, row[: len(task.choices)])
        for task, row in zip(tasks, logits, strict=True)
        if task.choices is not None
    ]


def embed_texts(engine: Encoder, texts: Sequence[str], adapter: str | None = None) -> Floats:
    """Embeddings, float32 [texts, hidden], pooled as the base does; with an adapter, using its vectors and prompt."""
    bundle = engine.bundle
    named = adapter not in (None, NONE)
    template = (
        bundle.tasks[adapter].prompt if named and adapter in bundle.tasks else bundle.prefix + "{text}" + bundle.suffix
    )
    vectors = AdapterBank(bundle).vectors(adapter)
    return engine.embed([engine.tokens.prompt(template, text) for text in texts], vectors)


def _unlabelled(name: str) -> Task:
    raise ConfigError(
        f"{name!r} has no labels: an encoder needs an adapter that was trained for labels; without one it gives "
        "embeddings (--embed)"
    )
