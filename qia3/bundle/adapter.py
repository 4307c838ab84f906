"""An adapter: its vectors, the base that they were trained on, and the task that they are for. And its file on a
device.

An .onnx_adapter is ONNX Runtime's flatbuffer of named tensors. Here it holds the IA³ vectors, float32 [1, 1, d], by the
graph's input name, and, for an encoder's task, its head (head.py). The file's model version is the first 28 bits of the
base's fingerprint (seven hexadecimal digits), so a file says which base it was trained on (law 7). In memory a vector
is [d]. The other form of an adapter, a PEFT checkpoint, is in peft.py.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from qia3.bundle.head import Head
from qia3.bundle.ports import HEAD
from qia3.bundle.sites import VERSION_DIGITS, Vectors, base_version
from qia3.bundle.task import Task
from qia3.errors import AdapterError, first_line, shown

Tensors = dict[str, NDArray[Any]]
FORM = re.compile(rf"[0-9a-f]{{{VERSION_DIGITS}}}|[0-9a-f]{{64}}")  # of an adapter's base: short or full fingerprint


@dataclass(frozen=True)
class Adapter:
    """`vectors` are [size] by site name. `base` is the fingerprint of the base, its first seven digits if the file
    holds no more, or None in a checkpoint that PEFT wrote. `task` is None if the adapter came without one. `head` is
    set for an encoder's task only.
    """

    vectors: Vectors
    base: str | None
    task: Task | None = None
    head: Head | None = None

    def check_base(self, fingerprint: str, where: object) -> None:
        """Raises AdapterError if it was trained on a base with another fingerprint, or if its fingerprint is in a form
        that no version of qia3 has written.
        """
        if self.base in (None, fingerprint, fingerprint[:VERSION_DIGITS]):
            return
        if not FORM.fullmatch(self.base):
            raise AdapterError(
                f"{where} does not say which base it was trained on: {self.base[:12]!r} is not a fingerprint"
            )
        ours, theirs = fingerprint[: len(self.base)], self.base
        raise AdapterError(
            f"{where} was trained on another base (its fingerprint is {theirs[:12]}…, this base's is {ours[:12]}…)"
        )

    @property
    def inputs(self) -> Vectors:
        """The graph's inputs by name: vectors [1, 1, size] and the head; copies."""
        return as_inputs(self.vectors) | ({} if self.head is None else self.head.inputs)


def as_inputs(vectors: Mapping[str, NDArray[np.float32]]) -> Vectors:
    """[size] -> [1, 1, size], copies."""
    return {name: np.asarray(vector, np.float32).reshape(1, 1, -1).copy() for name, vector in vectors.items()}


def write_adapter(
    path: Path, vectors: Mapping[str, NDArray[np.float32]], fingerprint: str, head: Head | None = None
) -> None:
    """Writes an .onnx_adapter of vectors [size] by name, and of a head if there is one."""
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(base_version(fingerprint))
    # OrtValues are kept here because the format holds no reference to them. Sorted, so that the same vectors give the
    # same file
    inputs = Adapter(dict(vectors), None, head=head).inputs
    values = {n: ort.OrtValue.ortvalue_from_numpy(v) for n, v in sorted(inputs.items())}
    adapter.set_parameters(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    adapter.export_adapter(str(path))


def read_adapter(path: Path) -> Adapter:
    """Reads an .onnx_adapter for any base. Raises AdapterError that lists every tensor that is not an IA³ vector."""
    base, tensors, head = _read(path)
    _refuse(path, "does not hold IA³ vectors only", [c for n, t in tensors.items() for c in _misfit(n, t, None)])
    return Adapter({name: tensor.flatten() for name, tensor in tensors.items()}, base, head=head)


def load_adapter(
    path: Path, sizes: Mapping[str, int], fingerprint: str, optional: Collection[str] = frozenset()
) -> Adapter:
    """Reads an .onnx_adapter for a graph with inputs of these `sizes`; all but the `optional` ones must be there.

    Raises AdapterError if it is for another base, or that lists every bad tensor.
    """
    base, tensors, head = _read(path)
    Adapter({}, base).check_base(fingerprint, path)
    bad = [f"{name} is missing" for name in sizes if name not in tensors and name not in optional]
    for name, tensor in tensors.items():
        bad += _misfit(name, tensor, sizes[name]) if name in sizes else [f"{shown(name)} is not an input of this base"]
    _refuse(path, "does not fit this base", bad)
    return Adapter({name: tensor.flatten() for name, tensor in tensors.items()}, base, head=head)


def _read(path: Path) -> tuple[str, Tensors, Head | None]:
    """First digits of the base's fingerprint, copies of the vectors as stored, and the head."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        regular = False
    if not regular:
        raise AdapterError(f"there is no adapter file {path}")
    try:
        adapter = ort.AdapterFormat.read_adapter(str(path))
        # .numpy() is a view of the adapter's memory and does not keep it alive: without the copy the vectors become
        # garbage after return
        tensors = {name: np.array(value.numpy()) for name, value in adapter.get_parameters().items()}
        version = int(adapter.get_model_version())
    except Exception as error:  # onnxruntime raises its own types, without a common base
        raise AdapterError(f"{path} cannot be read as an .onnx_adapter: {first_line(error)}") from error
    head = Head.of(tensors, path)
    return f"{version:0{VERSION_DIGITS}x}", {n: t for n, t in tensors.items() if n not in HEAD}, head


def _misfit(name: str, tensor: NDArray[Any], size: int | None) -> Iterable[str]:
    """Why a tensor cannot be the vector of a graph input of `size` (None: any size)."""
    shape = (1, 1, (tensor.shape[-1] if tensor.ndim else 0) if size is None else size)
    if tensor.shape != shape:
        yield f"{shown(name)} has shape {list(tensor.shape)} instead of {list(shape) if size else '[1, 1, size]'}"
    elif tensor.dtype != np.float32:
        yield f"{shown(name)} is {tensor.dtype} instead of float32"
    elif not np.isfinite(tensor).all():
        yield f"{shown(name)} holds NaN or infinity"


def _refuse(path: Path, what: str, bad: list[str]) -> None:
    if bad:
        raise AdapterError(f"{path} {what}; {len(bad)} bad tensor{'s' * (len(bad) > 1)}: {'; '.join(bad)}")
