"""Adapter files and the bank that hands out their vectors: one adapter for all rows, or one for each row of a batch."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from qia3.errors import AdapterError
from qia3.runtime.bundle import Bundle

Vectors = dict[str, NDArray[np.float32]]
NONE = "none"


def load_adapter(path: Path, bundle: Bundle) -> Vectors:
    """The tensors of an .onnx_adapter, float32 [1, 1, d] by input name. Raises AdapterError for another base and with every bad tensor."""
    try:
        adapter = ort.AdapterFormat.read_adapter(str(path))
        tensors = {name: value.numpy() for name, value in adapter.get_parameters().items()}
        base = adapter.get_model_version()
    except Exception as error:  # onnxruntime raises its own types, without a common base
        raise AdapterError(f"{path} cannot be read as an .onnx_adapter: {str(error).splitlines()[0]}") from error
    if base != int(bundle.fingerprint[:7], 16):
        raise AdapterError(f"{path} was trained on another base ({base:07x}…, this bundle's is {bundle.fingerprint[:7]}…)")
    bad = [f"{name} is missing" for name in bundle.vectors if name not in tensors]
    bad += [f"{name} has no place here" for name in tensors if name not in bundle.vectors]
    bad += [
        f"{name} has shape {list(t.shape)} instead of {[1, 1, bundle.vectors[name]]}"
        for name, t in tensors.items()
        if name in bundle.vectors and t.shape != (1, 1, bundle.vectors[name])
    ]
    if bad:
        raise AdapterError(f"{path} does not fit {bundle.path}; {len(bad)} bad tensors: {'; '.join(bad)}")
    return tensors


class AdapterBank:
    """A bundle's adapters by name, read when first asked for and kept (about 4 bytes a parameter each)."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._ones: Vectors = {name: np.ones((1, 1, size), np.float32) for name, size in bundle.vectors.items()}
        self._loaded: dict[str, Vectors] = {}

    def vectors(self, name: str | None) -> Vectors:
        """[1, 1, d] by input name; ones for None or "none". A merged bundle has none at all, and answers to its one task's name."""
        if name is None or name == NONE:
            if self.bundle.mode == "merged" and name == NONE:
                raise AdapterError(f"{self.bundle.path} is merged with {self.bundle.merged_task!r}: its base is not there without it")
            return self._ones
        if self.bundle.mode == "merged" and name == self.bundle.merged_task:
            return {}
        if name not in self.bundle.adapters:
            raise AdapterError(self._unknown(name))
        if name not in self._loaded:
            self._loaded[name] = load_adapter(self.bundle.path / "adapters" / f"{name}.onnx_adapter", self.bundle)
        return self._loaded[name]

    def rows(self, names: Sequence[str | None]) -> Vectors:
        """[len(names), 1, d] by input name: row i of the batch has adapter names[i]."""
        each = [self.vectors(name) for name in names]
        return {key: np.concatenate([v[key] for v in each]) for key in each[0]} if each else {}

    def _unknown(self, name: str) -> str:
        known = self.bundle.adapters or ((self.bundle.merged_task,) if self.bundle.merged_task else ())
        near = difflib.get_close_matches(name, [k for k in known if k], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{self.bundle.path} has no adapter {name!r}; {hint}it has: {', '.join(k for k in known if k) or 'none'}"
