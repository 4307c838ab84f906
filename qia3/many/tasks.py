"""Many tasks: one after the other here, or distributed over an executor's workers; one failure does not affect the
others.

Finished tasks are kept in WORK and used the next time, so the same command resumes after any interruption.
"""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, as_completed
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from qia3.errors import Interrupted, WorkerError, first_line
from qia3.ia3.adapted import AdaptedBase
from qia3.many.executors import opened
from qia3.many.outcome import Outcome
from qia3.many.pool import Processes
from qia3.many.work import TOKEN, Order, carry_out, train_jobs
from qia3.progress import forget_the_stop, say
from qia3.storage import writing
from qia3.train import processes
from qia3.train.task import Job, Trained

DONE = "record.json"


def train_here(
    adapted: AdaptedBase, jobs: Sequence[Job], work: Path, scored: bool, together: int = 1
) -> tuple[list[Outcome], list[Trained]]:
    """Trains in this process. Raises Interrupted and errors that end everything; for a single task, any error."""
    raises = len(jobs) == 1 or processes.count() > 1 or bool(os.environ.get("QIA3_TRACEBACK"))
    return train_jobs(adapted, jobs, work, scored, together, raises)


def train_spread(name: str, orders: Sequence[Order], work: Path) -> list[Outcome]:
    """Trains over the executor `name`, reporting tasks as they end. Raises ConfigError if there is no such executor,
    and Interrupted.
    """
    outcomes: dict[str, Outcome] = {}
    names = [job.task.name for order in orders for job in order.jobs]
    with _told_apart(work, orders[0].token), opened(name) as executor:
        futures = {executor.submit(carry_out, order): order for order in orders}
        try:
            for future in as_completed(futures):
                for outcome in _outcomes(future, futures.pop(future)):
                    _receive(outcome, work / outcome.task)
                    outcomes[outcome.task] = outcome
                    say(f"{told(outcome)} ({len(outcomes)} of {len(names)})")
                del future  # as long as it is referenced here, dask recomputes what a dead worker held
        except KeyboardInterrupt:
            _stop(executor, list(futures))
    done = sum(outcome.record is not None for outcome in outcomes.values())
    if len(outcomes) < len(names) or any(outcome.stopped for outcome in outcomes.values()):
        raise Interrupted(f"stopped: {done} of {len(names)} tasks are trained; run the same command to resume")
    return [outcomes[name] for name in names]


def check_failures(outcomes: Sequence[Outcome], work: Path) -> None:
    """Raises WorkerError that names each task that failed, with the reason."""
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    if not failed:
        return
    for outcome in failed if len(failed) > 1 else ():
        say(told(outcome))
    many = f"{len(failed)} of {len(outcomes)} tasks failed"
    reasons = "; ".join(f"{outcome.task}: {outcome.failure}" for outcome in failed)
    raise WorkerError(
        f"{many} (the others are kept in {work}): {reasons}" if len(outcomes) > 1 else str(failed[0].failure)
    )


def told(outcome: Outcome) -> str:
    """One line about one task."""
    if (record := outcome.record) is None:
        return f"{outcome.task}: {outcome.failure}"
    how = "already trained, kept" if outcome.kept else f"{record.steps} steps in {record.seconds:.0f} s"
    scores = "" if outcome.scores is None else f", {100 * outcome.scores.after:.1f} % of {outcome.scores.n} test lines"
    return f"{outcome.task}: {how}, loss {record.final_loss:.3g}{scores}"


def _outcomes(future: Future[list[Outcome]], order: Order) -> list[Outcome]:
    """The outcomes of a future; if it raised, failures with the reason."""
    try:
        return future.result()
    except Exception as error:  # each library has its own error for a lost worker
        return [Outcome(job.task.name, failure=first_line(error)) for job in order.jobs]


def _stop(executor: Executor, futures: Sequence[Future[Any]]) -> None:
    """Waiting tasks are never started. Our own processes save a checkpoint and end; signalled again, they end at once.
    Workers of other executors finish their current task, in WORK if they see it.
    """
    forget_the_stop()  # already handled: the next line must not interrupt again
    for future in futures:
        future.cancel()
    if not isinstance(executor, Processes):
        return
    say("stopping every process after its step, with a checkpoint (press again to stop at once)")
    executor.stop()
    try:
        executor.shutdown()
    except KeyboardInterrupt:
        executor.stop(signal.SIGKILL)


def _receive(outcome: Outcome, folder: Path) -> None:
    """Stores files that a worker could not write here; the file that marks it done comes last."""
    for name in sorted(outcome.files, key=lambda name: name == DONE):
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            raise WorkerError(f"a worker sent a file with a name outside {folder}: {name!r}; nothing of it was stored")
        with writing(folder):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(outcome.files[name])


@contextmanager
def _told_apart(work: Path, token: str) -> Iterator[None]:
    """A file by which workers recognise whether their WORK is this one."""
    (work / TOKEN).write_text(token, encoding="utf-8")
    try:
        yield
    finally:
        (work / TOKEN).unlink(missing_ok=True)


def new_token() -> str:
    return uuid.uuid4().hex
