"""What a worker does: it takes the base that the tasks are for, trains one, and says how that ended.

An Order has all that decides an adapter: examples, settings, seeds. So a worker needs the base and nothing else, not the
build file or its data. The base is told by its fingerprint: taken from the cache of the worker's machine, whatever it
was made from there, or made as the build file says, and refused where it comes out as another one.

    the worker sees WORK of the one who asks     it works in WORK/TASK: a task that another began goes on from its
                                                 checkpoint, and one that another finished is kept as it is
    it does not (another machine's disk)         the finished files travel back with the outcome
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
MADE = ("plan.json", "log.jsonl", "adapter/*", "scores.json", "record.json")  # the last one means: done
_alone = threading.Lock()  # a base wears the vectors of one task at a time, whatever a cluster does with its threads
_held: dict[tuple[str, bool], AdaptedBase] = {}


@dataclass(frozen=True)
class Order:
    """Tasks to train on the base `fingerprint`, which `asked` makes (`reference`: what adapters call it).

    `work` is the folder of the one who asks, where the file TOKEN says `token`. `scored`: on the test lines, too.
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
    """In a worker: whatever happens is an outcome for each job, but for the end of the process."""
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
    """All of them, `together` in one pass where they can be. Raises Interrupted and what ends all."""
    found: dict[str, tuple[Outcome, Trained | None]] = {}
    for group in _groups(adapted, jobs, together):
        if len(group) > 1:
            found |= _in_one_pass(adapted, group, work, scored, together, raises)
        else:
            found[group[0].task.name] = attempt(adapted, group[0], work, scored, raises)
    ended = [found[job.task.name] for job in jobs]
    return [outcome for outcome, _ in ended], [trained for _, trained in ended if trained is not None]


def _groups(adapted: AdaptedBase, jobs: Sequence[Job], together: int) -> list[list[Job]]:
    """Those that can share passes, in the order of the first of each; says why others do not."""
    if together < 2 or len(jobs) < 2:
        return [[job] for job in jobs]
    if (reason := why_apart(adapted)) is not None:
        say(f"one task after the other: {reason}")
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
    """At most `count` at a time: one that is done makes room for the next. Scores come after, one by one."""
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
        raise Interrupted(f"stopped with {len(waiting)} tasks not begun; run the same command to go on")
    for job in jobs if scored else ():
        outcome, trained = found[job.task.name]
        if trained is not None:
            scores = kept_scores(adapted, job, trained, work / job.task.name)
            found[job.task.name] = replace(outcome, scores=scores), trained
    return found


def attempt(
    adapted: AdaptedBase, job: Job, work: Path, scored: bool, raises: bool = False, lane: Lane | None = None
) -> tuple[Outcome, Trained | None]:
    """One task, among others on a `lane` or by itself, whose failure is its own unless it `raises`.

    Raises Interrupted, StorageError and MemoryError, which end all.
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
        if begun:  # what fails before it begins is no run
            note(work, name, "fails", reason=reason)
        return Outcome(name, failure=reason), None
    return Outcome(name, trained.record, scores, kept=not begun), trained


def _alone_in(folder: Path) -> AbstractContextManager[None]:
    """Of workers that have the same task, one after the other; processes that share it (accelerate) work together."""
    return alone(folder, say) if processes.count() == 1 else nullcontext()


def _base(order: Order) -> AdaptedBase:
    """Kept for the next task of this process. Raises BaseModelError."""
    key = (order.fingerprint, order.queries)
    if key not in _held:
        _held.clear()
        base = replace(same_base(order.asked, order.fingerprint), reference=order.reference)
        _held[key] = AdaptedBase.of(base, order.queries)
    return _held[key]


def _told(error: Exception, folder: Path) -> str:
    """In one line; a fault of ours leaves its traceback."""
    if (told := complaint(error)) is not None:
        return told[0]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FAILURE
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return f"a defect of qia3, please report it with {path}: {type(error).__name__}: {first_line(error)}"


def _made(folder: Path) -> Mapping[str, bytes]:
    """What was made, by the paths in the folder."""
    files = [file for pattern in MADE for file in sorted(folder.glob(pattern))]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
