"""A bundle, opened and checked: every file is there, and is byte for byte what the build wrote."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qia3.errors import BundleError

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class BundleTask:
    """One job: its whole prompt, holding {text} once, and the text of the token that ends an answer."""

    name: str
    kind: str
    prompt: str
    choices: tuple[str, ...] | None
    max_new_tokens: int
    end: str


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder and what its manifest says."""

    path: Path
    name: str
    mode: str
    merged_task: str | None
    fingerprint: str
    layers: int
    kv_heads: int
    head_size: int
    context_length: int
    vectors: dict[str, int]
    tasks: dict[str, BundleTask]
    adapters: tuple[str, ...]
    prefix: str
    suffix: str
    stop_tokens: tuple[int, ...]

    @classmethod
    def open(cls, path: Path | str, verify: bool = True) -> Bundle:
        """Raises BundleError: no bundle, a newer format, or every file that is missing or changed."""
        path = Path(path)
        manifest = read_manifest(path)
        if verify:
            check_files(path, manifest)
        try:
            return cls._from_manifest(path, manifest)
        except (KeyError, TypeError) as error:
            raise BundleError(f"{path / MANIFEST} lacks {error}; build the bundle again") from error

    @classmethod
    def _from_manifest(cls, path: Path, manifest: dict[str, Any]) -> Bundle:
        shape = manifest["architecture"]
        tasks = {name: BundleTask(name=name, **(task | {"choices": task["choices"] and tuple(task["choices"])})) for name, task in manifest["tasks"].items()}
        return cls(
            path=path,
            name=manifest["name"],
            mode=manifest["mode"],
            merged_task=manifest["merged_task"],
            fingerprint=manifest["base"]["fingerprint"],
            layers=shape["layers"],
            kv_heads=shape["kv_heads"],
            head_size=shape["head_size"],
            context_length=shape["context_length"],
            vectors={v["name"]: v["size"] for v in manifest["graph"]["vectors"]},
            tasks=tasks,
            adapters=tuple(sorted(f.removeprefix("adapters/").removesuffix(".onnx_adapter") for f in manifest["files"] if f.endswith(".onnx_adapter"))),
            prefix=manifest["prompt"]["prefix"],
            suffix=manifest["prompt"]["suffix"],
            stop_tokens=tuple(manifest["stop_tokens"]),
        )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest as it stands. Raises BundleError."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["format"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}; make one with `qia3 build`") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise BundleError(f"{path / MANIFEST} is damaged ({error}); build the bundle again") from error
    if version != FORMAT:
        raise BundleError(f"{path} has bundle format {version}, this version reads {FORMAT}; upgrade qia3 or build it again")
    return dict(manifest)


def check_files(path: Path, manifest: dict[str, Any]) -> None:
    """Presence, size and SHA-256 of every file that the manifest lists."""
    bad = []
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            bad.append(f"{name} is missing")
        elif file.stat().st_size != expected["bytes"]:
            bad.append(f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}")
        elif _sha256(file) != expected["sha256"]:
            bad.append(f"{name} has changed")
    if bad:
        raise BundleError(f"{path} is not what was built: {'; '.join(bad)}; copy it again or rebuild it")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
