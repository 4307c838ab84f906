"""The work of one row of the batch: a text that is being generated, or a share of a ranking.

Both give the token to run next (`newest`) and take the logits that result. `take` returns None while the work goes on,
otherwise the event that ends the job, or DONE for a row that has finished its share while others of its job go on.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from qia3.runtime.cache import Floats
from qia3.runtime.decoding import Chooser
from qia3.runtime.score import log_sum_exp
from qia3.runtime.walk import Walker
from qia3.server.jobs import Ended, Failed, Job, Ranked, Token
from qia3.server.line import failed

Done = Literal["done"]
DONE: Done = "done"


class Writing:
    """`room`: positions left in the row for generated tokens."""

    def __init__(self, job: Job, room: int) -> None:
        self.job, self.room = job, room
        self.choose, self.newest, self.written = Chooser(job.decoding), 0, 0
        self.back: int | None = None  # generation never goes back

    def take(self, logits: Floats) -> Ended | Failed | None:
        """Chooses the next token and reports it."""
        job = self.job
        try:
            token = self.choose(logits[None])
            if token in job.stop:
                return Ended("stop")
            self.newest, self.written = token, self.written + 1
            job.tell(Token(token) if job.top is None else with_logprobs(token, logits, job.top))
        except Exception as error:  # fails this job only
            return failed(error)
        return None if self.written < min(job.limit, self.room) else Ended("length")


class Ranking:
    """`back`: the number of positions to keep if the row goes back before its next step."""

    written = 0

    def __init__(self, job: Job, walker: Walker) -> None:
        self.job, self.walker = job, walker
        self.back: int | None = None

    @property
    def newest(self) -> int:
        return self.walker.newest

    def take(self, logits: Floats) -> Ranked | Failed | Done | None:
        try:
            self.back = self.walker.take(logits)
        except Exception as error:
            return failed(error)
        if not self.walker.walk.open:
            return Ranked(self.walker.walk.scores)
        return DONE if self.back is None else None


Row = Writing | Ranking


def with_logprobs(token: int, logits: Floats, top: int) -> Token:
    normaliser = float(log_sum_exp(logits))
    likeliest = np.argsort(-logits, kind="stable")[:top]
    shares = tuple((int(i), float(logits[i]) - normaliser) for i in likeliest)
    return Token(token, float(logits[token]) - normaliser, shares)
