"""Reads a new bundle as a device would, before it is used: every file, the graphs, the tokenizer, each adapter, and
whether each task can be asked.

The last check is for new bundles only: one of an earlier version still opens and answers as before.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from qia3.bundle.opened import Bundle
from qia3.bundle.task import LABELLED, TAGS, Task
from qia3.errors import AdapterError, DataError
from qia3.names import NONE
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import answer_of, prompt_of, task_of
from qia3.runtime.encoder import Encoder
from qia3.runtime.load import AnyEngine, open_engine


def read_back(folder: Path, adapters: Collection[str] | None = None) -> None:
    """Raises what the reader of a bundle raises. `adapters`: the new ones; None for all.

    Takes the time of opening the bundle and of one step of one token per adapter.
    """
    bundle = Bundle.open(folder)
    engine, bank = open_engine(bundle), AdapterBank(bundle)
    names = adapters or bundle.adapters or ((bundle.merged_task,) if bundle.merged_task else (NONE,))
    for name in names:
        task = task_of(engine, name)
        check_task(engine, task)
        if isinstance(engine, Encoder):
            logits = engine.token_logits if task.kind == TAGS else engine.logits
            _check_head(task, logits([[0]], bank.vectors(name)).shape[-1])
        else:
            engine.prefill([[0]], bank.vectors(name), room=0)


def _check_head(task: Task, labels: int) -> None:
    """Raises AdapterError if a head's labels are not the task's."""
    if task.kind in LABELLED and labels != len(task.choices or ()):
        raise AdapterError(f"task {task.name!r} has {len(task.choices or ())} labels, but its head has {labels}")


def check_task(engine: AnyEngine, task: Task) -> None:
    """Checks that the prompt leaves room for a word and the longest answer, and that the end of an answer is a token.
    Raises AdapterError with everything that is wrong.
    """
    try:
        prompt = len(prompt_of(engine, task, ""))
        longest = max((len(answer_of(engine, task, choice)) for choice in task.choices or ()), default=1)
        bad = [] if isinstance(engine, Encoder) else _end(engine, task)
    except DataError as error:
        raise AdapterError(f"task {task.name!r} cannot be asked of this bundle: {error}") from error
    if engine.bundle.architecture.positions(prompt + 1, longest - 1) > engine.context_length:
        told = f"its prompt takes {prompt:,} tokens" + (f" and its longest answer {longest:,}" if task.choices else "")
        bad.append(f"{told}, which leaves no room for words in a context of {engine.context_length:,}")
    if task.choices is not None and len(task.choices) == 1:
        bad.append(f"{task.choices[0]!r} is its only choice; at least two are needed")
    if task.kind in (("generate",) if isinstance(engine, Encoder) else ("embed", TAGS)):
        bad.append(
            f"its kind is {task.kind!r}, which an encoder alone {'cannot' if task.kind == 'generate' else 'can'}"
        )
    if bad:
        raise AdapterError(f"task {task.name!r} cannot be asked of this bundle: {'; '.join(bad)}")


def _end(engine: AnyEngine, task: Task) -> list[str]:
    """What is wrong with the task's end, as a list. Generation ends at the bundle's own stop tokens only; a ranked
    choice may be followed by any control token. In a bundle of an earlier version without stop tokens, any end is
    accepted.
    """
    stops = engine.bundle.stop_tokens
    if not task.end and not stops:
        return []
    ids = engine.tokens.answer("", task.end)
    if len(ids) == 1 and (ids[0] in stops or (task.kind == "classify" and ids[0] in engine.tokens.control)):
        return []
    known = ", ".join(repr(engine.tokenizer.id_to_token(stop) or f"token {stop}") for stop in stops) or "nothing"
    return [f"its end, {task.end[:80]!r}, is not a token that ends an answer here; this bundle stops at {known}"]
