"""What a process may still take: the least of what the system, its control groups and ulimit leave it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from qia3 import machine

MEMINFO = "MemTotal:       16000 kB\nMemAvailable:   12000 kB\nHugePages_Total:  0\n"


@pytest.fixture
def proc(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    return tmp_path / "proc"


def group(folder, version, limit, taken, inactive=0):
    folder.mkdir(parents=True, exist_ok=True)
    limit_file, taken_file, key = machine.FILES[version]
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / taken_file).write_text(f"{taken}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{key} {inactive}\n")


def left(proc, tmp_path):
    return machine.available_memory_bytes(proc, tmp_path / "groups")


def test_without_a_group_it_is_what_the_system_has(proc, tmp_path):
    assert left(proc, tmp_path) == 12000 * 1024


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_narrowest_group_counts(proc, tmp_path, version):
    line, root = ("0::/a/b", "groups") if version == "v2" else ("9:cpu:/\n4:memory,x:/a/b\n0::/", "groups/memory")
    (proc / "self/cgroup").write_text(line + "\n")
    group(tmp_path / root, version, "max" if version == "v2" else 2**62, 5_000_000)
    group(tmp_path / root / "a", version, 6_000_000, 5_000_000, inactive=1_000_000)
    group(tmp_path / root / "a/b", version, 7_000_000, 1_000_000)
    assert left(proc, tmp_path) == 6_000_000 - 4_000_000  # of the group above: files not used lately can go
    group(tmp_path / root / "a/b", version, 1_000_000, 1_200_000)
    assert left(proc, tmp_path) == 0


def test_inside_a_container_only_the_root_is_there(proc, tmp_path):
    (proc / "self/cgroup").write_text("0::/../../docker/abc\n")
    group(tmp_path / "groups", "v2", 3_000_000, 1_000_000)
    assert left(proc, tmp_path) == 2_000_000


def test_a_system_without_proc_tells_nothing(tmp_path):
    assert machine.available_memory_bytes(tmp_path, tmp_path) is None


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_ulimit_counts(tmp_path):
    code = "from qia3.machine import available_memory_bytes as a; print(a())"
    command = f"ulimit -v 900000; exec {sys.executable} -c '{code}'"
    assert int(subprocess.check_output(["bash", "-c", command], text=True)) <= 900000 * 1024


@pytest.mark.parametrize(
    ("system", "arch", "told", "expected"),
    [
        ("Linux", "x86_64", "processor: 0\nflags\t\t: fpu avx2 avx_vnni avx512f\n", ("avx2", "avx_vnni", "avx512f")),
        ("Linux", "aarch64", "Features\t: fp asimd asimddp\n", ("neon", "dotprod")),
        ("Linux", "riscv64", "isa: rv64\n", ()),
        ("Darwin", "arm64", "", ("neon", "dotprod", "i8mm")),
    ],
)
def test_instruction_sets(monkeypatch, tmp_path, system, arch, told, expected):
    (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: arch)
    monkeypatch.setattr(machine, "_sysctl", lambda key: "1")
    assert machine.instruction_sets() == expected


def test_a_board_is_called_by_its_name(monkeypatch, tmp_path):
    (tmp_path / "device-tree").mkdir()
    (tmp_path / "device-tree/model").write_text("Raspberry Pi 5 Model B Rev 1.0\0")
    monkeypatch.setattr(machine, "PROC", tmp_path)
    assert machine.processor() == "Raspberry Pi 5 Model B Rev 1.0"


def test_the_system_tells_its_memory():
    assert machine.total_memory_bytes() > 2**28
    assert machine.processor()


@pytest.mark.parametrize(
    ("capacities", "siblings", "allowed", "cores"),
    [
        ([1024] * 4 + [414] * 4, 1, range(8), 4),  # an Orange Pi 5
        ([1024, 768, 768, 768] + [250] * 4, 1, range(8), 4),  # a telephone's three kinds
        ([1024] * 4 + [414] * 4, 1, range(4, 8), 4),  # only little ones are allowed
        ([None] * 4, 2, range(4), 2),  # two cores of two threads, as x64 reports them
        ([None] * 4, 1, range(2), 2),
    ],
)
def test_threads_are_the_large_cores(tmp_path, monkeypatch, capacities, siblings, allowed, cores):
    for number, capacity in enumerate(capacities):
        folder = tmp_path / f"cpu{number}"
        (folder / "topology").mkdir(parents=True)
        first = number - number % siblings
        (folder / machine.SIBLINGS).write_text(f"{first}-{first + siblings - 1}\n")
        if capacity is not None:
            (folder / "cpu_capacity").write_text(f"{capacity}\n")
    monkeypatch.setattr(machine, "allowed_cores", lambda: set(allowed))
    assert machine.physical_cores(tmp_path) == cores


def test_without_a_report_all_allowed_cores_count(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "allowed_cores", lambda: {0, 1, 5})
    assert machine.physical_cores(tmp_path) == 3
