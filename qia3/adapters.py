"""Adapters in and out of a finished bundle: look at one, take one out as a PEFT checkpoint, put one in.

An adapter that is put in changes the bundle the way a build does: a new folder is made beside it, whole, and takes its
place at the end. Big files are hard links to the old ones where the disk allows, so this costs no second copy of the
weights.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qia3.bundle.adapter import read_adapter, write_adapter
from qia3.bundle.layout import WRITTEN_ANEW
from qia3.bundle.opened import Bundle, read_manifest
from qia3.bundle.sites import Vectors, bundle_sites
from qia3.errors import AdapterError, BundleError, ConfigError
from qia3.footprint.documents import seal
from qia3.graph.folder import whole_or_absent
from qia3.ia3.peft import open_peft, read_peft, write_peft
from qia3.names import check_name

TASK = "task.json"


def adapter_info(path: Path | str) -> dict[str, Any]:
    """What an adapter holds:

    `path` is an .onnx_adapter, a PEFT folder, or BUNDLE:NAME. Per tensor its size, smallest, largest and mean entry.
    """
    text = str(path)
    bundle, _, name = text.rpartition(":")
    place = Path(bundle) / "adapters" / f"{name}.onnx_adapter" if bundle and not Path(text).exists() else Path(text)
    if not place.exists():
        raise AdapterError(f"there is no adapter {text}")
    if place.is_dir():
        vectors, base = _peft_tensors(place)
    else:
        adapter = read_adapter(place)
        vectors, base = adapter.vectors, adapter.base
    return {
        "path": text,
        "base": base,
        "bytes": sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
        if place.is_dir()
        else place.stat().st_size,
        "parameters": sum(int(v.size) for v in vectors.values()),
        "tensors": {
            n: {"size": int(v.size), "min": float(v.min()), "max": float(v.max()), "mean": float(v.mean())}
            for n, v in vectors.items()
        },
    }


def import_adapter(bundle: Path, folder: Path, name: str) -> Path:
    """Puts a PEFT IA³ checkpoint into a side-mode bundle.

    Raises AdapterError; an adapter of that name is never overwritten.
    """
    opened, manifest = Bundle.open(bundle), read_manifest(bundle)
    if manifest["mode"] != "side":
        raise AdapterError(f"{bundle} is merged: its graph has no places for vectors; build it with mode 'side'")
    try:
        check_name(name, manifest["tasks"])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if name in manifest["tasks"] or (bundle / "adapters" / f"{name}.onnx_adapter").exists():
        raise AdapterError(f"{bundle} has an adapter called {name!r} already; choose another name")
    sites = bundle_sites(manifest)
    vectors = read_peft(folder, sites, opened.fingerprint)
    whole: Vectors = {s.name: vectors.get(s.name, np.ones(s.size, np.float32)) for s in sites}
    manifest["tasks"][name] = _task_of(folder, manifest)
    with whole_or_absent(bundle) as scratch:
        _copy(bundle, scratch)
        write_adapter(scratch / "adapters" / f"{name}.onnx_adapter", whole, opened.fingerprint)
        write_peft(scratch / "adapters" / name, whole, sites, manifest["base"]["reference"], opened.fingerprint)
        seal(scratch, manifest)
    return bundle


def export_adapter(bundle: Path, name: str, folder: Path) -> Path:
    """Takes an adapter out as a PEFT checkpoint, with its task beside it.

    Raises ConfigError if `folder` holds something.
    """
    Bundle.open(bundle)
    manifest, place = read_manifest(bundle), bundle / "adapters" / name
    if not place.is_dir():
        known = sorted(p.name for p in (bundle / "adapters").glob("*") if p.is_dir())
        raise AdapterError(f"{bundle} has no adapter {name!r}; it has: {', '.join(known) or 'none'}")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; choose another folder")
    shutil.copytree(place, folder, dirs_exist_ok=True)
    (folder / TASK).write_text(
        json.dumps(manifest["tasks"][name], indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return folder


def _task_of(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The task that came with a checkpoint, or the base's own prompt for generation."""
    try:
        task: dict[str, Any] = json.loads((folder / TASK).read_text(encoding="utf-8"))
        return task
    except FileNotFoundError:
        prompt = manifest["prompt"]
        end = next((t["end"] for t in manifest["tasks"].values()), "")
        return {
            "kind": "generate",
            "prompt": f"{prompt['prefix']}{{text}}{prompt['suffix']}",
            "choices": None,
            "max_new_tokens": 32,
            "end": end,
        }
    except json.JSONDecodeError as error:
        raise AdapterError(f"{folder / TASK} is not JSON: {error}") from error


def _copy(bundle: Path, scratch: Path) -> None:
    """The bundle's files, linked where that works; those that are written anew are left out."""
    for file in sorted(p for p in bundle.rglob("*") if p.is_file()):
        if file.name in WRITTEN_ANEW:
            continue
        place = scratch / file.relative_to(bundle)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, place)
        except OSError:
            shutil.copy2(file, place)


def _peft_tensors(folder: Path) -> tuple[Vectors, str | None]:
    _, tensors, base = open_peft(folder)
    if not tensors:
        raise BundleError(f"{folder} holds no tensors")
    return {name: value.reshape(-1) for name, value in tensors.items()}, base
