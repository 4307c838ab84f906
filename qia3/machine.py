"""Facts about this machine: processor, cores, instruction sets, and the memory that a process may still take.

A container has less memory than its host, and the host's figures do not show it. Any of these limits can kill a
process, so the lowest counts:

    MemAvailable of /proc/meminfo     what the system can give without swapping (free(1) calls it "available")
    cgroup v2: memory.max             minus memory.current, of the process's group and every group above it; inactive
    cgroup v1: memory.limit_in_bytes    file pages count as free: they can be dropped and read again
    RLIMIT_AS                         what `ulimit -v` allows

Instruction sets are those that select ONNX Runtime's kernel for 4-bit weights, named as in device profiles: avx2,
avx_vnni, avx512f, avx512_vnni; neon, dotprod, i8mm, bf16. They come from /proc/cpuinfo, on macOS from sysctl.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

SIBLINGS = "topology/thread_siblings_list"
PROC, CGROUPS, CPUS = Path("/proc"), Path("/sys/fs/cgroup"), Path("/sys/devices/system/cpu")
FLAGS = {
    "x64": {name: name for name in ("avx2", "avx_vnni", "avx512f", "avx512_vnni")},
    "arm": {"neon": "asimd", "dotprod": "asimddp", "i8mm": "i8mm", "bf16": "bf16"},
}
MACOS = {"dotprod": "hw.optional.arm.FEAT_DotProd", "i8mm": "hw.optional.arm.FEAT_I8MM"}  # `sysctl -n`: 1 if present
ARCHITECTURES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm", "arm64": "arm"}
# files of a group's limit and use, and the key of inactive file pages in its memory.stat
FILES = {
    "v2": ("memory.max", "memory.current", "inactive_file"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def family() -> str | None:
    """x64 or arm (64 bits); None: another, for which no kernel is known."""
    return ARCHITECTURES.get(platform.machine().lower())


def processor() -> str:
    """The processor's name; on an ARM board that does not report one, the board's."""
    board = PROC / "device-tree/model"
    if board.is_file():
        return board.read_text().strip("\0\n")
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def allowed_cores() -> set[int]:
    """Logical cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def physical_cores(cpus: Path = CPUS) -> int:
    """Physical cores that this process may use, without little ones: a product is shared out in equal parts, and waits
    for the slowest. A core is little if it has less than half of the capacity of the largest, as the kernel reports it
    where cores differ (an Orange Pi 5 has four of 1024 and four of about 400).

    ONNX Runtime's own default also counts little cores, and cores that a container or taskset excludes.
    """
    allowed = allowed_cores()
    folders = [cpus / f"cpu{number}" for number in allowed]
    capacity = {folder: _number(folder / "cpu_capacity") or 0 for folder in folders}
    large = [folder for folder in folders if 2 * capacity[folder] >= max(capacity.values())]
    cores = {file.read_text() for folder in large if (file := folder / SIBLINGS).is_file()}
    return len(cores) or len(large)


def instruction_sets() -> tuple[str, ...]:
    """Instruction sets of this processor; empty if the system does not report them."""
    kind = family()
    if platform.system() == "Darwin":
        return ("neon", *(name for name, key in MACOS.items() if _sysctl(key) == "1")) if kind == "arm" else ()
    told = set((_cpuinfo("flags" if kind == "x64" else "Features") or "").split())
    return tuple(name for name, flag in FLAGS.get(kind or "", {}).items() if flag in told)


def int8_dot_products() -> bool:
    """Whether ONNX Runtime's int8 products are exact and fast here: with VNNI on x64, with dot products on ARM.

    x64 without VNNI adds pairs of products in 16 bits, which saturates.
    """
    wanted = {"x64": {"avx_vnni", "avx512_vnni"}, "arm": {"dotprod"}}
    return bool(wanted.get(family() or "", set()) & {*instruction_sets()})


def total_memory_bytes() -> int | None:
    """Total memory; None if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def available_memory_bytes(proc: Path = PROC, groups: Path = CGROUPS) -> int | None:
    """Memory that a process may still take, at most; None if the system does not report it (no /proc/meminfo)."""
    meminfo = _pairs(proc / "meminfo")
    if "MemAvailable" not in meminfo:
        return None
    rooms = [meminfo["MemAvailable"] * 1024, *_group_rooms(proc, groups), *_address_space()]
    return max(0, min(rooms))


def give_back_memory() -> None:
    """Returns to the system what the C library holds of freed memory; nothing where it is not glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _group_rooms(proc: Path, groups: Path) -> Iterator[int]:
    """What the limits of the process's control groups leave."""
    listed = proc / "self/cgroup"
    for line in listed.read_text().splitlines() if listed.is_file() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            yield from _rooms(groups, path, "v2")
        elif "memory" in controllers.split(","):
            yield from _rooms(groups / "memory", path, "v1")


def _rooms(root: Path, path: str, version: str) -> Iterator[int]:
    """Memory left in the group at `path` and in all above it. Inside a container only the root may be visible."""
    limit_file, taken_file, inactive = FILES[version]
    group = root / path.strip("/")
    for folder in dict.fromkeys((group, *group.parents)):
        limit = _number(folder / limit_file) if folder.is_relative_to(root) else None
        if limit is not None:
            kept = (_number(folder / taken_file) or 0) - _pairs(folder / "memory.stat").get(inactive, 0)
            yield limit - max(0, kept)


def _address_space() -> list[int]:
    try:
        import resource
    except ImportError:  # not on Windows
        return []
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return [] if limit == resource.RLIM_INFINITY else [limit]


def _number(file: Path) -> int | None:
    """The number in a file; None if there is no such file or no number in it ("max": no limit)."""
    text = file.read_text().strip() if file.is_file() else ""
    return int(text) if text.isdigit() else None


def _pairs(file: Path) -> dict[str, int]:
    """Names and numbers, one pair per line; empty if there is no such file."""
    if not file.is_file():
        return {}
    words = [line.replace(":", " ").split() for line in file.read_text().splitlines()]
    return {w[0]: int(w[1]) for w in words if len(w) > 1 and w[1].isdigit()}


def _cpuinfo(key: str) -> str | None:
    """The first value of `key` in /proc/cpuinfo."""
    file = PROC / "cpuinfo"
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key), None)


def _sysctl(key: str) -> str:
    try:
        return subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, timeout=5).stdout.strip()
    except OSError:
        return ""
