"""Processes of this machine that calls are handed to, as `concurrent.futures` has them, and that may die.

A ProcessPoolExecutor breaks where one of its processes is killed (out of memory, mostly), and every call that waits is
lost. Here each process has a thread that talks to it over a pipe. One that dies is started anew, and the call that it
had in hand is made again, up to TRIES times in all:

    submit(call, x) -> queue -> thread 1 -> pipe -> process 1 -> call(x)
                             -> thread 2 -> pipe -> process 2 -> call(y)     dies: a new one, and call(y) once more

A process is started bare (spawn), by itself in its group, so that Ctrl-C in a terminal reaches this program alone. `stop`
tells each to stop as it would be told by hand (SIGTERM), and one whose parent is gone tells itself.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from qia3.errors import WorkerError

T = TypeVar("T")
TRIES = 3
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
NEIGHBOURS = "QIA3_NEIGHBOURS"  # how many processes share the machine's memory (qia3.train.processes)


class Stopped(WorkerError):
    """The call was in hand, or waited, when all was stopped."""


class Processes(Executor):
    """`count` of them, each with `threads` for its arithmetic."""

    def __init__(self, count: int, threads: int) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]
        self._calls, self._stopped, self._lock = queue.SimpleQueue(), False, threading.Lock()
        self._context = multiprocessing.get_context("spawn")
        self._limits = dict.fromkeys(THREADS, str(threads)) | {NEIGHBOURS: str(count)}
        self._running: set[BaseProcess] = set()
        self._talkers = [threading.Thread(target=self._talk, daemon=True) for _ in range(count)]
        for talker in self._talkers:
            talker.start()

    def submit(self, call: Callable[..., T], /, *given: Any, **named: Any) -> Future[T]:
        """`call` is importable by its name, and takes what can be pickled."""
        if named:
            raise TypeError("arguments are given by position")
        future: Future[T] = Future()
        self._calls.put((future, call, given))
        return future

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Tells every process, and takes no more calls; what waits ends in Stopped."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid or 0, number)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Processes end when there are no more calls."""
        while cancel_futures and not self._calls.empty():
            if (waiting := self._calls.get()) is not None:
                waiting[0].cancel()
        for _ in self._talkers:
            self._calls.put(None)
        for talker in self._talkers if wait else ():
            talker.join()

    def _talk(self) -> None:
        process, pipe = None, None
        while (waiting := self._calls.get()) is not None:
            future, call, given = waiting
            if not future.set_running_or_notify_cancel():
                continue
            for _ in range(TRIES):
                if process is None or pipe is None:
                    process, pipe = self._start()
                answered = None if process is None or pipe is None else _asked(pipe, call, given)
                if answered is not None or self._stopped:
                    break
                how, process, pipe = self._ended(process), None, None
            if answered is not None:
                result, error = answered
                future.set_result(result) if error is None else future.set_exception(error)
            elif self._stopped:
                future.set_exception(Stopped("it was stopped"))
            else:
                future.set_exception(WorkerError(f"its process died {TRIES} times ({how}): out of memory, perhaps"))
        if pipe is not None:
            pipe.close()
        self._ended(process)

    def _start(self) -> tuple[BaseProcess | None, Connection | None]:
        """None where all was stopped meanwhile."""
        with self._lock:
            if self._stopped:
                return None, None
            pipe, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs, self._limits), daemon=True)
            process.start()
            self._running.add(process)
        theirs.close()  # so that the pipe ends when the process does
        return process, pipe

    def _ended(self, process: BaseProcess | None) -> str:
        """Waits for its end, and says how it came."""
        if process is None:
            return ""
        process.join()
        with self._lock:
            self._running.discard(process)
        code = process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _asked(pipe: Connection, call: Callable[..., Any], given: tuple[Any, ...]) -> tuple[Any, Exception | None] | None:
    """What the process answers; None where it died."""
    try:
        pipe.send((call, given))
        answered: tuple[Any, Exception | None] = pipe.recv()
    except (EOFError, OSError):
        return None
    except Exception as error:  # what cannot be pickled
        return None, error
    return answered


def _serve(pipe: Connection, limits: Mapping[str, str]) -> None:
    """A process: it answers until the pipe ends. What it calls is imported after its threads are counted."""
    if hasattr(os, "setsid"):
        os.setsid()
    os.environ |= limits
    threading.Thread(target=_watch_parent, daemon=True).start()
    while True:
        try:
            call, given = pipe.recv()
            answer: tuple[Any, Exception | None] = call(*given), None
        except (EOFError, BrokenPipeError):
            return
        except Exception as error:
            answer = None, error
        pipe.send(answer)


def _watch_parent() -> None:
    """A parent that was killed cannot say so."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
