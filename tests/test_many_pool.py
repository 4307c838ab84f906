"""Processes that may die take no call with them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from qia3.errors import ConfigError, WorkerError
from qia3.many.executors import check_executor
from qia3.many.pool import NEIGHBOURS, TRIES, Processes, Stopped


def twice(n: int) -> tuple[int, int, str, str]:
    return 2 * n, os.getpid(), os.environ["OMP_NUM_THREADS"], os.environ[NEIGHBOURS]


def fails(n: int) -> int:
    raise ValueError(f"not {n}")


def dies(place: str, times: int) -> int:
    """Is killed so many times, then gives how often it was called."""
    with Path(place).open("a") as file:
        file.write("x")
    if (calls := len(Path(place).read_text())) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return calls


def waits(place: str) -> None:
    Path(place).touch()
    time.sleep(60)


def test_calls_are_spread_and_one_that_dies_is_made_again(tmp_path):
    with Processes(2, threads=3) as pool:
        bad = pool.submit(fails, 7)
        lost = pool.submit(dies, str(tmp_path / "always"), TRIES)
        once = pool.submit(dies, str(tmp_path / "once"), 1)
        good = [pool.submit(twice, n) for n in range(6)]
        unsendable = pool.submit(twice, lambda: 1)
        assert [future.result()[0] for future in good] == [0, 2, 4, 6, 8, 10]
        assert {future.result()[2:] for future in good} == {("3", "2")}
        assert os.getpid() not in {future.result()[1] for future in good}
        assert once.result() == 2
        with pytest.raises(ValueError, match="not 7"):
            bad.result()
        with pytest.raises(WorkerError, match=f"died {TRIES} times \\(SIGKILL\\)"):
            lost.result()
        assert unsendable.exception() is not None


def test_all_of_them_stop_when_they_are_told(tmp_path):
    with Processes(1, threads=1) as pool:
        running, waiting = pool.submit(waits, str(tmp_path / "x")), pool.submit(twice, 1)
        while not (tmp_path / "x").exists():
            time.sleep(0.01)
        pool.stop()
        for future in (running, waiting):
            with pytest.raises(Stopped):
                future.result(timeout=20)


@pytest.mark.parametrize("name", ["process:0", "process:two", "process", "dask://here", "dask://a:b", "threads:2", ""])
def test_what_is_no_executor_is_told(name):
    with pytest.raises(ConfigError, match="must be process:2, dask://HOST:PORT or submitit"):
        check_executor(name)
