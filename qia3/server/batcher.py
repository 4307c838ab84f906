"""A decoder's jobs: one prompt at a time, in pieces, and the rows that generate and rank.

A turn runs one piece of the oldest prompt, and one step of all rows. So a long prompt delays the rows by only one piece
per turn, and a new request starts to generate while others are running.

queue e f g prompt d: [####....] rows a b c c c (a and b generate, c is ranked in three rows)

A ranking takes a few free rows, and gives back all but one when a job waits for a row.

An error in one job is reported to that job only. An error in a step fails every row of it; the next job gets new rows.
"""

from __future__ import annotations

from collections.abc import Callable

from qia3.errors import QIA3Error
from qia3.runtime.cache import Floats
from qia3.runtime.engine import Engine
from qia3.runtime.slots import PIECE, AnySlots, Prompt, slots_of
from qia3.runtime.walk import Walk, Walker, shares
from qia3.server.jobs import Job, Ranked
from qia3.server.line import Line, check_numbers, failed
from qia3.server.rows import DONE, Ranking, Row, Writing

AT_ONCE = 4  # rows of one ranking: more would slow down other rows and hardly speed up the ranking


class Batcher(Line):
    """Owns the engine from `start` until `stop` has returned: nothing else may run it meanwhile."""

    def __init__(
        self,
        engine: Engine,
        rows: int = 8,
        capacity: int | None = None,
        waiting: int = 64,
        piece: int = PIECE,
        beginnings: int = 32,
    ) -> None:
        """`beginnings`: number of common prompt prefixes whose caches are kept."""
        super().__init__(rows, waiting)
        self.engine, self.piece, self.beginnings = engine, piece, beginnings
        self.slots: AnySlots = slots_of(engine, rows, capacity)
        self.prompt: tuple[Job, Prompt] | None = None
        self.at: list[Row] = []  # the work of each row in use

    @property
    def in_use(self) -> int:
        return len(self.at)

    @property
    def _busy(self) -> bool:
        return bool(self.prompt or self.at)

    def _check(self, job: Job) -> None:
        longest = self.slots.positions(job.prompt) + max((len(c) for c in job.choices), default=1)
        if max(longest, len(job.prompt)) > self.slots.capacity:
            raise QIA3Error(
                f"{longest} tokens do not fit the {self.slots.capacity} positions of a row; shorten the text"
            )

    def _turn(self) -> None:
        self._give_back()
        self._advance()
        self._step()

    def _take_out(self, gone: Callable[[Job], bool]) -> list[Job]:
        taken: dict[int, Job] = {}
        if self.prompt is not None and gone(self.prompt[0]):
            taken[0] = self.prompt[0]
            self.prompt = None
        for row in reversed(range(len(self.at))):
            job = self.at[row].job
            if gone(job):
                self._leave(row)
                taken[id(job)] = job  # a ranking may have several rows
        return list(taken.values())

    def _give_back(self) -> None:
        """Frees a row of a ranking that has several, if a job waits for one."""
        if self.prompt is not None or not self.queue or not self.slots.full:
            return
        for row in reversed(range(len(self.at))):
            one = self.at[row]
            others = [o for o in self.at if o is not one and o.job is one.job]
            if isinstance(one, Ranking) and others and isinstance(others[0], Ranking):
                one.walker.give(others[0].walker)
                self._leave(row)
                return

    def _advance(self) -> None:
        """Runs one piece of the oldest prompt, or takes the next job from the queue if a row will be free for it."""
        if self.prompt is None:
            with self._change:
                if not self.queue or self.slots.full:
                    return
                job = self.queue.popleft()
            try:
                self.prompt = job, self.slots.prompt(job.prompt, job.vectors, self.piece)
            except Exception as error:  # fails this job only
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
            self._begin(job, prompt, logits)
        except Exception as error:
            self.prompt = None
            self._end(job, failed(error))

    def _begin(self, job: Job, prompt: Prompt, logits: Floats) -> None:
        """Starts the rows of a job whose prompt has been run."""
        check_numbers(logits)
        start = self.slots.positions(job.prompt)
        if not job.choices:
            writing = Writing(job, self.slots.capacity - start)
            ended = writing.take(logits[0])
            self.counts.new_tokens += writing.written
            if ended:
                self._end(job, ended)
            else:
                self._join(writing, prompt)
            return
        walk = Walk(job.choices, logits, job.ranking)
        if not walk.open:
            self._end(job, Ranked(walk.scores))
            return
        free = min(self.rows - len(self.at) - len(self.queue), AT_ONCE) if self.slots.together else 1
        for share in shares(walk.left, max(1, free)):
            self._join(Ranking(job, Walker(walk, share, start)), prompt)

    def _join(self, row: Row, prompt: Prompt) -> None:
        self.slots.join(prompt.cache, row.job.vectors)
        self.at.append(row)

    def _remember(self, job: Job, prompt: Prompt) -> None:
        """Caches the prefix that the job's prompt shares with others; the oldest prefixes are dropped."""
        begun, shared = self.engine.begun, job.prompt[: job.shared]
        if shared and prompt.began < len(shared):
            self.engine.remember(shared, job.vectors, prompt.cache)
            del begun[: max(0, len(begun) - self.beginnings)]

    def _step(self) -> None:
        """Runs one more token in every row."""
        if not self.at:
            return
        try:
            logits = self.slots.step([row.newest for row in self.at])
        except Exception as error:
            jobs, self.at = {id(row.job): row.job for row in self.at}, []
            self.slots = slots_of(self.engine, self.rows, self.slots.capacity)
            for job in jobs.values():
                self._end(job, failed(error))
            return
        self.counts.steps += 1
        self.counts.step_rows += len(self.at)
        rows = reversed(range(len(self.at)))  # from the last, since a leaving row is replaced by the last
        over = {id(ended) for row in rows if (ended := self._take(row, logits[row])) is not None}
        if over:
            self._take_out(lambda job: id(job) in over)  # the other rows of a failed ranking

    def _take(self, number: int, logits: Floats) -> Job | None:
        """Processes one row's logits; returns its job if that has ended."""
        row = self.at[number]
        before, ended = row.written, row.take(logits)
        self.counts.new_tokens += row.written - before
        if ended is not None:
            self._leave(number)
        elif row.back is not None:
            self.slots.back(number, row.back)
        if ended is None or ended == DONE:
            return None
        self._end(row.job, ended)
        return row.job

    def _leave(self, row: int) -> None:
        self.slots.leave(row)
        self.at[row] = self.at[-1]
        self.at.pop()
