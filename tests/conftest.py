"""The real model as a fixture, and one core for each process that pytest-xdist starts."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

# a report would be another one on a machine that was calibrated
os.environ["XDG_DATA_HOME"] = str(Path(__file__).parent / "no-such-folder")
FOR_GOOD: set[str] = set()  # modules that no search for cycles looks at
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # gw0, gw1, ...
if WORKER and hasattr(os, "sched_setaffinity"):
    # torch, ONNX Runtime and what the tests start all count the cores that they may run on: with two each, two workers
    # wait for one another
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(WORKER.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The real model first: it is one file of minutes, and as the last one it would keep a single worker busy."""
    items.sort(key=lambda item: item.get_closest_marker("real") is None)


@pytest.fixture(scope="module", autouse=True)
def imported_for_good() -> None:
    """Imported modules are millions of objects, which each search for cycles would look at: 0.4 s, and transformers asks
    for one after each training run.
    """
    if len(sys.modules) > len(FOR_GOOD) + 100:
        FOR_GOOD.update(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def table_of_operators() -> None:
    """Once: torch.onnx.export makes its table of ONNX operators at each call, a fifth of a tiny model's export, and asks
    the dispatcher about each of aten's operators twice, a twentieth.
    """
    if "torch" in sys.modules:
        import torch
        from torch._export import utils
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        if not hasattr(ONNXRegistry.from_torchlib, "cache_info"):
            ONNXRegistry.from_torchlib = staticmethod(lru_cache(ONNXRegistry.from_torchlib))
            ask = utils._collect_all_valid_cia_ops_for_namespace
            of_aten = lru_cache(lambda: frozenset(ask(torch.ops.aten)))
            utils._collect_all_valid_cia_ops_for_namespace = lambda of: (
                set(of_aten()) if of is torch.ops.aten else ask(of)
            )


@pytest.fixture(scope="module")
def kept_graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For a file that exports one base several times: qia3's own cache of graphs, which else leaves tiny bases out. The
    first export with some settings is traced, the next ones are read (test_graph_kept.py: byte for byte the same).
    """
    from qia3 import publish
    from qia3.graph import kept

    folder = tmp_path_factory.mktemp("graphs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "LEAST_KEPT", 0)
        patch.setattr(kept, "cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    from qia3.base.sources import resolve

    source = resolve("smollm2-135m-instruct")
    assert source.gguf_file
    return Path(source.name) / source.gguf_file
