"""Requests to the model, in token ids, and their results: the interface between the routes and the thread that runs the
model.

A job is notified through its `tell`, in the running thread: of tokens one by one and how it ended, or of scores, or of
the reason why it failed. The caller cancels it by setting `cancelled`; it is removed before the next step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from qia3.runtime.cache import Floats
from qia3.runtime.decoding import Decoding
from qia3.runtime.score import Scores

Reason = Literal["stop", "length"]
Cause = Literal["failed", "unfit", "broken", "cancelled", "late", "stopping"]


@dataclass(frozen=True)
class Token:
    """A chosen token; its log-probability, and the most likely tokens with theirs, if requested."""

    id: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Ended:
    """The text is complete: a stop token came, or the limit was reached."""

    reason: Reason


@dataclass(frozen=True)
class Ranked:
    """Log-probabilities of the choices (qia3.runtime.score)."""

    scores: Scores


@dataclass(frozen=True)
class Embedded:
    """The embedding [hidden] of a text."""

    vector: Floats


@dataclass(frozen=True)
class Marked:
    """Logits [words, labels] of a text's words."""

    logits: Floats


@dataclass(frozen=True)
class Failed:
    """The job failed; `error` is the message for the caller. "unfit": the adapter's
    fault; "broken": by no fault of the caller's.
    """

    error: str
    reason: Cause


Last = Ended | Ranked | Embedded | Marked  # the last event of a job that did not fail
Event = Token | Last | Failed
Tell = Callable[[Event], None]


@dataclass
class Job:
    """`vectors` are [1, 1, d], the same arrays for all jobs of one adapter, so that cached prefixes are recognised.

    With `choices` it is a ranking (for an encoder they are row numbers of its head; with `places`, one ranking per token
    there), with `embed` it asks for a vector; otherwise up to `limit` tokens are generated, until one of `stop`. `top`
    None: no log-probabilities. `deadline` is a time.monotonic(). `shared`: how many of the prompt's first tokens other
    jobs with these vectors have in common.
    """

    prompt: Sequence[int]
    vectors: Mapping[str, Floats]
    tell: Tell
    limit: int = 1
    stop: frozenset[int] = frozenset()
    decoding: Decoding = field(default_factory=Decoding)
    top: int | None = None
    choices: Sequence[Sequence[int]] = ()
    ranking: str = "sum"
    embed: bool = False
    places: Sequence[int] = ()
    deadline: float | None = None
    shared: int = 0
    submitted: float = field(default_factory=time.monotonic)
    cancelled: threading.Event = field(default_factory=threading.Event)
    begun: bool = False  # the caller has seen its first token

    @property
    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline
