"""Replies to many texts, several at once: as the server gives them, in less time than one after the other.

A step of one token reads the weights once, for one row or for sixteen. So prompts are run one at a time, after their
common beginning (Engine.begin), and their replies together, in rows that join and leave between steps (slots.py). A
row's logits are those of a row alone but for the order of sums. Where activations are rounded to int8 that is enough
for another rounding now and then, and with it for another token where two were nearly equal.

An encoder-decoder's rows are run separately in any case, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qia3.bundle.task import Task
from qia3.runtime.answer import prompt_of
from qia3.runtime.cache import Floats
from qia3.runtime.engine import Engine
from qia3.runtime.generate import stream_text
from qia3.runtime.seq2seq import Seq2Seq
from qia3.runtime.slots import slots_of

ROWS = 16
MOST_BYTES = 1 << 28  # of the rows' caches


@dataclass
class _Reply:
    """One row: the number of its text, and its tokens so far, the last of which has not been run."""

    index: int
    tokens: list[int] = field(default_factory=list)


def replies(
    engine: Engine, task: Task, vectors: Mapping[str, Floats], texts: Sequence[str]
) -> Iterator[tuple[int, str]]:
    """The reply to each text with the text's number, in the order in which they end."""
    prompts, stop, most = [prompt_of(engine, task, t) for t in texts], engine.bundle.stop_tokens, task.max_new_tokens
    longest = min(max(map(len, prompts), default=1) + most, engine.context_length)
    slots = slots_of(engine, rows_at_once(engine, longest), longest)
    waiting, running = list(enumerate(prompts))[::-1], list[_Reply]()

    def goes_on(reply: _Reply, logits: Floats, length: int) -> bool:
        """Takes the likeliest token; whether another one follows, as in generate.py."""
        token = int(logits.argmax())
        if token in stop:
            return False
        reply.tokens.append(token)
        return len(reply.tokens) < most and length + 1 < engine.context_length

    def said(reply: _Reply) -> tuple[int, str]:
        return reply.index, "".join(stream_text(engine.tokenizer, reply.tokens))

    while waiting or running:
        while waiting and not slots.full:
            index, tokens = waiting.pop()
            prompt, reply = slots.prompt(tokens, vectors, piece=len(tokens)), _Reply(index)
            logits = prompt.advance()
            assert logits is not None, "one piece"
            if goes_on(reply, logits[0], int(prompt.cache.lengths[0])):
                slots.join(prompt.cache, vectors)
                running.append(reply)
            else:
                yield said(reply)
        if not running:
            continue
        found = np.array(slots.step([reply.tokens[-1] for reply in running]))
        for row in reversed(range(len(running))):
            length = slots.positions(prompts[running[row].index]) + len(running[row].tokens)
            if not goes_on(running[row], found[row], length):
                yield said(running[row])
                running[row] = running[-1]  # as slots.leave does
                running.pop()
                slots.leave(row)


def rows_at_once(engine: Engine, positions: int) -> int:
    """How many rows of so many positions are run together."""
    if isinstance(engine, Seq2Seq):
        return 1
    each = sum(heads * size for heads, size in engine.caches.values()) * np.dtype(engine.decoder.cache_type).itemsize
    return max(1, min(ROWS, MOST_BYTES // max(1, each * positions)))
