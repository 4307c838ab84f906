"""Answers one question: classification ranks the task's choices, generation streams text.

`answer` does it all. Its parts are for repeated use: `task_of` decides whose prompt is used, `classify` and `reply`
take vectors that were loaded before, and `classify_batch` takes vectors per text. `prepare` runs the common prefix of a
task's prompts in advance.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from qia3.bundle.task import TAGS, Kind, Task
from qia3.errors import ConfigError
from qia3.names import NONE
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.cache import Floats
from qia3.runtime.decoding import GREEDY, Decoding
from qia3.runtime.encoder import Encoder
from qia3.runtime.generate import generate, stream_text
from qia3.runtime.load import AnyEngine
from qia3.runtime.score import Answer, best, chosen, rank_batch
from qia3.runtime.tags import Tagged, Text, tagged
from qia3.runtime.texts import labelled
from qia3.runtime.words import Words

BASE_TOKENS = 128  # limit of an answer of the base alone
OPENINGS = ("a", "the", "I", "What", "7", "?", "é")  # varied beginnings of texts; most merge with a preceding space


def answer(
    engine: AnyEngine, adapter: str | None, text: str, task: str | None = None
) -> Answer | Tagged | Iterator[str]:
    """Classification returns an Answer, labelling words returns Tagged, generation returns the text in pieces.

    Adapter None or "none" is the base, with the prompt of `task` if named.
    """
    vectors = AdapterBank(engine.bundle).vectors(adapter)
    job = task_of(engine, adapter, task)  # for an encoder's base there is none, and `reply` raises
    if job.kind == TAGS:
        return tag(engine, job, vectors, text)
    return classify(engine, job, vectors, text) if job.kind == "classify" else reply(engine, job, vectors, text)


def tag(engine: AnyEngine, task: Task, vectors: Mapping[str, Floats], text: Text) -> Tagged:
    """Labels each word. Raises ConfigError if the base is not an encoder, or the task is of another kind."""
    if not isinstance(engine, Encoder):
        raise ConfigError(
            f"task {task.name!r} labels words, which needs an encoder, and {engine.bundle.path} is not one"
        )
    if task.kind != TAGS:
        raise ConfigError(f"{task.name!r} does not label words: its kind is not {TAGS!r}")
    return tagged(engine, [task], vectors, [text])[0]


def task_of(engine: AnyEngine, adapter: str | None, task: str | None = None) -> Task:
    """The task whose prompt is used: `task`, or the adapter's own, or the base's plain prompt.

    Ranking follows the active adapter, not the prompt: its own task's `ranking`, or "sum" for the bare base.
    """
    bundle = engine.bundle
    name = task or adapter
    if name is None or name == NONE:
        end = engine.tokenizer.id_to_token(bundle.stop_tokens[0]) if bundle.stop_tokens else ""
        kind: Kind = "embed" if isinstance(engine, Encoder) else "generate"
        return Task(NONE, kind, f"{bundle.prefix}{{text}}{bundle.suffix}", None, BASE_TOKENS, end or "")
    if name not in bundle.tasks:
        near = sorted(bundle.tasks, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
        raise ConfigError(f"{bundle.path} has no task {name!r}; it has: {', '.join(near) or 'none'}")
    trained = bundle.tasks.get(bundle.merged_task or adapter or NONE)
    return replace(bundle.tasks[name], ranking="sum" if trained is None else trained.ranking)


def classify(
    engine: AnyEngine, task: Task, vectors: Mapping[str, Floats], text: str, choices: Sequence[str] | None = None
) -> Answer:
    """Ranks choices for this text, by default the task's."""
    return classify_batch(engine, task, vectors, [text], [choices])[0]


def label(
    engine: AnyEngine, task: Task, vectors: Mapping[str, Floats], text: str, choices: Sequence[str] | None = None
) -> str:
    """The label that `classify` would give, without the other probabilities: usually the work of one row."""
    if isinstance(engine, Encoder):
        return classify(engine, task, vectors, text, choices).label
    own = choices or task.choices or ()
    if not own:
        return classify(engine, task, vectors, text, choices).label  # which raises with the reason
    tokens = [answer_of(engine, task, choice) for choice in own]
    return own[best(engine, prompt_of(engine, task, text), tokens, vectors, task.ranking)]


def classify_batch(
    engine: AnyEngine,
    task: Task,
    vectors: Mapping[str, Floats],
    texts: Sequence[str],
    choices: Sequence[Sequence[str] | None] | None = None,
) -> list[Answer]:
    """Ranks each text's own choices; None, for one text or all, means the task's, the only option for an encoder.

    Vectors are [1, 1, d] for all texts or [texts, 1, d].
    """
    if isinstance(engine, Encoder):
        if any(choices or ()):
            raise ConfigError(f"task {task.name!r} has fixed labels, those of its head; leave out choices")
        return labelled(engine, [task] * len(texts), vectors, texts)
    own = [given or task.choices or () for given in choices or [None] * len(texts)]
    if not all(own):
        reason = (
            "it generates text" if task.kind == "generate" else "give them with each text (run: --choice A --choice B)"
        )
        raise ConfigError(f"task {task.name!r} has no choices to rank; {reason}")
    tokens = [[answer_of(engine, task, choice) for choice in given] for given in own]
    prompts = [prompt_of(engine, task, text) for text in texts]
    return [
        chosen(given, scores)
        for given, scores in zip(own, rank_batch(engine, prompts, tokens, vectors, task.ranking), strict=True)
    ]


def reply(
    engine: AnyEngine,
    task: Task,
    vectors: Mapping[str, Floats],
    text: str,
    max_new_tokens: int | None = None,
    decoding: Decoding = GREEDY,
) -> Iterator[str]:
    """Generates text, in pieces."""
    if isinstance(engine, Encoder):
        raise ConfigError(f"{engine.bundle.path} is an encoder, which cannot generate text; it labels or embeds one")
    limit = task.max_new_tokens if max_new_tokens is None else max_new_tokens
    tokens = generate(engine, prompt_of(engine, task, text), vectors, limit, engine.bundle.stop_tokens, decoding)
    return stream_text(engine.tokenizer, tokens)


def prepare(engine: AnyEngine, task: Task, vectors: Mapping[str, Floats]) -> None:
    """Runs the common prefix of a task's prompts, so that later questions, asked one at a time with these vectors, only
    run their own words.

    A text whose first letters merge with the token before them is run completely, as usual. In an encoder every text
    is.
    """
    if isinstance(engine, Encoder):
        return
    if shared := beginning(engine, task):
        engine.begin(shared, vectors)


def beginning(engine: Words, task: Task) -> list[int]:
    """The common prefix of a task's prompts, in tokens."""
    columns = zip(*(prompt_of(engine, task, text) for text in OPENINGS), strict=False)
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]


def prompt_of(engine: Words, task: Task, text: str) -> list[int]:
    """Token ids of the task's prompt around `text`."""
    return list(engine.tokens.prompt(task.prompt, text))


def answer_of(engine: AnyEngine, task: Task, choice: str) -> list[int]:
    """Token ids of an answer and its end token; for an encoder, the number of the label's row in its head."""
    if isinstance(engine, Encoder):
        return [(task.choices or ()).index(choice)]
    return list(engine.tokens.answer(choice, task.end))
