"""What a worker does: gets the base for its tasks, trains one, and reports how it ended.

An Order has everything that determines an adapter: examples, settings, seeds. So a worker needs only the base, not the
build file or its data. The base is identified by its fingerprint: it is taken from the worker machine's cache, whatever
it was made from there, or made as the build file says, and refused if the fingerprint differs.

    the worker sees the caller's WORK            it works in WORK/TASK: a task that another worker began resumes from
                                                 its checkpoint, and a finished one is kept
    it does not (another machine's disk)         the finished files are sent back with the outcome
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qia3.base.load import Asked, same_base
from qia3.console import complaint
from qia3.errors import Interrupted, StorageError, first_line
from qia3.ia3.adapted import AdaptedBase
from qia3.many.outcome import Outcome, note
from qia3.progress import counting, is_main, muted, say
from qia3.storage import alone
from qia3.train import processes
from qia3.train.apart import why_apart
from qia3.train.compute import choose_compute
from qia3.train.run import computing_for
from qia3.train.scored import kept_scores
from qia3.train.task import Job, Trained, train_task
from qia3.train.together import Lane, Together, apart, pass_of

TOKEN, FAILURE = ".run", "failure.txt"
MADE = ("plan.json", "log.jsonl", "adapter/*", "scores.json", "record.json")  # the last one marks it as done
_alone = threading.Lock()  # a base holds the vectors of one task at a time, whatever threads a cluster uses
_held: dict[tuple[str, bool], AdaptedBase] = {}


@dataclass(frozen=True)
class Order:
    """Tasks to train on the base `fingerprint`, which `asked` makes (`reference`: its name in adapters).

    `work` is the caller's folder, where the file TOKEN contains `token`. `scored`: also evaluate on the test lines.
    """

    asked: Asked
    reference: str
    queries: bool
    fingerprint: str
    jobs: tuple[Job, ...]
    work: Path
    token: str
    scored: bool


def carry_out(order: Order) -> list[Outcome]:
    """Runs in a worker: whatever happens becomes an outcome per job, unless the process dies."""
    with _alone, muted():
        try:
            adapted = _base(order)
            outcomes, _ = train_jobs(adapted, order.jobs, order.work, order.scored, len(order.jobs))
        except Exception as error:
            told = (complaint(error) or (first_line(error), 0))[0]
            stopped = isinstance(error, Interrupted)
            return [Outcome(job.task.name, failure=told, stopped=stopped) for job in order.jobs]
        token = order.work / TOKEN
        seen = token.is_file() and token.read_text(encoding="utf-8") == order.token
        return [o if seen or o.failure else replace(o, files=_made(order.work / o.task)) for o in outcomes]


def train_jobs(
    adapted: AdaptedBase, jobs: Sequence[Job], work: Path, scored: bool, together: int = 1, raises: bool = False
) -> tuple[list[Outcome], list[Trained]]:
    """Trains all jobs, up to `together` in one pass if possible. Raises Interrupted and errors that end everything."""
    found: dict[str, tuple[Outcome, Trained | None]] = {}
    for group in _groups(adapted, jobs, together):
        if len(group) > 1:
            found |= _in_one_pass(adapted, group, work, scored, together, raises)
        else:
            found[group[0].task.name] = attempt(adapted, group[0], work, scored, raises)
    ended = [found[job.task.name] for job in jobs]
    return [outcome for outcome, _ in ended], [trained for _, trained in ended if trained is not None]


def _groups(adapted: AdaptedBase, jobs: Sequence[Job], together: int) -> list[list[Job]]:
    """Groups of jobs that can share passes, in order; prints why others cannot."""
    if together < 2 or len(jobs) < 2:
        return [[job] for job in jobs]
    if (reason := why_apart(adapted)) is not None:
        say(f"tasks train one after the other: {reason}")
        return [[job] for job in jobs]
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        if (reason := apart(job.settings)) is not None:
            say(f"{job.task.name} trains by itself: {reason}")
        groups.setdefault(pass_of(job.settings) if reason is None else job.task.name, []).append(job)
    return list(groups.values())


def _in_one_pass(
    adapted: AdaptedBase, jobs: Sequence[Job], work: Path, scored: bool, count: int, raises: bool
) -> dict[str, tuple[Outcome, Trained | None]]:
    """At most `count` at a time: a finished one makes room for the next. Scores are computed afterwards, one by one."""
    longest = max(job.settings.max_length for job in jobs)
    settings = jobs[0].settings.model_copy(update={"max_length": longest})
    model, waiting = adapted.model, deque(jobs)
    found: dict[str, tuple[Outcome, Trained | None]] = {}
    together = Together(model, adapted.scaled, min(count, len(jobs)), settings)
    total, done = sum(job.settings.steps for job in jobs), 0

    def body(lane: Lane) -> None:
        while waiting and not together.flag.raised:
            job = waiting.popleft()
            found[job.task.name] = attempt(adapted, job, work, False, raises, lane)

    dtype = choose_compute(settings.compute)
    with (
        computing_for(model, dtype, settings),
        together.flag.listening(),
        counting(f"{len(jobs)} tasks", total, "steps") as tell,
    ):

        def told(more: int, note: str) -> None:
            nonlocal done
            done += more
            tell(done, note)

        together.told = told
        together.work(body)
    if waiting:
        raise Interrupted(f"stopped with {len(waiting)} tasks not started; run the same command to resume")
    for job in jobs if scored else ():
        outcome, trained = found[job.task.name]
        if trained is not None:
            scores = kept_scores(adapted, job, trained, work / job.task.name)
            found[job.task.name] = replace(outcome, scores=scores), trained
    return found


def attempt(
    adapted: AdaptedBase, job: Job, work: Path, scored: bool, raises: bool = False, lane: Lane | None = None
) -> tuple[Outcome, Trained | None]:
    """Trains one task, on a `lane` among others or by itself. A failure becomes its outcome unless `raises`.

    Raises Interrupted, StorageError and MemoryError, which end everything.
    """
    name, folder, begun = job.task.name, work / job.task.name, False

    def begins(step: int) -> None:
        nonlocal begun
        begun = True
        if is_main():
            note(work, name, "begins", step)

    try:
        with _alone_in(folder):
            scaled = adapted.scaled if lane is None else lane.scaled
            trained = train_task(adapted.base, scaled, job, folder, begins, lane)
            if is_main():
                note(work, name, "ends" if begun else "kept", trained.record.steps)
            scores = kept_scores(adapted, job, trained, folder) if scored else None
    except Interrupted:
        if is_main():
            note(work, name, "stops")
        raise
    except (StorageError, MemoryError):
        raise
    except Exception as error:
        if raises:
            raise
        reason = _told(error, folder)
        if begun:  # a failure before training starts is not a run
            note(work, name, "fails", reason=reason)
        return Outcome(name, failure=reason), None
    return Outcome(name, trained.record, scores, kept=not begun), trained


def _alone_in(folder: Path) -> AbstractContextManager[None]:
    """Lets workers with the same task work one after the other; processes that share it (accelerate) work together."""
    return alone(folder, say) if processes.count() == 1 else nullcontext()


def _base(order: Order) -> AdaptedBase:
    """The base, kept for the next task of this process. Raises BaseModelError."""
    key = (order.fingerprint, order.queries)
    if key not in _held:
        _held.clear()
        base = replace(same_base(order.asked, order.fingerprint), reference=order.reference)
        _held[key] = AdaptedBase.of(base, order.queries)
    return _held[key]


def _told(error: Exception, folder: Path) -> str:
    """An error in one line; a bug of qia3 also writes its traceback."""
    if (told := complaint(error)) is not None:
        return told[0]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FAILURE
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return f"this is a bug of qia3, please report it with {path}: {type(error).__name__}: {first_line(error)}"


def _made(folder: Path) -> Mapping[str, bytes]:
    """The files that were made, by path in the folder."""
    files = [file for pattern in MADE for file in sorted(folder.glob(pattern))]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
