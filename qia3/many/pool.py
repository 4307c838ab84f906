"""A pool of local processes that may die, as a `concurrent.futures` Executor.

A ProcessPoolExecutor breaks if one of its processes is killed (usually for lack of memory), and every waiting call is
lost. Here each process has a thread that talks to it over a pipe. If a process dies, a new one is started and its call
is repeated, up to TRIES times in all:

    submit(call, x) -> queue -> thread 1 -> pipe -> process 1 -> call(x)
                             -> thread 2 -> pipe -> process 2 -> call(y)     dies: a new one, and call(y) again

A process is started fresh (spawn), in a process group of its own, so that Ctrl-C in a terminal reaches only the main
program. `stop` sends each process SIGTERM, and a process whose parent is gone stops by itself.
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
    """The call was running or waiting when everything was stopped."""


class Processes(Executor):
    """`count` processes, each with `threads` compute threads."""

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
        """`call` must be importable by name, with arguments that can be pickled."""
        if named:
            raise TypeError("arguments must be positional")
        future: Future[T] = Future()
        self._calls.put((future, call, given))
        return future

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Signals every process and accepts no more calls; waiting calls end with Stopped."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid or 0, number)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Lets processes end when there are no more calls."""
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
                future.set_exception(WorkerError(f"its process died {TRIES} times ({how}): possibly out of memory"))
        if pipe is not None:
            pipe.close()
        self._ended(process)

    def _start(self) -> tuple[BaseProcess | None, Connection | None]:
        """Starts a process; None if everything was stopped meanwhile."""
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
        """Waits for a process to end, and says how it ended."""
        if process is None:
            return ""
        process.join()
        with self._lock:
            self._running.discard(process)
        code = process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _asked(pipe: Connection, call: Callable[..., Any], given: tuple[Any, ...]) -> tuple[Any, Exception | None] | None:
    """The answer of the process; None if it died."""
    try:
        pipe.send((call, given))
        answered: tuple[Any, Exception | None] = pipe.recv()
    except (EOFError, OSError):
        return None
    except Exception as error:  # what cannot be pickled
        return None, error
    return answered


def _serve(pipe: Connection, limits: Mapping[str, str]) -> None:
    """The process's main loop: answers until the pipe closes. The call is imported after its thread limits are set."""
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
    """Stops this process if its parent is gone: a killed parent cannot tell it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
