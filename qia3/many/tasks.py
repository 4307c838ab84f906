"""Many tasks: one after the other here, or spread over an executor's workers; one that fails takes no other with it.

What is done is kept in WORK and taken as it is the next time, so the same command goes on after whatever stopped it.
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
    """In this process. Raises Interrupted and what ends all; of one task alone whatever it raises."""
    raises = len(jobs) == 1 or processes.count() > 1 or bool(os.environ.get("QIA3_TRACEBACK"))
    return train_jobs(adapted, jobs, work, scored, together, raises)


def train_spread(name: str, orders: Sequence[Order], work: Path) -> list[Outcome]:
    """Over the executor `name`, told as they end. Raises ConfigError, where there is none, and Interrupted."""
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
                del future  # dask computes anew what a dead worker held, for as long as somebody here holds on to it
        except KeyboardInterrupt:
            _stop(executor, list(futures))
    done = sum(outcome.record is not None for outcome in outcomes.values())
    if len(outcomes) < len(names) or any(outcome.stopped for outcome in outcomes.values()):
        raise Interrupted(f"stopped: {done} of {len(names)} tasks are trained; run the same command to go on")
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
        f"{many}, the others are kept in {work}: {reasons}" if len(outcomes) > 1 else str(failed[0].failure)
    )


def told(outcome: Outcome) -> str:
    """One line of one task."""
    if (record := outcome.record) is None:
        return f"{outcome.task}: {outcome.failure}"
    how = "trained before, kept" if outcome.kept else f"{record.steps} steps in {record.seconds:.0f} s"
    scores = "" if outcome.scores is None else f", {100 * outcome.scores.after:.1f} % of {outcome.scores.n} test lines"
    return f"{outcome.task}: {how}, loss {record.final_loss:.3g}{scores}"


def _outcomes(future: Future[list[Outcome]], order: Order) -> list[Outcome]:
    """What came back; where nothing did, why."""
    try:
        return future.result()
    except Exception as error:  # each library says in its own way that a worker is gone
        return [Outcome(job.task.name, failure=first_line(error)) for job in order.jobs]


def _stop(executor: Executor, futures: Sequence[Future[Any]]) -> None:
    """What waits is never begun. Our processes save a checkpoint each and end; once more, and they end at once. Workers
    of others finish the task that they have in hand, in WORK where they see it.
    """
    forget_the_stop()  # it is being heeded: the next line need not interrupt again
    for future in futures:
        future.cancel()
    if not isinstance(executor, Processes):
        return
    say("stopping every process after its step, with a checkpoint (once more to stop at once)")
    executor.stop()
    try:
        executor.shutdown()
    except KeyboardInterrupt:
        executor.stop(signal.SIGKILL)


def _receive(outcome: Outcome, folder: Path) -> None:
    """Files that a worker could not leave here; what says that it is done comes last."""
    for name in sorted(outcome.files, key=lambda name: name == DONE):
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            raise WorkerError(f"a worker gave a file a name that is no place in {folder}: {name!r}")
        with writing(folder):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(outcome.files[name])


@contextmanager
def _told_apart(work: Path, token: str) -> Iterator[None]:
    """A file by which workers see whether their WORK is this one."""
    (work / TOKEN).write_text(token, encoding="utf-8")
    try:
        yield
    finally:
        (work / TOKEN).unlink(missing_ok=True)


def new_token() -> str:
    return uuid.uuid4().hex
