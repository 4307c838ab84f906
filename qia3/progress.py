"""Progress of a build for people: lines and bars on stderr, so that stdout holds only the result."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_asked_to_stop = threading.Event()
LINES = 8  # printed during a long run if stderr is not a terminal
_muted = threading.Event()


def is_main() -> bool:
    """Whether this process prints and writes: the first of several that share a run (`accelerate launch`)."""
    return os.environ.get("RANK", "0") == "0"


def ask_to_stop() -> None:
    """Signal handler: interrupts. If a library swallows that (Python itself does in destructors and callbacks), the
    next `say` of the build interrupts again.
    """
    _asked_to_stop.set()
    raise KeyboardInterrupt


def forget_the_stop() -> None:
    """Resets it before another command in this process."""
    _asked_to_stop.clear()


@contextmanager
def muted() -> Iterator[None]:
    """Silences everything in the block: for workers, their caller prints one line each."""
    _muted.set()
    try:
        yield
    finally:
        _muted.clear()


def say(text: str) -> None:
    """Prints a line to stderr. Raises KeyboardInterrupt if an earlier signal had no effect."""
    if _asked_to_stop.is_set():
        _asked_to_stop.clear()
        raise KeyboardInterrupt
    if is_main() and not _muted.is_set():
        print(text, file=sys.stderr, flush=True)


def bar(items: list[T], title: str) -> Iterable[T]:
    """Wraps a list in a progress bar on stderr, if that is a terminal."""
    if not _draws():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description=title, transient=True, console=Console(stderr=True))


@contextmanager
def counting(title: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
    """Gives a function to report how many of `total` are done, with a note: a bar on a terminal, otherwise a line from
    time to time.
    """
    if not _draws():
        yield _lines(title, total, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(title, total=total, note="")
        yield lambda done, note: shown.update(task, completed=done, note=note)


def _draws() -> bool:
    """Whether a bar can be seen."""
    return sys.stderr.isatty() and is_main() and not _muted.is_set()


def _lines(title: str, total: int, unit: str) -> Callable[[int, str], None]:
    every = max(1, total // LINES)

    def tell(done: int, note: str) -> None:
        if done % every == 0 or done == total:
            say(f"{title}: {done} of {total} {unit}" + (f", {note}" if note else ""))

    return tell
