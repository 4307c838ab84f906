"""Reads a bundle as a device would, before anybody relies on it: every file, the graph, the tokenizer, each adapter."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from qia3.bundle.opened import Bundle
from qia3.names import NONE
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import task_of
from qia3.runtime.engine import Engine


def read_back(folder: Path, adapters: Collection[str] | None = None) -> None:
    """Raises what the reader of a bundle raises. `adapters`: those that are new; None for all.

    Takes what opening the bundle takes, and one step of one token per adapter.
    """
    bundle = Bundle.open(folder)
    engine, bank = Engine(bundle), AdapterBank(bundle)
    names = adapters or bundle.adapters or ((bundle.merged_task,) if bundle.merged_task else (NONE,))
    for name in names:
        task_of(engine, name)
        engine.prefill([[0]], bank.vectors(name), room=0)
