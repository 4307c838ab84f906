"""Names of tasks, adapters and builds. Each becomes a file name on whatever disk a bundle is copied to.

A name has up to 64 letters, digits, '.', '_' and '-', and is not one that Windows reserves (CON or LPT1, in any case
and with any extension). No two names in one bundle may differ in case only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# learn.microsoft.com/windows/win32/fileio/naming-a-file
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(10))}
ADAPTER = ".onnx_adapter"
NONE = "none"  # the name of the bare base


def check_file_name(name: str) -> str:
    """`name` unchanged. Raises ValueError, in one line, if it is not valid."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a name: use up to 64 letters, digits, '.', '_' and '-', starting with a letter or digit"
        )
    if name.endswith("."):
        raise ValueError(f"{name!r} ends in a full stop, which Windows does not allow")
    if name.split(".")[0].lower() in RESERVED:
        raise ValueError(f"{name!r} is reserved on Windows and cannot be a file name there; choose another")
    return name


def check_name(name: str, others: Iterable[str] = ()) -> str:
    """`name` unchanged, valid for an adapter or task beside `others`. Raises ValueError, in one line."""
    check_file_name(name)
    if name.lower() == NONE:
        raise ValueError(f"{NONE!r} cannot be a name: it means the base without an adapter")
    if name.lower().endswith(ADAPTER):
        raise ValueError(f"{name!r} ends in {ADAPTER!r}, which is added to the name; leave it out")
    if alike := [other for other in others if other.lower() == name.lower() and other != name]:
        raise ValueError(f"{name!r} and {alike[0]!r} differ in case only and would be the same file on some disks")
    return name
