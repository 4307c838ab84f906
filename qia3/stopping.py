"""The first Ctrl-C or SIGTERM of a long run ends it after the current step; the second one acts as usual."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qia3.progress import say


def no_better(losses: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` of these validation losses brought nothing better."""
    return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= patience


class Stop:
    """Catches signals; `raised` is True after the first one."""

    def __init__(self) -> None:
        self.raised = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catches signals in the block, in the main thread; in other threads it does nothing."""
        previous: dict[signal.Signals, Any] = {}

        def note(number: int, _: Any) -> None:
            self.raised = True
            say("\nstopping after this step, with a checkpoint (press again to stop at once)")
            for name, handler in previous.items():
                signal.signal(name, handler)

        try:
            for name in (signal.SIGINT, signal.SIGTERM):
                previous[name] = signal.signal(name, note)
        except ValueError:  # not the main thread
            previous = {}
        try:
            yield
        finally:
            for name, handler in previous.items():
                signal.signal(name, handler)
