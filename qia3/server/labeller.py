"""An encoder's jobs: all waiting texts, up to `rows`, form one run, each with its own vectors and head.

A text takes one run, so rows do not join or leave: texts that arrive during a run are in the next one. Labels of texts,
labels of words and embeddings are different outputs of the same graph and run separately.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from qia3.errors import AdapterError, QIA3Error
from qia3.runtime.adapters import in_rows
from qia3.runtime.cache import Floats
from qia3.runtime.encoder import Encoder
from qia3.server.jobs import Embedded, Failed, Job, Last, Marked, Ranked
from qia3.server.line import Line, check_numbers, failed


class Labeller(Line):
    """Owns the engine from `start` until `stop` has returned."""

    def __init__(self, engine: Encoder, rows: int = 8, waiting: int = 64) -> None:
        super().__init__(rows, waiting)
        self.engine = engine
        self.running: list[Job] = []

    @property
    def in_use(self) -> int:
        return len(self.running)

    @property
    def _busy(self) -> bool:
        return False  # a run ends with its turn

    def _check(self, job: Job) -> None:
        if len(job.prompt) > self.engine.context_length:
            raise QIA3Error(
                f"{len(job.prompt)} tokens do not fit the bundle's context of {self.engine.context_length}; shorten the text"
            )
        if not job.embed and not job.choices:
            raise QIA3Error("an encoder cannot generate text; it labels or embeds one")

    def _take_out(self, gone: Callable[[Job], bool]) -> list[Job]:
        return []

    def _turn(self) -> None:
        with self._change:
            first = self.queue[0] if self.queue else None
            alike = [job for job in self.queue if first is not None and _output(job) == _output(first)][: self.rows]
            for job in alike:
                self.queue.remove(job)
        if not alike:
            return
        self.running = alike
        try:
            found = self._run_together(alike)
        except Exception as error:
            for job in alike:
                self._end(job, failed(error))
            return
        finally:
            self.running = []
        self.counts.steps += 1
        self.counts.step_rows += len(alike)
        for job, row in zip(alike, found, strict=True):
            self.counts.prompt_tokens += len(job.prompt)
            try:
                event: Last | Failed = _event(job, row)
            except AdapterError as error:  # fails this job only
                event = failed(error)
            self._end(job, event)

    def _run_together(self, jobs: list[Job]) -> Floats:
        one = all(job.vectors is jobs[0].vectors for job in jobs)
        width = self.engine.bundle.architecture.hidden_size
        vectors = jobs[0].vectors if one else in_rows([dict(job.vectors) for job in jobs], width)
        runs = {"words": self.engine.token_logits, "text": self.engine.embed, "labels": self.engine.logits}
        return runs[_output(jobs[0])]([job.prompt for job in jobs], vectors)


def _output(job: Job) -> Literal["words", "text", "labels"]:
    return "words" if job.places else "text" if job.embed else "labels"


def _event(job: Job, row: Floats) -> Embedded | Marked | Ranked:
    """What a row gives to its job. Raises AdapterError if that has no numbers."""
    own = row[list(job.places), : len(job.choices)] if job.places else row if job.embed else row[: len(job.choices)]
    check_numbers(own)
    if job.places:
        return Marked(own)
    return Embedded(own) if job.embed else Ranked(own.astype(np.float64))
