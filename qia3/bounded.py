"""Runs code from an untrusted file where it can do no harm: in a child process, with limits on time and memory.

A chat template is a program. transformers runs it in jinja's sandbox, which keeps it from Python's objects, but does
not stop endless loops or huge strings. The child is a fork: it already has the tokenizer, and what it changes (the
clock) ends with it. Systems without fork run the code directly.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 10.0
MEMORY = 1 << 30  # bytes, in addition to what the process has already
STATM = Path("/proc/self/statm")


def bounded(work: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Returns what `work` returns, which must be JSON.

    Raises ValueError, in one line, if it takes too long or too much memory, or raises.
    """
    if not hasattr(os, "fork"):
        return json.loads(_answer(work))["value"]
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about other threads: the child uses none of their locks
        child = os.fork()
    if child == 0:
        _in_child(work, writing)
    os.close(writing)
    try:
        answer = _received(reading, seconds)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if answer is None:
        raise ValueError(f"it takes more than {seconds:g} seconds")
    if not answer:
        raise ValueError("it needs more memory than allowed")
    found = json.loads(answer)
    if "error" in found:
        raise ValueError(found["error"])
    return found["value"]


def _received(reading: int, seconds: float) -> bytes | None:
    """All that the child wrote before it ended; None if it did not end in time."""
    end, pieces = time.monotonic() + seconds, b""
    while (left := end - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            piece = os.read(reading, 1 << 16)
            if not piece:
                return pieces
            pieces += piece
    return None


def _in_child(work: Callable[[], Any], writing: int) -> None:
    """Writes the answer and exits at once, without the parent's exit handlers."""
    try:
        _limit_memory()
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(_answer(work))
    finally:
        os._exit(0)


def _answer(work: Callable[[], Any]) -> bytes:
    try:
        return json.dumps({"value": work()}).encode()
    except MemoryError:
        return json.dumps({"error": "it needs more memory than allowed"}).encode()
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return json.dumps({"error": lines[0] if lines else type(error).__name__}).encode()


def _limit_memory() -> None:
    if STATM.is_file():
        import resource

        held = int(STATM.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
