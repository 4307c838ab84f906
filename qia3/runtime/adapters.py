"""Adapter files and the bank that hands out their vectors: one adapter for all rows, or one for each row of a batch.

An .onnx_adapter is ONNX Runtime's own flatbuffer of named tensors. Here they are the IA³ vectors, float32 [1, 1, d], by
graph input name; its model version is the first 28 bits of the base's fingerprint, so a file says which base it was
trained on (law 7).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from qia3.errors import AdapterError
from qia3.runtime.bundle import ADAPTER, ADAPTERS, Bundle

Vectors = dict[str, NDArray[np.float32]]
NONE = "none"


def load_adapter(path: Path, bundle: Bundle) -> Vectors:
    """The tensors of an .onnx_adapter, float32 [1, 1, d] by input name.

    Raises AdapterError for another base and with every bad tensor.
    """
    base, tensors = read_adapter(path)
    if base != bundle.base_version:
        raise AdapterError(
            f"{path} was trained on another base ({base:07x}…, this bundle's is {bundle.fingerprint[:7]}…)"
        )
    if bad := _misfits(tensors, bundle.vectors):
        raise AdapterError(f"{path} does not fit {bundle.path}; {len(bad)} bad tensors: {'; '.join(bad)}")
    return tensors


def read_adapter(path: Path) -> tuple[int, Vectors]:
    """Model version and tensors of any .onnx_adapter. Raises AdapterError."""
    if not path.is_file():
        raise AdapterError(f"there is no adapter file {path}")
    try:
        adapter = ort.AdapterFormat.read_adapter(str(path))
        # .numpy() is a view of the adapter's memory and does not keep it alive: without the copy the vectors become
        # garbage after return
        tensors = {name: np.array(value.numpy()) for name, value in adapter.get_parameters().items()}
        return int(adapter.get_model_version()), tensors
    except Exception as error:  # onnxruntime raises its own types, without a common base
        raise AdapterError(f"{path} cannot be read as an .onnx_adapter: {str(error).splitlines()[0]}") from error


def _misfits(tensors: Mapping[str, NDArray[np.float32]], sizes: Mapping[str, int]) -> list[str]:
    """One clause for each tensor that is missing, unknown, of a wrong shape or type, or not finite."""
    bad = [f"{name} is missing" for name in sizes if name not in tensors]
    for name, tensor in tensors.items():
        if name not in sizes:
            bad.append(f"{name} has no place here")
        elif tensor.shape != (1, 1, sizes[name]):
            bad.append(f"{name} has shape {list(tensor.shape)} instead of {[1, 1, sizes[name]]}")
        elif tensor.dtype != np.float32:
            bad.append(f"{name} is {tensor.dtype} instead of float32")
        elif not np.isfinite(tensor).all():
            bad.append(f"{name} holds NaN or infinity")
    return bad


class AdapterBank:
    """A bundle's adapters by name, read when first asked for and kept (4 bytes a parameter)."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._ones: Vectors = {name: np.ones((1, 1, size), np.float32) for name, size in bundle.vectors.items()}
        self._loaded: dict[str, Vectors] = {}

    def vectors(self, name: str | None) -> Vectors:
        """[1, 1, d] by input name; ones for None or "none".

        A merged bundle has none at all, and answers to its one task's name.
        """
        if name is None or name == NONE:
            if self.bundle.mode == "merged" and name == NONE:
                raise AdapterError(
                    f"{self.bundle.path} is merged with {self.bundle.merged_task!r}: its base is not there without it"
                )
            return self._ones
        if self.bundle.mode == "merged" and name == self.bundle.merged_task:
            return {}
        if name not in self.bundle.adapters:
            raise AdapterError(self._unknown(name))
        if name not in self._loaded:
            self._loaded[name] = load_adapter(self.bundle.path / ADAPTERS / f"{name}{ADAPTER}", self.bundle)
        return self._loaded[name]

    def rows(self, names: Sequence[str | None]) -> Vectors:
        """[len(names), 1, d] by input name: row i of the batch has adapter names[i]."""
        each = [self.vectors(name) for name in names]
        return {key: np.concatenate([v[key] for v in each]) for key in each[0]} if each else {}

    def _unknown(self, name: str) -> str:
        """The complaint, with the known names, the nearest first."""
        known = self.bundle.adapters or ((self.bundle.merged_task,) if self.bundle.merged_task else ())
        near = sorted(known, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
        hint = "did you mean " + repr(near[0]) + "? " if difflib.get_close_matches(name, known) else ""
        return f"{self.bundle.path} has no adapter {name!r}; {hint}it has: {', '.join(near) or 'none'}"
