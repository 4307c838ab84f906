"""A decoder's jobs: one prompt at a time in pieces, and the rows that write.

A turn runs one piece of the oldest prompt, one step of the oldest ranking, and one step of all rows that write. So a long
prompt costs the rows one piece a turn and never more, and a request that comes in begins to write while others are at it.

    queue  e f g      prompt  d: [####....]      rankings  c      rows  a b

What one job does wrong is told to that job; what breaks a step breaks every row of it, and the next job finds new rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

from qia3.errors import QIA3Error
from qia3.runtime.cache import Floats
from qia3.runtime.decoding import Chooser
from qia3.runtime.engine import Engine
from qia3.runtime.score import Scores, log_sum_exp, ranking
from qia3.runtime.slots import PIECE, AnySlots, Prompt, slots_of
from qia3.server.jobs import Ended, Failed, Job, Ranked, Token
from qia3.server.line import Line, failed


@dataclass
class Writing:
    """A job that has a row. `newest` is its last token, which the next step runs."""

    job: Job
    choose: Chooser
    newest: int = 0
    written: int = 0


class Batcher(Line):
    """Owns the engine from `start` on: nobody else may run it until `stop` has returned."""

    def __init__(
        self,
        engine: Engine,
        rows: int = 8,
        capacity: int | None = None,
        waiting: int = 64,
        piece: int = PIECE,
        beginnings: int = 32,
    ) -> None:
        """`beginnings`: how many tasks' common beginnings are kept, a cache of so many positions each."""
        super().__init__(rows, waiting)
        self.engine, self.piece, self.beginnings = engine, piece, beginnings
        self.slots: AnySlots = slots_of(engine, rows, capacity)
        self.prompt: tuple[Job, Prompt] | None = None
        self.rankings: deque[tuple[Job, Generator[None, None, Scores]]] = deque()
        self.writing: list[Writing] = []

    @property
    def in_use(self) -> int:
        return len(self.writing)

    @property
    def _busy(self) -> bool:
        return bool(self.prompt or self.rankings or self.writing)

    def _check(self, job: Job) -> None:
        longest = self.slots.positions(job.prompt) + max((len(c) for c in job.choices), default=1)
        if max(longest, len(job.prompt)) > self.slots.capacity:
            raise QIA3Error(
                f"{longest} tokens do not fit the {self.slots.capacity} positions of a row; shorten the text"
            )

    def _turn(self) -> None:
        self._advance()
        self._rank()
        self._step()

    def _take_out(self, gone: Callable[[Job], bool]) -> list[Job]:
        taken = [job for job, _ in self.rankings if gone(job)]
        self.rankings = deque(pair for pair in self.rankings if not gone(pair[0]))
        if self.prompt is not None and gone(self.prompt[0]):
            taken.append(self.prompt[0])
            self.prompt = None
        for row in reversed(range(len(self.writing))):
            if gone(self.writing[row].job):
                taken.append(self._leave(row))
        return taken

    def _advance(self) -> None:
        """One piece of the oldest prompt; the next one of the queue where a row will be free for it."""
        if self.prompt is None:
            with self._change:
                if not self.queue or (self.slots.full and not self.queue[0].choices):
                    return
                job = self.queue.popleft()
            try:
                self.prompt = job, self.slots.prompt(job.prompt, job.vectors, self.piece)
            except Exception as error:  # one job's failure is that job's
                self._end(job, failed(error))
                return
        job, prompt = self.prompt
        before = len(prompt.rest)
        try:
            logits = prompt.advance()
            self.counts.prompt_tokens += before - len(prompt.rest)
            if logits is None:
                return
            self.prompt = None
            self._remember(job, prompt)
            if job.choices:
                steps = ranking(self.engine, job.choices, logits, prompt.cache, job.vectors, job.ranking)
                self.rankings.append((job, steps))
                return
            writing = Writing(job, Chooser(job.decoding))
            if ended := self._take(writing, logits[0]):
                self._end(job, ended)
                return
            self.slots.join(prompt.cache, job.vectors)
            self.writing.append(writing)
        except Exception as error:
            self.prompt = None
            self._end(job, failed(error))

    def _remember(self, job: Job, prompt: Prompt) -> None:
        """Keeps what the job's prompt shares with others; of many beginnings the newest."""
        begun, shared = self.engine.begun, job.prompt[: job.shared]
        if shared and prompt.began < len(shared):
            self.engine.remember(shared, job.vectors, prompt.cache)
            del begun[: max(0, len(begun) - self.beginnings)]

    def _rank(self) -> None:
        """One step of the oldest ranking."""
        if not self.rankings:
            return
        job, steps = self.rankings[0]
        try:
            next(steps)
        except StopIteration as end:
            self.rankings.popleft()
            self._end(job, Ranked(end.value))
        except Exception as error:
            self.rankings.popleft()
            self._end(job, failed(error))

    def _step(self) -> None:
        """One token more for every row."""
        if not self.writing:
            return
        try:
            logits = self.slots.step([writing.newest for writing in self.writing])
        except Exception as error:
            rows, self.writing = self.writing, []
            self.slots = slots_of(self.engine, self.rows, self.slots.capacity)
            for writing in rows:
                self._end(writing.job, failed(error))
            return
        self.counts.steps += 1
        self.counts.step_rows += len(self.writing)
        for row in reversed(range(len(self.writing))):  # from the last, since who leaves is replaced by the last
            if ended := self._take(self.writing[row], logits[row]):
                self._end(self._leave(row), ended)

    def _take(self, writing: Writing, logits: Floats) -> Ended | Failed | None:
        """Chooses a row's next token and tells it; how the job ended, if it has."""
        job = writing.job
        try:
            token = writing.choose(logits[None])
            if token in job.stop:
                return Ended("stop")
            writing.newest, writing.written = token, writing.written + 1
            self.counts.new_tokens += 1
            job.tell(Token(token) if job.top is None else _with_logprobs(token, logits, job.top))
        except Exception as error:
            return failed(error)
        room = self.slots.positions(job.prompt) + writing.written < self.slots.capacity
        return None if writing.written < job.limit and room else Ended("length")

    def _leave(self, row: int) -> Job:
        gone = self.writing[row]
        self.slots.leave(row)
        self.writing[row] = self.writing[-1]
        self.writing.pop()
        return gone.job


def _with_logprobs(token: int, logits: Floats, top: int) -> Token:
    normaliser = float(log_sum_exp(logits))
    likeliest = np.argsort(-logits, kind="stable")[:top]
    shares = tuple((int(i), float(logits[i]) - normaliser) for i in likeliest)
    return Token(token, float(logits[token]) - normaliser, shares)
