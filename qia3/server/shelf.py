"""The adapters of a server: the bundle's own, and those in a place (place.py) that may come and go at run time.

    PLACE/NAME/   adapter_config.json, adapter_model.safetensors, task.json      as `qia3 adapter export` writes them

Names are read when the server starts and when they are listed, and an unknown one when it is requested; vectors are
read when a name is first used. Up to `memory` bytes of them stay loaded, 4 per number; beyond that the least recently
used adapter is dropped, and read again when needed. An adapter that was trained on another base is refused, and so is
one that changes nothing because all its vectors are ones.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

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
    """`own`: it belongs to the bundle. `hits` counts requests. `error`: why its files were refused when last read."""

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
        return "loaded" if self.vectors is not None else "refused" if self.error else "on disk"


class Shelf:
    """Thread-safe. Files are read without the lock: a slow store delays only requests for what is being read."""

    def __init__(self, bundle: Bundle, place: Place | None = None, memory: int = MEMORY) -> None:
        if place is not None and bundle.mode != "side":
            raise ConfigError(f"{bundle.path} is merged: its graph has no inputs for the adapters in {place}")
        self.bundle, self.place, self.memory = bundle, place, memory
        own = bundle.adapters or ((bundle.merged_task,) if bundle.merged_task else ())
        self.entries = {name: Entry(name, True) for name in own}
        self._loaded: OrderedDict[str, Entry] = OrderedDict()  # the most recently used one comes last
        self._bytes = 0
        self.removed: set[str] = set()
        self._lock = threading.Lock()
        self._readers: dict[str, tuple[threading.Lock, int]] = {}  # by name, with how many hold or await it
        self.look()

    def look(self) -> None:
        """Updates the entries from the folder: adds new adapters and forgets removed ones. Raises PlaceError."""
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

    def find(self, name: str) -> Entry | None:
        """A known adapter, or one that is new in the folder, which is asked for this name only. Raises PlaceError."""
        known = self.entries.get(name)
        if known is not None or name in self.removed or not self._is_there(name):
            return known
        with self._lock:
            return None if name in self.removed else self.entries.setdefault(name, Entry(name, False))

    def hit(self, name: str) -> tuple[Task, Vectors] | None:
        """What is loaded, counted as a request; None if it must be read."""
        with self._lock:
            entry = self._loaded.get(name)
            if entry is None or entry.task is None or entry.vectors is None:
                return None
            entry.hits += 1
            self._loaded.move_to_end(name)
            return entry.task, entry.vectors

    def get(self, name: str) -> tuple[Task, Vectors]:
        """Task and vectors of a name.

        Raises KeyError if it is unknown, AdapterError if it does not fit this base, PlaceError if it cannot be fetched.
        """
        held = self.hit(name)
        if held is not None:
            return held
        with self._reading(name):
            entry = self.find(name)
            if entry is None or not (entry.own or self._is_there(name)):
                with self._lock:
                    self._forget(name)
                raise KeyError(name)
            return self.hit(name) or self._load(entry, 1)

    def add(self, name: str) -> Entry:
        """Reads an adapter of the folder, again if it is known. Until that is done, requests get the earlier one, and
        they keep it if the new one is refused. Raises KeyError, AdapterError, PlaceError.
        """
        with self._reading(name):
            known = self.entries.get(name)
            if known is not None and known.own:
                raise AdapterError(f"{name!r} belongs to the bundle and cannot be replaced")
            there = self._is_there(name)
            with self._lock:
                if not there:
                    self._forget(name)
                    raise KeyError(name)
                self.removed.discard(name)
                entry = self.entries.setdefault(name, Entry(name, False))
            self._load(entry)
            return replace(entry)

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

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """One thread at a time reads a name; others may read other names."""
        with self._lock:
            lock, count = self._readers.get(name, (threading.Lock(), 0))
            self._readers[name] = lock, count + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                count = self._readers[name][1] - 1
                self._readers[name] = lock, count
                if not count:
                    del self._readers[name]

    def _load(self, entry: Entry, hits: int = 0) -> tuple[Task, Vectors]:
        """Reads an entry's files and keeps them, unless it was removed meanwhile."""
        try:
            task, vectors = self._read(entry)
        except AdapterError as error:
            entry.error = str(error)
            raise
        with self._lock:
            known = self.entries.get(entry.name) is entry
            if known:
                self._drop(entry.name)
            entry.task, entry.vectors, entry.error = task, vectors, None
            entry.hits += hits
            if known:
                self._keep(entry)
        return task, vectors

    def _read(self, entry: Entry) -> tuple[Task, Vectors]:
        if entry.own:
            task, vectors = self.bundle.tasks[entry.name], AdapterBank(self.bundle).vectors(entry.name)
        else:
            assert self.place is not None  # otherwise there would be no such entry
            with self.place.files(entry.name) as folder:
                adapter = completed(self.bundle, folder, entry.name)
            assert adapter.task is not None  # completed
            task, vectors = adapter.task, _in_one(adapter.inputs)
        if _changes_nothing(vectors):
            raise AdapterError(f"{entry.name!r} changes nothing: all its vectors are ones")
        return task, vectors

    def _is_there(self, name: str) -> bool:
        return self.place is not None and _is_name(name) and self.place.has(name)

    def _forget(self, name: str) -> None:
        self.entries.pop(name, None)
        self._drop(name)

    def _drop(self, name: str) -> None:
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
