"""A queue of jobs and the thread that works through it, for any kind of model.

The queue has `waiting` places; a job beyond them is refused (Busy), which becomes HTTP status 429. A job that was
cancelled or has timed out is removed before the next turn, wherever it is, and notified. An error in a turn is reported
to every job in it, and the next job is taken.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from qia3.errors import AdapterError, QIA3Error, first_line
from qia3.progress import say
from qia3.runtime.cache import Floats
from qia3.server.jobs import Cause, Ended, Failed, Job, Last

IDLE_SECONDS = 0.5  # interval for checking whether to stop, when nothing runs
TOLD: dict[Cause, str] = {
    "cancelled": "cancelled",
    "late": "it timed out",
    "stopping": "the server is stopping",
    "failed": "it failed",
    "unfit": "the adapter does not fit",
    "broken": "the server failed",
}
MEMORY = 0.1  # weight of the newest job in the running mean of a job's duration


class Busy(QIA3Error):
    """The queue is full; retry after `seconds`."""

    def __init__(self, waiting: int, seconds: float) -> None:
        super().__init__(f"{waiting} requests are already waiting; try again in {seconds:.0f} s")
        self.seconds = seconds


class Stopping(QIA3Error):
    """No more jobs are accepted."""


@dataclass
class Counts:
    """Counts since the start, for the metrics."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    step_rows: int = 0
    finished: dict[str, int] = field(default_factory=dict)  # by how they ended


class Line(ABC):
    """`rows`: how many jobs run at once."""

    def __init__(self, rows: int, waiting: int) -> None:
        self.rows, self.waiting = rows, waiting
        self.queue: deque[Job] = deque()
        self.counts = Counts()
        self._change = threading.Condition()
        self._closing, self._stop_at = False, float("inf")
        self._seconds_a_job = 1.0
        self._thread = threading.Thread(target=self._run, name="qia3-model", daemon=True)

    @property
    @abstractmethod
    def in_use(self) -> int:
        """Rows in use."""

    @abstractmethod
    def _check(self, job: Job) -> None:
        """Raises QIA3Error for a job that can never run."""

    @abstractmethod
    def _turn(self) -> None:
        """One small piece of work: no longer than a new job may wait."""

    @property
    @abstractmethod
    def _busy(self) -> bool:
        """Whether there is work besides the queue."""

    @abstractmethod
    def _take_out(self, gone: Callable[[Job], bool]) -> list[Job]:
        """Removes and returns jobs for which `gone` is true, outside the queue."""

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def submit(self, job: Job) -> None:
        """Puts a job into the queue, from any thread. Raises Busy, Stopping, and QIA3Error for one that can never run."""
        if not job.prompt:
            raise QIA3Error("an empty prompt cannot be run: give it some text")
        self._check(job)
        with self._change:
            if self._closing:
                raise Stopping(TOLD["stopping"])
            if len(self.queue) >= self.waiting:
                raise Busy(len(self.queue), max(1.0, self._seconds_a_job * len(self.queue) / self.rows))
            self.queue.append(job)
            self._change.notify()

    def stop(self, grace: float = 0.0) -> None:
        """Accepts no more jobs, gives current ones `grace` seconds, fails the rest, and ends the thread."""
        with self._change:
            self._closing, self._stop_at = True, time.monotonic() + grace
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._change:
                if not (self.queue or self._busy or self._closing):
                    self._change.wait(IDLE_SECONDS)
                if self._closing and (not (self.queue or self._busy) or time.monotonic() > self._stop_at):
                    break
            try:
                self._drop(lambda job: job.cancelled.is_set() or job.late)
                self._turn()
            except Exception as error:  # not the error of a single job: all jobs in the turn fail, and work goes on
                say(f"error: a turn of the server failed: {type(error).__name__}: {first_line(error)}")
                self._drop(lambda job: True, "broken")
        self._drop(lambda job: True)

    def _drop(self, gone: Callable[[Job], bool], otherwise: Cause = "stopping") -> None:
        """Removes every job for which `gone` is true and tells it why: it was cancelled, timed out, or `otherwise`."""
        with self._change:
            dropped = [job for job in self.queue if gone(job)]
            self.queue = deque(job for job in self.queue if not gone(job))
        for job in dropped + self._take_out(gone):
            cause: Cause = "cancelled" if job.cancelled.is_set() else "late" if job.late else otherwise
            self._end(job, Failed(TOLD[cause], cause))

    def _end(self, job: Job, event: Last | Failed) -> None:
        """Sends a job its last event, once nothing of it is left here."""
        how = event.reason if isinstance(event, Ended | Failed) else type(event).__name__.lower()
        self.counts.finished[how] = self.counts.finished.get(how, 0) + 1
        if not isinstance(event, Failed):
            self._seconds_a_job += MEMORY * (time.monotonic() - job.submitted - self._seconds_a_job)
        job.tell(event)


def check_numbers(logits: Floats) -> None:
    """Raises AdapterError if there are values that are not numbers: what was multiplied by the vectors has overflowed."""
    if np.isnan(logits).any():
        raise AdapterError(
            "the model's values overflow with this adapter: its vectors are too large, so train it again with a lower "
            "learning rate"
        )


def failed(error: Exception) -> Failed:
    """The failure as reported to the request; a bug of qia3 is also printed for the operator."""
    if isinstance(error, QIA3Error):
        return Failed(first_line(error), "unfit" if isinstance(error, AdapterError) else "failed")
    say(f"error: a request failed: {type(error).__name__}: {first_line(error)}")
    return Failed(f"the server failed: {type(error).__name__}: {first_line(error)}", "broken")
