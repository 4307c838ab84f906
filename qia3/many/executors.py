"""Where tasks are trained: executors like those of `concurrent.futures`, by name.

    process:2              two processes of this machine (pool.py)
    dask://HOST:PORT       the workers of a dask.distributed scheduler that is already running
    submitit[:FOLDER]      jobs of a Slurm cluster, or local processes without Slurm; their files go to FOLDER

Any executor would do: it only needs `submit`, and futures that end. dask itself gives the task of a dead worker to
another worker, up to its setting `distributed.scheduler.allowed-failures`.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qia3.errors import ConfigError, first_line
from qia3.machine import allowed_cores
from qia3.many.pool import Processes

KINDS = "process:2, dask://HOST:PORT or submitit[:FOLDER]"
MOST = 256  # processes of one machine
PATIENCE = 20  # seconds for a scheduler to answer


def check_executor(name: str) -> None:
    """Checks a name before anything is loaded. Raises ConfigError."""
    kind, _, rest = name.partition(":")
    if kind == "process" and re.fullmatch("[1-9][0-9]{0,2}", rest) and int(rest) <= MOST:
        return
    if kind == "dask" and re.fullmatch(r"//[^/\s:]+:[0-9]{1,5}", rest):
        _needed("distributed")
        _answers(rest.removeprefix("//"))
    elif kind == "submitit" and (rest or name == "submitit"):
        _needed("submitit")
    else:
        raise ConfigError(f"--executor must be {KINDS} (1 to {MOST} processes), not {name!r}")


@contextmanager
def opened(name: str) -> Iterator[Executor]:
    """Opens an executor. Raises ConfigError if it cannot be reached."""
    kind, _, rest = name.partition(":")
    if kind == "process":
        with Processes(int(rest), max(1, len(allowed_cores()) // int(rest))) as processes:
            yield processes
    elif kind == "dask":
        with _cluster(rest.removeprefix("//")) as cluster:
            yield cluster
    else:
        with Jobs(Path(rest or "submitit")) as jobs:
            yield jobs


@contextmanager
def _cluster(address: str) -> Iterator[Executor]:
    """Each call gets its own key, so that dask does not merge identical calls."""
    from distributed import Client

    try:
        client = Client(f"tcp://{address}", timeout=PATIENCE, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise _silent(address, error) from error
    with client:
        yield client.get_executor(pure=False)


class Jobs(Executor):
    """submitit as an Executor; one thread per job polls for its end."""

    def __init__(self, folder: Path) -> None:
        import submitit

        self._jobs, self._waiting = submitit.AutoExecutor(folder=folder), ThreadPoolExecutor(MOST)
        self._jobs.update_parameters(name="qia3", timeout_min=24 * 60)

    def submit(self, call: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        return self._waiting.submit(self._jobs.submit(call, *given, **named).result)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._waiting.shutdown(wait, cancel_futures=cancel_futures)


def _answers(address: str) -> None:
    """Raises ConfigError if nothing listens there, before other work begins."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise _silent(address, error) from error


def _silent(address: str, error: Exception) -> ConfigError:
    return ConfigError(f"no dask scheduler answers at {address}: {first_line(error)}")


def _needed(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        extra = "pip install 'qia3[cluster]'" if package == "distributed" else f"pip install {package}"
        raise ConfigError(f"this executor needs {package}, which is not installed: {extra}")
