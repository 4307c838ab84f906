"""The adapters of a server: the bundle's own, and those in a place (place.py) that may come and go at run time.

    PLACE/NAME/   adapter_config.json, adapter_model.safetensors, task.json      as `qia3 adapter export` writes them

Names are read when the server starts and when an unknown one is requested; vectors are read when a name is first used.
Up to `memory` bytes of them stay loaded, 4 per number; beyond that the least recently used adapter is dropped, and read
again when needed. An adapter that was trained on another base is refused, and so is one that changes nothing because
all its vectors are ones.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np

from qia3.bundle.adapter import Adapter
from qia3.bundle.opened import Bundle
from qia3.bundle.ports import HEAD
from qia3.bundle.sites import Vectors
from qia3.bundle.task import Task
from qia3.errors import AdapterError, ConfigError
from qia3.names import NONE, check_name
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.completed import completed
from qia3.server.place import Place

MEMORY = 256 << 20  # bytes


@dataclass
class Entry:
    """`own`: it belongs to the bundle. `hits` counts requests."""

    name: str
    own: bool
    task: Task | None = None
    vectors: Vectors | None = None
    hits: int = 0
    error: str | None = None

    @property
    def nbytes(self) -> int:
        return sum(v.nbytes for v in (self.vectors or {}).values())

    @property
    def state(self) -> str:
        return "refused" if self.error else "loaded" if self.vectors is not None else "on disk"


class Shelf:
    """Thread-safe."""

    def __init__(self, bundle: Bundle, place: Place | None = None, memory: int = MEMORY) -> None:
        if place is not None and bundle.mode != "side":
            raise ConfigError(f"{bundle.path} is merged: its graph has no inputs for the adapters in {place}")
        self.bundle, self.place, self.memory = bundle, place, memory
        own = bundle.adapters or ((bundle.merged_task,) if bundle.merged_task else ())
        self.entries = {name: Entry(name, True) for name in own}
        self._loaded: OrderedDict[str, Entry] = OrderedDict()  # the most recently used one comes last
        self._bytes = 0
        self.removed: set[str] = set()
        self._lock = threading.RLock()
        self.look()

    def look(self) -> None:
        """Updates the entries from the folder: adds new adapters and forgets removed ones."""
        if self.place is None:
            return
        there = set(self.place.names())
        with self._lock:
            for name, entry in list(self.entries.items()):
                if not entry.own and name not in there:
                    self._forget(name)
            for name in sorted(there):
                if name not in self.entries and name not in self.removed and _is_name(name):
                    self.entries[name] = Entry(name, False)

    def get(self, name: str) -> tuple[Task, Vectors]:
        """Task and vectors of a name. Raises KeyError if it is unknown, AdapterError if it does not fit this base."""
        with self._lock:
            if name not in self.entries:
                self.look()
            entry = self.entries[name]
            if entry.vectors is None:
                self._load(entry)
            entry.hits += 1
            self._loaded.move_to_end(name)
            assert entry.task is not None
            assert entry.vectors is not None
            return entry.task, entry.vectors

    def add(self, name: str) -> Entry:
        """Reads an adapter of the folder, again if it is known. Raises KeyError and AdapterError."""
        with self._lock:
            known = self.entries.get(name)
            if known is not None and known.own:
                raise AdapterError(f"{name!r} belongs to the bundle and cannot be replaced")
            if known is not None:
                self._forget(name)
            self.removed.discard(name)
            self.look()
            entry = self.entries[name]
            self._load(entry)
            return entry

    def remove(self, name: str) -> None:
        """Forgets an adapter of the folder until it is added again; its files stay. Raises KeyError, AdapterError."""
        with self._lock:
            if self.entries[name].own:
                raise AdapterError(f"{name!r} belongs to the bundle and cannot be removed")
            self._forget(name)
            self.removed.add(name)

    def listed(self) -> list[Entry]:
        with self._lock:
            return [replace(entry) for entry in self.entries.values()]

    def _load(self, entry: Entry) -> None:
        try:
            if entry.own:
                entry.task = self.bundle.tasks[entry.name]
                entry.vectors = AdapterBank(self.bundle).vectors(entry.name)
            else:
                adapter = self._read(entry.name)
                entry.task, entry.vectors = adapter.task, _in_one(adapter.inputs)
            if _changes_nothing(entry.vectors):
                raise AdapterError(f"{entry.name!r} changes nothing: all its vectors are ones")
            entry.error = None
            self._keep(entry)
        except AdapterError as error:
            entry.vectors, entry.error = None, str(error)
            raise

    def _read(self, name: str) -> Adapter:
        assert self.place is not None  # otherwise there would be no such entry
        with self.place.files(name) as folder:
            return completed(self.bundle, folder, name)

    def _forget(self, name: str) -> None:
        del self.entries[name]
        if loaded := self._loaded.pop(name, None):
            self._bytes -= loaded.nbytes

    def _keep(self, entry: Entry) -> None:
        """Drops the least recently used adapters beyond the limit; the newest always stays."""
        self._loaded[entry.name] = entry
        self._bytes += entry.nbytes
        while self._bytes > self.memory and len(self._loaded) > 1:
            oldest = self._loaded.popitem(last=False)[1]
            self._bytes -= oldest.nbytes
            oldest.vectors = None


def _in_one(vectors: Vectors) -> Vectors:
    """Copies vectors into one block of memory, which is freed as a whole: many small blocks, freed in another order
    than they were allocated, would fragment memory.
    """
    block = np.concatenate([v.ravel() for v in vectors.values()])
    ends = np.cumsum([v.size for v in vectors.values()])
    return {n: block[end - v.size : end].reshape(v.shape) for (n, v), end in zip(vectors.items(), ends, strict=True)}


def _changes_nothing(vectors: Vectors) -> bool:
    """Whether all vectors are ones and there is no head; False for a merged bundle, which has no vectors."""
    return bool(vectors) and not any(n in HEAD for n in vectors) and all(np.all(v == 1) for v in vectors.values())


def _is_name(name: str) -> bool:
    try:
        return check_name(name) != NONE
    except ValueError:
        return False
