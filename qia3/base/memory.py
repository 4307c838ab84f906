"""How much memory is available (what the system reports, and what a container's limit leaves), and how to return it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")  # of a container (cgroup version 2)


def available_bytes(device: torch.device | None = None) -> int:
    """Bytes that can be allocated without taking memory from other programs: of a GPU, or of the machine.

    Files in the page cache count as available, since the system drops them when memory is needed.
    """
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_machine(), _container())


def give_back() -> None:
    """Returns freed memory to the system at once. glibc keeps memory between arrays that are still in use: 0.8 GB for a
    base of 3.7 GB.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library or another system
        ctypes.CDLL(None).malloc_trim(0)


def _machine() -> int:
    if MEMINFO.is_file():
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            return int(lines["MemAvailable"].split()[0]) * 1024
    names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_AVPHYS_PAGES" in names else 1 << 62


def _container() -> int:
    """The limit minus what is used; without a limit (or a container), more than any machine has."""
    try:
        limit, used = (GROUP / "memory.max").read_text().strip(), int((GROUP / "memory.current").read_text())
        cached = next(
            line for line in (GROUP / "memory.stat").read_text().splitlines() if line.startswith("inactive_file ")
        )
        return 1 << 62 if limit == "max" else int(limit) - used + int(cached.split()[1])
    except (OSError, ValueError, StopIteration):
        return 1 << 62
