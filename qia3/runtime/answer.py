"""One question, answered: classification ranks the task's choices, generation streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from qia3.errors import ConfigError
from qia3.runtime.adapters import NONE, AdapterBank
from qia3.runtime.bundle import BundleTask
from qia3.runtime.engine import Engine, Floats
from qia3.runtime.generate import generate, stream_text
from qia3.runtime.score import rank


@dataclass(frozen=True)
class Answer:
    """A label and every choice's share (softmax over their scores)."""

    label: str
    scores: dict[str, float]


def task_of(engine: Engine, adapter: str | None, task: str | None) -> BundleTask:
    """The task whose prompt is used: `task`, else the adapter's own, else the base's plain prompt."""
    bundle = engine.bundle
    name = task or adapter
    if name in (None, NONE):
        end = engine.tokenizer.id_to_token(bundle.stop_tokens[0]) if bundle.stop_tokens else ""
        return BundleTask(NONE, "generate", f"{bundle.prefix}{{text}}{bundle.suffix}", None, 128, end or "")
    if name not in bundle.tasks:
        raise ConfigError(f"{bundle.path} has no task {name!r}; it has: {', '.join(bundle.tasks)}")
    return bundle.tasks[str(name)]


def classify(engine: Engine, task: BundleTask, vectors: Mapping[str, Floats], text: str) -> Answer:
    """Ranks the task's choices."""
    choices = task.choices or ()
    scores = rank(engine, engine.encode(task.prompt.replace("{text}", text)), [engine.encode(c + task.end) for c in choices], vectors)
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    return Answer(choices[int(scores.argmax())], {c: round(float(s), 6) for c, s in zip(choices, shares, strict=True)})


def reply(engine: Engine, task: BundleTask, vectors: Mapping[str, Floats], text: str, max_new_tokens: int | None = None) -> Iterator[str]:
    """Generated text in pieces."""
    prompt = engine.encode(task.prompt.replace("{text}", text))
    tokens = generate(engine, prompt, vectors, max_new_tokens or task.max_new_tokens, engine.bundle.stop_tokens)
    return stream_text(engine.tokenizer, tokens)


def open_bank(engine: Engine) -> AdapterBank:
    """The adapters of an engine's bundle."""
    return AdapterBank(engine.bundle)
