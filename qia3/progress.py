"""What a person sees while a build works: lines and bars on stderr, so that stdout stays the result."""

from __future__ import annotations

import sys
from collections.abc import Iterable


def say(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


def bar(names: list[str], title: str) -> Iterable[str]:
    """Wraps a list in a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import track

    return track(names, description=title, transient=True, console=Console(stderr=True))
