"""Adapters in and out of a finished bundle: describe one, export one as a PEFT checkpoint, import one.

Importing an adapter changes the bundle the way a build does: a complete new folder is made beside it and takes its
place at the end. Large files are hard links to the old ones if the disk allows, so this needs no second copy of the
weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from qia3.bundle.adapter import Adapter, read_adapter, write_adapter
from qia3.bundle.cache_range import check_range
from qia3.bundle.folder import linked_copy, whole_or_absent
from qia3.bundle.opened import ADAPTERS, Bundle
from qia3.bundle.peft import open_peft, write_peft
from qia3.bundle.records import Record
from qia3.bundle.seal import files_on_disk
from qia3.bundle.sites import Vectors
from qia3.bundle.task import TASK, Task, write_task
from qia3.errors import AdapterError, ConfigError, shown
from qia3.names import ADAPTER, check_name
from qia3.printers.documents import seal
from qia3.progress import say
from qia3.runtime.completed import completed
from qia3.runtime.readback import read_back
from qia3.storage import alone

T = TypeVar("T")


@dataclass(frozen=True)
class Imported:
    """The bundle that an adapter was added to, and its task there: its own, or the base's plain prompt."""

    bundle: Path
    task: Task
    has_own_task: bool


def adapter_info(path: Path | str) -> dict[str, Any]:
    """The content of an adapter.

    `path` is an .onnx_adapter, a PEFT folder, or BUNDLE:NAME. Per tensor: size, and smallest, largest and mean entry.
    """
    text = str(path)
    bundle, _, name = text.rpartition(":")
    place = Path(bundle) / ADAPTERS / f"{name}{ADAPTER}" if bundle and not Path(text).exists() else Path(text)
    if not place.exists():
        raise AdapterError(f"there is no adapter {text}")
    vectors, base = _peft_tensors(place) if place.is_dir() else _onnx_tensors(place)
    if bad := [n for n, v in vectors.items() if not v.size or not np.isfinite(v).all()]:
        raise AdapterError(f"{text} holds tensors that are empty, NaN or infinite: {', '.join(map(shown, bad))}")
    return {
        "path": text,
        "base": base,
        "bytes": sum(f.stat().st_size for f in (place.iterdir() if place.is_dir() else [place]) if f.is_file()),
        "parameters": sum(int(v.size) for v in vectors.values()),
        "tensors": {
            n: {"size": int(v.size), "min": float(v.min()), "max": float(v.max()), "mean": float(v.mean())}
            for n, v in vectors.items()
        },
    }


def import_adapter(bundle: Path, folder: Path, name: str) -> Imported:
    """Puts a PEFT IA³ checkpoint into a side-mode bundle.

    Raises AdapterError or ConfigError and leaves the bundle as it was; an existing adapter is never overwritten.
    """
    with alone(bundle, say):
        opened = _open_for(bundle, name)
        adapter = completed(opened, folder, name)
        assert adapter.task is not None  # a completed adapter has its own task, or the base's
        _put_in(opened, adapter, adapter.task)
    return Imported(bundle, adapter.task, (folder / TASK).exists())


def put_in(bundle: Path, adapter: Adapter, record: Record | None = None) -> None:
    """Puts an adapter that has all vectors and a task into a side-mode bundle, under the task's name.

    Raises as `import_adapter` does.
    """
    assert adapter.task is not None
    with alone(bundle, say):
        opened = _open_for(bundle, adapter.task.name)
        check_range(bundle, adapter.vectors, adapter.task.name)
        _put_in(opened, adapter, adapter.task, record)


def take_out(bundle: Path, name: str) -> None:
    """Removes an adapter from a bundle, and its task. Raises AdapterError if there is no adapter of that name."""
    with alone(bundle, say):
        opened = Bundle.open(bundle)
        if name not in opened.adapters:
            raise AdapterError(f"{bundle} has no adapter {name!r}; it has: {', '.join(opened.adapters) or 'none'}")
        manifest = opened.manifest
        bare = replace(
            manifest,
            tasks=_without(manifest.tasks, name),
            training=_without(manifest.training, name),
            evaluation=None if manifest.evaluation is None else _without(manifest.evaluation, name),
            parity=None if manifest.parity is None else _without(manifest.parity, name),
        )
        gone = (f"{ADAPTERS}{name}{ADAPTER}", f"{ADAPTERS}{name}/")
        with whole_or_absent(bundle, partial(read_back, adapters=None)) as scratch:
            linked_copy(bundle, scratch, [file for file in files_on_disk(bundle) if not file.startswith(gone)])
            seal(scratch, bare)


def _without(entries: Mapping[str, T], name: str) -> dict[str, T]:
    return {key: entry for key, entry in entries.items() if key != name}


def _open_for(bundle: Path, name: str) -> Bundle:
    """Opens a bundle that can take an adapter of this name. Raises AdapterError, ConfigError."""
    opened = Bundle.open(bundle)
    if opened.mode != "side":
        raise AdapterError(f"{bundle} is merged: its graph has no inputs for vectors; build it with mode 'side'")
    check_free(bundle, name, {*opened.tasks, *opened.adapters})
    return opened


def _put_in(opened: Bundle, adapter: Adapter, task: Task, record: Record | None = None) -> None:
    """Call this while holding the bundle's lock (`alone`)."""
    bundle, manifest, name = opened.path, opened.manifest, task.name
    training = manifest.training if record is None else {**manifest.training, name: record}
    with whole_or_absent(bundle, partial(read_back, adapters=[name])) as scratch:
        linked_copy(bundle, scratch, manifest.files)
        write_adapter(scratch / ADAPTERS / f"{name}{ADAPTER}", adapter.vectors, opened.fingerprint, adapter.head)
        kept = replace(adapter, base=opened.fingerprint, task=None)
        encoder = manifest.architecture.pooling is not None
        write_peft(scratch / ADAPTERS / name, kept, manifest.sites, manifest.base.reference, encoder)
        seal(scratch, replace(manifest, tasks={**manifest.tasks, name: task}, training=training))
        linked_copy(bundle, scratch, files_on_disk(bundle))  # other files in the folder are kept, but not listed


def export_adapter(bundle: Path, name: str, folder: Path) -> Path:
    """Writes an adapter as a PEFT checkpoint, with its task beside it.

    Raises AdapterError, and ConfigError if `folder` is not empty.
    """
    opened, place = Bundle.open(bundle), bundle / ADAPTERS / name
    exportable = [n for n in opened.adapters if n in opened.tasks and (bundle / ADAPTERS / n).is_dir()]
    if name not in exportable:
        raise AdapterError(f"{bundle} has no adapter {name!r}; it has: {', '.join(exportable) or 'none'}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is {'not empty' if folder.is_dir() else 'a file'}; choose another folder")
    shutil.copytree(place, folder, dirs_exist_ok=True)
    write_task(folder, opened.tasks[name])
    return folder


def check_free(bundle: Path, name: str, taken: set[str]) -> None:
    """Raises ConfigError if `name` is not a valid name, AdapterError if it is taken."""
    try:
        check_name(name, taken)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if name in taken or (bundle / ADAPTERS / f"{name}{ADAPTER}").exists():
        raise AdapterError(f"{bundle} already has an adapter called {name!r}; choose another name")


def _onnx_tensors(path: Path) -> tuple[Vectors, str | None]:
    adapter = read_adapter(path)
    return adapter.vectors | ({} if adapter.head is None else adapter.head.inputs), adapter.base


def _peft_tensors(folder: Path) -> tuple[Vectors, str | None]:
    found = open_peft(folder)
    if not found.tensors:
        raise AdapterError(f"{folder} holds no tensors")
    return found.tensors, found.base
