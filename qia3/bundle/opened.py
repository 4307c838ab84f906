"""A bundle, opened and checked: every file is there, and is byte for byte what the build wrote.

manifest.json lists every other file with its size and SHA-256. A file that is missing, changed or not listed though the
runtime needs it is refused, all of them in one line; files that the manifest does not know are left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from qia3.bundle.layout import MANIFEST, graph_files
from qia3.bundle.sites import base_version
from qia3.bundle.task import Task
from qia3.errors import BundleError
from qia3.names import ADAPTER

FORMAT = 2
READABLE = (1, FORMAT)  # format 1 had its graph beside the manifest
ADAPTERS = "adapters/"


@dataclass(frozen=True)
class Architecture:
    """Counts and sizes of the base; context_length in tokens."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    hidden_size: int
    vocab_size: int
    context_length: int


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder and what its manifest says."""

    path: Path
    name: str
    mode: str  # "side" or "merged"
    merged_task: str | None
    graph: str  # the .onnx, within the folder
    fingerprint: str
    base_version: int  # what an adapter of this base carries: the fingerprint's first 28 bits
    architecture: Architecture
    vectors: dict[str, int]  # input name -> size; empty when merged
    tasks: dict[str, Task]
    adapters: tuple[str, ...]
    prefix: str
    suffix: str
    stop_tokens: tuple[int, ...]

    @classmethod
    def open(cls, path: Path | str, verify: bool = True) -> Bundle:
        """Raises BundleError: no bundle, a damaged manifest, another format, or every file that is missing or changed."""
        path = Path(path)
        manifest = read_manifest(path)
        try:
            if verify:
                check_files(path, manifest)
            return cls._from_manifest(path, manifest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else f"is damaged ({error})"
            raise BundleError(f"{path / MANIFEST} {what}; build the bundle again") from error

    @classmethod
    def _from_manifest(cls, path: Path, manifest: Mapping[str, Any]) -> Bundle:
        files = [name for name in manifest["files"] if name.startswith(ADAPTERS) and name.endswith(ADAPTER)]
        fingerprint = manifest["base"]["fingerprint"]
        return cls(
            path=path,
            name=manifest["name"],
            mode=manifest["mode"],
            merged_task=manifest["merged_task"],
            graph=graph_files(manifest)[0],
            fingerprint=fingerprint,
            base_version=base_version(fingerprint),
            architecture=Architecture(
                **{key: int(manifest["architecture"][key]) for key in Architecture.__annotations__}
            ),
            vectors={v["name"]: int(v["size"]) for v in manifest["graph"]["vectors"]},
            tasks={name: Task.from_json(name, task) for name, task in manifest["tasks"].items()},
            adapters=tuple(sorted(name.removeprefix(ADAPTERS).removesuffix(ADAPTER) for name in files)),
            prefix=manifest["prompt"]["prefix"],
            suffix=manifest["prompt"]["suffix"],
            stop_tokens=tuple(int(token) for token in manifest["stop_tokens"]),
        )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest as it stands. Raises BundleError."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["format"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}; make one with `qia3 build`") from error
    except OSError as error:
        raise BundleError(f"cannot read {path / MANIFEST}: {error.strerror}") from error
    except KeyError as error:
        raise BundleError(
            f"{path / MANIFEST} is not a bundle's: it has no {error}; make one with `qia3 build`"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, RecursionError) as error:
        raise BundleError(f"{path / MANIFEST} is damaged ({error}); copy the bundle again or rebuild it") from error
    if version not in READABLE:
        remedy = "upgrade qia3" if isinstance(version, int) and version > FORMAT else "build it again"
        raise BundleError(f"{path} has bundle format {version!r}, this version reads up to {FORMAT}; {remedy}")
    return dict(manifest)


def check_files(path: Path, manifest: Mapping[str, Any]) -> None:
    """Presence, size and SHA-256 of every file that the manifest lists."""
    files = manifest["files"]
    bad = [f"{name} is not in the manifest" for name in graph_files(manifest) if name not in files]
    bad += [complaint for name, expected in files.items() if (complaint := _complaint(path, name, expected))]
    if bad:
        raise BundleError(f"{path} is not what was built: {'; '.join(bad)}; copy it again or rebuild it")


def _complaint(path: Path, name: str, expected: Mapping[str, Any]) -> str | None:
    file, place = path / name, PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts:
        return f"{name} is outside the bundle"
    if not file.is_file():
        return f"{name} is missing"
    if (size := file.stat().st_size) != expected["bytes"]:
        return f"{name} has {size} bytes instead of {expected['bytes']}"
    return None if _sha256(file) == expected["sha256"] else f"{name} has changed"


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
