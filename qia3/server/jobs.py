"""What is asked of the model, in token ids, and what comes back: the border between the routes and the thread that runs
the model.

A job is told of what happens through its `tell`, in the running thread: tokens one by one and how it ended, or scores,
or why it failed. Whoever asked cancels it by setting `cancelled`; it is gone before the next step.
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
Cause = Literal["failed", "cancelled", "late", "stopping"]


@dataclass(frozen=True)
class Token:
    """One token that was chosen; its log-probability, and the likeliest tokens with theirs, where they were asked."""

    id: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Ended:
    """The text is whole: a stop token came, or its limit."""

    reason: Reason


@dataclass(frozen=True)
class Ranked:
    """Log-probabilities of the choices (qia3.runtime.score)."""

    scores: Scores


@dataclass(frozen=True)
class Embedded:
    """[hidden] of a text."""

    vector: Floats


@dataclass(frozen=True)
class Marked:
    """Logits [words, labels] of a text's words."""

    logits: Floats


@dataclass(frozen=True)
class Failed:
    """Nothing more comes. `error` is what is told to whoever asked."""

    error: str
    reason: Cause


Last = Ended | Ranked | Embedded | Marked  # of a job that did not fail
Event = Token | Last | Failed
Tell = Callable[[Event], None]


@dataclass
class Job:
    """`vectors` are [1, 1, d], the same arrays for all jobs of one adapter, so that begun prompts are known again.

    `choices` make it a ranking (an encoder's are the numbers of its head's rows; with `places`, of the tokens there, each
    by itself), `embed` asks for a vector; otherwise up to `limit` tokens are written, until one of `stop`. `top` None:
    nobody asks for log-probabilities. `deadline` is a time.monotonic(). `shared`: how many of the prompt's first tokens
    other jobs with these vectors begin with, too.
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
    begun: bool = False  # its first token has been seen by the one who asked

    @property
    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline
