"""One question, answered: classification ranks the task's choices, generation streams.

`answer` is the whole of it. Its parts are there for those who ask often: `task_of` says whose prompt is used,
`classify` and `reply` take vectors that were loaded once, and `classify_batch` gives every text its own. `prepare` runs
what a task's prompts all begin with, once.
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

BASE_TOKENS = 128  # what the base alone may say
OPENINGS = ("a", "the", "I", "What", "7", "?", "é")  # unlike each other, and most melt into a space before them


def answer(
    engine: AnyEngine, adapter: str | None, text: str, task: str | None = None
) -> Answer | Tagged | Iterator[str]:
    """Classification gives an Answer, of words Tagged ones, generation the text in pieces.

    Adapter None or "none" is the base, with the prompt of `task` if named.
    """
    vectors = AdapterBank(engine.bundle).vectors(adapter)
    job = task_of(engine, adapter, task)  # an encoder's base has none, and reply says so
    if job.kind == TAGS:
        return tag(engine, job, vectors, text)
    return classify(engine, job, vectors, text) if job.kind == "classify" else reply(engine, job, vectors, text)


def tag(engine: AnyEngine, task: Task, vectors: Mapping[str, Floats], text: Text) -> Tagged:
    """A label for each word. Raises ConfigError where the base is no encoder."""
    if not isinstance(engine, Encoder):
        raise ConfigError(f"{engine.bundle.path} is no encoder, and task {task.name!r} labels words, which one does")
    return tagged(engine, [task], vectors, [text])[0]


def task_of(engine: AnyEngine, adapter: str | None, task: str | None = None) -> Task:
    """The task whose prompt is used: `task`, else the adapter's own, else the base's plain prompt.

    How choices are ranked is a matter of the vectors: as they were trained, so as the adapter's own task says; the
    base's by the sum.
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
    """Ranks the choices of this text, by default the task's."""
    return classify_batch(engine, task, vectors, [text], [choices])[0]


def label(
    engine: AnyEngine, task: Task, vectors: Mapping[str, Floats], text: str, choices: Sequence[str] | None = None
) -> str:
    """What `classify` calls this text, without every choice's probability: mostly one row's work."""
    if isinstance(engine, Encoder):
        return classify(engine, task, vectors, text, choices).label
    own = choices or task.choices or ()
    if not own:
        return classify(engine, task, vectors, text, choices).label  # which says why not
    tokens = [answer_of(engine, task, choice) for choice in own]
    return own[best(engine, prompt_of(engine, task, text), tokens, vectors, task.ranking)]


def classify_batch(
    engine: AnyEngine,
    task: Task,
    vectors: Mapping[str, Floats],
    texts: Sequence[str],
    choices: Sequence[Sequence[str] | None] | None = None,
) -> list[Answer]:
    """Ranks each text's own choices; None, for one text or for all, means the task's, which are an encoder's only ones.

    Vectors are [1, 1, d] for all texts or [texts, 1, d].
    """
    if isinstance(engine, Encoder):
        if any(choices or ()):
            raise ConfigError(f"task {task.name!r} has the labels that its head was trained for, and no others")
        return labelled(engine, [task] * len(texts), vectors, texts)
    own = [given or task.choices or () for given in choices or [None] * len(texts)]
    if not all(own):
        reason = (
            "it generates text" if task.kind == "generate" else "every text brings its own (run: --choice A --choice B)"
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
    """Generated text in pieces."""
    if isinstance(engine, Encoder):
        raise ConfigError(f"{engine.bundle.path} is an encoder, which writes no text: it labels or embeds one")
    limit = task.max_new_tokens if max_new_tokens is None else max_new_tokens
    tokens = generate(engine, prompt_of(engine, task, text), vectors, limit, engine.bundle.stop_tokens, decoding)
    return stream_text(engine.tokenizer, tokens)


def prepare(engine: AnyEngine, task: Task, vectors: Mapping[str, Floats]) -> None:
    """Runs what the task's prompts begin with, so that each question after it, asked alone with these vectors, is run
    from its own words on.

    A text whose first letters melt into the token before them is run whole, as it would have been. So is every text in
    an encoder.
    """
    if isinstance(engine, Encoder):
        return
    if shared := beginning(engine, task):
        engine.begin(shared, vectors)


def beginning(engine: Words, task: Task) -> list[int]:
    """The tokens that all prompts of a task begin with."""
    columns = zip(*(prompt_of(engine, task, text) for text in OPENINGS), strict=False)
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]


def prompt_of(engine: Words, task: Task, text: str) -> list[int]:
    """Token ids of the task's prompt around `text`."""
    return list(engine.tokens.prompt(task.prompt, text))


def answer_of(engine: AnyEngine, task: Task, choice: str) -> list[int]:
    """Token ids of an answer and of the token that ends it; an encoder's answers are numbers of its head's rows."""
    if isinstance(engine, Encoder):
        return [(task.choices or ()).index(choice)]
    return list(engine.tokens.answer(choice, task.end))
