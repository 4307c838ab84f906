"""A bundle's vectors: one adapter for all rows, or a different one per row of a batch."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from qia3.bundle.adapter import load_adapter
from qia3.bundle.head import side_by_side
from qia3.bundle.opened import ADAPTERS, Bundle
from qia3.bundle.ports import HEAD, HEAD_WEIGHT
from qia3.bundle.sites import Vectors
from qia3.errors import AdapterError, ConfigError
from qia3.names import ADAPTER, NONE


class AdapterBank:
    """A bundle's adapters by name, read on first use and kept in memory (4 bytes per parameter)."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._ones: Vectors = {name: np.ones((1, 1, size), np.float32) for name, size in bundle.vectors.items()}
        self._loaded: dict[str, Vectors] = {}

    def vectors(self, name: str | None) -> Vectors:
        """[1, 1, d] by input name; ones for None or "none".

        A merged bundle has no vectors and only knows the name of its one task.
        """
        if name is None or name == NONE:
            if self.bundle.mode == "merged" and name == NONE:
                raise AdapterError(
                    f"{self.bundle.path} is merged with {self.bundle.merged_task!r} and does not contain the plain base"
                )
            return self._ones
        if self.bundle.mode == "merged" and name == self.bundle.merged_task:
            return {}
        if name not in self.bundle.adapters:
            raise AdapterError(self._unknown(name))
        if name not in self._loaded:
            file = self.bundle.path / ADAPTERS / f"{name}{ADAPTER}"
            self._loaded[name] = load_adapter(file, self.bundle.vectors, self.bundle.fingerprint).inputs
        return self._loaded[name]

    def rows(self, names: Sequence[str | None]) -> Vectors:
        """[len(names), 1, d] by input name: row i of the batch uses adapter names[i], with its head."""
        return in_rows([self.vectors(name) for name in names], self.bundle.architecture.hidden_size)

    def _unknown(self, name: str) -> str:
        """The error message, with the known names, the nearest first."""
        known = self.bundle.adapters or ((self.bundle.merged_task,) if self.bundle.merged_task else ())
        near = sorted(known, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
        hint = "did you mean " + repr(near[0]) + "? " if difflib.get_close_matches(name, known) else ""
        return f"{self.bundle.path} has no adapter {name!r}; {hint}it has: {', '.join(near) or 'none'}"


def in_rows(each: Sequence[Vectors], hidden: int) -> Vectors:
    """Stacks vectors [1, 1, d] per row into [rows, 1, d] by input name, and their heads."""
    keys = [key for key in (each[0] if each else {}) if key not in HEAD]
    found = {key: np.concatenate([v[key] for v in each]) for key in keys}
    if any(HEAD_WEIGHT in v for v in each):
        found |= side_by_side(each, hidden)
    return found


def for_texts(bundle: Bundle, count: int, adapters: str | Sequence[str]) -> tuple[list[str], Vectors]:
    """Adapter names for `count` texts, given one for all or one per text, and their vectors.

    Raises ConfigError if the numbers differ, and AdapterError for an unknown adapter.
    """
    names = [adapters] * count if isinstance(adapters, str) else list(adapters)
    if len(names) != count:
        raise ConfigError(f"{count} texts and {len(names)} adapters: give one adapter for all texts, or one per text")
    bank = AdapterBank(bundle)
    return names, bank.vectors(names[0]) if len(set(names)) == 1 else bank.rows(names)
