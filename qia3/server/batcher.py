"""The thread that runs the model: a queue, one prompt at a time in pieces, and the rows that write.

A turn drops what was cancelled or is late, runs one piece of the oldest prompt, one step of the oldest ranking, and one
step of all rows that write. So a long prompt costs the rows one piece a turn and never more, and a request that comes in
begins to write while others are at it.

    queue  e f g      prompt  d: [####....]      rankings  c      rows  a b

Who waits: the queue has `waiting` places and a job beyond them is refused (Busy), which is a server's 429. What one job
does wrong is told to that job; what breaks a step breaks every row of it, and the next job finds new rows.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import numpy as np

from qia3.errors import QIA3Error, first_line
from qia3.progress import say
from qia3.runtime.cache import Floats
from qia3.runtime.decoding import Chooser
from qia3.runtime.engine import Engine
from qia3.runtime.score import Scores, log_sum_exp, ranking
from qia3.runtime.slots import PIECE, Prompt, Slots
from qia3.server.jobs import Cause, Ended, Failed, Job, Ranked, Token

IDLE_SECONDS = 0.5  # between looks at whether to stop, when nothing runs
TOLD: dict[Cause, str] = {"cancelled": "cancelled", "late": "its time was up", "stopping": "the server stops"}
MEMORY = 0.1  # share of the newest job in the running mean of what a job takes


class Busy(QIA3Error):
    """The queue is full; `seconds` until it is worth asking again."""

    def __init__(self, waiting: int, seconds: float) -> None:
        super().__init__(f"{waiting} requests are waiting already; try again in {seconds:.0f} s")
        self.seconds = seconds


class Stopping(QIA3Error):
    """No more jobs are taken."""


@dataclass
class Writing:
    """A job that has a row. `newest` is its last token, which the next step runs."""

    job: Job
    choose: Chooser
    newest: int = 0
    written: int = 0


@dataclass
class Counts:
    """Since the start, for the metrics."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    step_rows: int = 0
    finished: dict[str, int] = field(default_factory=dict)  # by how they ended


class Batcher:
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
        self.engine, self.waiting, self.piece, self.beginnings = engine, waiting, piece, beginnings
        self.slots = Slots(engine, rows, capacity)
        self.counts = Counts()
        self.queue: deque[Job] = deque()
        self.prompt: tuple[Job, Prompt] | None = None
        self.rankings: deque[tuple[Job, Generator[None, None, Scores]]] = deque()
        self.rows: list[Writing] = []
        self._change = threading.Condition()
        self._closing, self._stop_at = False, float("inf")
        self._seconds_a_job = 1.0
        self._thread = threading.Thread(target=self._run, name="qia3-model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def submit(self, job: Job) -> None:
        """Puts a job into the queue, from any thread. Raises Busy, and QIA3Error for one that can never run."""
        if not job.prompt:
            raise QIA3Error("an empty prompt cannot be run: give it some text")
        longest = len(job.prompt) + max((len(c) for c in job.choices), default=1)
        if longest > self.slots.capacity:
            raise QIA3Error(
                f"{longest} tokens do not fit the {self.slots.capacity} positions of a row; shorten the text"
            )
        with self._change:
            if self._closing:
                raise Stopping(TOLD["stopping"])
            if len(self.queue) >= self.waiting:
                raise Busy(len(self.queue), max(1.0, self._seconds_a_job * len(self.queue) / self.slots.rows))
            self.queue.append(job)
            self._change.notify()

    def stop(self, grace: float = 0.0) -> None:
        """Takes no more jobs, gives those that it has `grace` seconds, tells the rest, and ends the thread."""
        with self._change:
            self._closing, self._stop_at = True, time.monotonic() + grace
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def busy(self) -> bool:
        return bool(self.queue or self.prompt or self.rankings or self.rows)

    def _run(self) -> None:
        while True:
            with self._change:
                if not self.busy and not self._closing:
                    self._change.wait(IDLE_SECONDS)
                if self._closing and (not self.busy or time.monotonic() > self._stop_at):
                    break
            try:
                self._turn()
            except Exception as error:  # of no job alone: all of them are told, and the next one is taken
                say(f"error: the server's turn failed: {type(error).__name__}: {first_line(error)}")
                self._drop(lambda job: True)
        self._drop(lambda job: True)

    def _turn(self) -> None:
        self._drop(lambda job: job.cancelled.is_set() or job.late)
        self._advance()
        self._rank()
        self._step()

    def _drop(self, gone: Callable[[Job], bool]) -> None:
        """Takes out every job that is to go, wherever it is, and tells it."""
        with self._change:
            dropped = [job for job in self.queue if gone(job)]
            self.queue = deque(job for job in self.queue if not gone(job))
        if self.prompt is not None and gone(self.prompt[0]):
            dropped.append(self.prompt[0])
            self.prompt = None
        dropped += [job for job, _ in self.rankings if gone(job)]
        self.rankings = deque(pair for pair in self.rankings if not gone(pair[0]))
        for row in reversed(range(len(self.rows))):
            if gone(self.rows[row].job):
                dropped.append(self._leave(row))
        for job in dropped:
            cause: Cause = "cancelled" if job.cancelled.is_set() else "late" if job.late else "stopping"
            self._end(job, Failed(TOLD[cause], cause))

    def _advance(self) -> None:
        """One piece of the oldest prompt; the next one of the queue where a row will be free for it."""
        if self.prompt is None:
            with self._change:
                if not self.queue or (self.slots.full and not self.queue[0].choices):
                    return
                job = self.queue.popleft()
            try:
                self.prompt = job, Prompt(self.engine, job.prompt, job.vectors, self.piece)
            except Exception as error:  # one job's failure is that job's
                self._end(job, _failed(error))
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
            self.rows.append(writing)
        except Exception as error:
            self.prompt = None
            self._end(job, _failed(error))

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
            self._end(job, _failed(error))

    def _step(self) -> None:
        """One token more for every row."""
        if not self.rows:
            return
        try:
            logits = self.slots.step([writing.newest for writing in self.rows])
        except Exception as error:
            rows, self.rows = self.rows, []
            self.slots = Slots(self.engine, self.slots.rows, self.slots.capacity)
            for writing in rows:
                self._end(writing.job, _failed(error))
            return
        self.counts.steps += 1
        self.counts.step_rows += len(self.rows)
        for row in reversed(range(len(self.rows))):  # from the last, since who leaves is replaced by the last
            if ended := self._take(self.rows[row], logits[row]):
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
            return _failed(error)
        room = len(job.prompt) + writing.written < self.slots.capacity
        return None if writing.written < job.limit and room else Ended("length")

    def _leave(self, row: int) -> Job:
        gone = self.rows[row]
        self.slots.leave(row)
        self.rows[row] = self.rows[-1]
        self.rows.pop()
        return gone.job

    def _end(self, job: Job, event: Ended | Ranked | Failed) -> None:
        """Tells a job its last event, when nothing of it is left here."""
        how = event.reason if isinstance(event, Ended | Failed) else "ranked"
        self.counts.finished[how] = self.counts.finished.get(how, 0) + 1
        if not isinstance(event, Failed):
            self._seconds_a_job += MEMORY * (time.monotonic() - job.submitted - self._seconds_a_job)
        job.tell(event)


def _failed(error: Exception) -> Failed:
    """What a request is told of its own failure; a fault of ours is a line for whoever runs the server, too."""
    if not isinstance(error, QIA3Error):
        say(f"error: a request failed: {type(error).__name__}: {first_line(error)}")
    return Failed(first_line(error), "failed")


def _with_logprobs(token: int, logits: Floats, top: int) -> Token:
    normaliser = float(log_sum_exp(logits))
    likeliest = np.argsort(-logits, kind="stable")[:top]
    shares = tuple((int(i), float(logits[i]) - normaliser) for i in likeliest)
    return Token(token, float(logits[token]) - normaliser, shares)
