"""This machine as a device profile: probed, not looked up.

Its copy bandwidth is measured: one thread copies a block larger than a device's caches, and the best of the copies made
in a fifth of a second counts. Copying reads and writes each byte; the figure counts bytes copied, as tinymembench and
the profiles in devices/ do. A busy or virtual machine shows less than it has.
"""

from __future__ import annotations

import time

import numpy as np

from qia3 import machine
from qia3.errors import ConfigError
from qia3.footprint.device import Device, Figure, Words

HERE = "here"
SECONDS = 0.2
BLOCK = 2**27
SOURCE = ("measured here",)


def probe() -> Device:
    """Probes this machine. Raises ConfigError if the system does not report what a profile needs."""
    family, memory, isa = machine.family(), machine.total_memory_bytes(), machine.instruction_sets()
    if family not in ("x64", "arm") or memory is None or not isa:
        raise ConfigError(
            f"{HERE}: this system does not report its memory and instruction sets; write a device profile for it "
            "(./my.toml)"
        )
    usable = machine.available_memory_bytes()
    cores = machine.physical_cores()
    return Device(
        name=HERE,
        title=f"This machine ({machine.processor()})",
        family="x64" if family == "x64" else "arm",
        target="ort-cpu" if family == "x64" else "ort-arm" if "dotprod" in isa else "ort-arm-v8",
        notes="At this moment: memory held by other processes is not usable.",
        memory_bytes=_figure(memory, "as reported by the system"),
        usable_bytes=None if usable is None else _figure(usable, "available now, within cgroup and ulimit -v"),
        copy_bandwidth_bytes_per_second=_figure(*_copied(min(BLOCK, (usable or memory) // 8))),
        cores=_figure(cores, "physical cores that this process may use"),
        isa=Words(value=isa, confidence="measured", source=SOURCE, how="as reported by the system for the processor"),
    )


def _figure(value: float, how: str) -> Figure:
    return Figure(value=value, confidence="measured", source=SOURCE, how=how)


def _copied(size: int) -> tuple[float, str]:
    """Bytes per second, and how they were measured."""
    source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
    np.copyto(target, source)  # the first copy allocates pages
    best, count, ends = 0.0, 0, time.perf_counter() + SECONDS
    while count == 0 or time.perf_counter() < ends:
        started = time.perf_counter()
        np.copyto(target, source)
        best, count = max(best, size / (time.perf_counter() - started)), count + 1
    return best, f"{size / 2**20:,.0f} MiB copied by one thread, the best of {count}"
