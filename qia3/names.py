"""Names of tasks, adapters and builds: each becomes the name of a file on whatever disk a bundle is copied to.

So is not a name: up to 64 letters, digits, '.', '_' and '-', is no longer than 64 of them, and is none that Windows
reserves: CON or LPT1, with any ending, whatever the case. No two names of one bundle may differ in case alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# learn.microsoft.com/windows/win32/fileio/naming-a-file
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(10))}
ADAPTER = ".onnx_adapter"
NONE = "none"  # what the bare base answers to


def check_file_name(name: str) -> str:
    """`name` itself. Raises ValueError of one line."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a name: up to 64 letters, digits, '.', '_' and '-', the first a letter or a digit"
        )
    if name.endswith("."):
        raise ValueError(f"{name!r} ends in a full stop, which file names on Windows do not")
    if name.split(".")[0].lower() in RESERVED:
        raise ValueError(f"{name!r} is reserved on Windows and cannot name a file there; choose another")
    return name


def check_name(name: str, others: Iterable[str] = ()) -> str:
    """`name` itself, fit for an adapter or a task beside `others`. Raises ValueError of one line."""
    check_file_name(name)
    if name.lower() == NONE:
        raise ValueError(f"a name is not {NONE!r}, which means the base without an adapter")
    if name.lower().endswith(ADAPTER):
        raise ValueError(f"{name!r} ends in {ADAPTER!r}, which is added to a name; leave it out")
    if alike := [other for other in others if other.lower() == name.lower() and other != name]:
        raise ValueError(f"{name!r} and {alike[0]!r} differ in case alone and would be one file on some disks")
    return name
