"""What a person sees while a build works: lines and bars on stderr, so that stdout stays the result."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_asked_to_stop = threading.Event()
LINES = 8  # of a long run, where stderr is a file and no bar can be drawn
_muted = threading.Event()


def is_main() -> bool:
    """Whether this process speaks and writes: of several that share a run (`accelerate launch`) the first."""
    return os.environ.get("RANK", "0") == "0"


def ask_to_stop() -> None:
    """What a signal does: it interrupts, and where a library swallows that (Python itself does within destructors and
    callbacks), the next line that a build has to say interrupts again.
    """
    _asked_to_stop.set()
    raise KeyboardInterrupt


def forget_the_stop() -> None:
    """Before another command in this process."""
    _asked_to_stop.clear()


@contextmanager
def muted() -> Iterator[None]:
    """Nothing is said within: of many workers one line each is told, by whom they work for."""
    _muted.set()
    try:
        yield
    finally:
        _muted.clear()


def say(text: str) -> None:
    """One line on stderr. Raises KeyboardInterrupt where a signal had no effect."""
    if _asked_to_stop.is_set():
        _asked_to_stop.clear()
        raise KeyboardInterrupt
    if is_main() and not _muted.is_set():
        print(text, file=sys.stderr, flush=True)


def bar(items: list[T], title: str) -> Iterable[T]:
    """Wraps a list in a progress bar on stderr, where that is a terminal."""
    if not _draws():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description=title, transient=True, console=Console(stderr=True))


@contextmanager
def counting(title: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
    """Hands out a function that is told how many of `total` are done, with a note: a bar on a terminal, else a line now
    and then.
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
    """Whether there is somebody to see a bar."""
    return sys.stderr.isatty() and is_main() and not _muted.is_set()


def _lines(title: str, total: int, unit: str) -> Callable[[int, str], None]:
    every = max(1, total // LINES)

    def tell(done: int, note: str) -> None:
        if done % every == 0 or done == total:
            say(f"{title}: {done} of {total} {unit}" + (f", {note}" if note else ""))

    return tell
