"""Writes a bundle's documents and manifest.json, where a document may state how many bytes the whole bundle takes.

The length of a document depends on how many digits that number has, so it is rewritten until the stated length is the
actual length, which takes two or three rounds. Percentages of the whole may oscillate by a digit; after some rounds a
document is no longer allowed to shrink and is padded with empty lines. The JSON is deterministic: keys in the order
given, one space of indent, a newline at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qia3.bundle.layout import MANIFEST, WRITTEN_ANEW
from qia3.bundle.manifest import File, Manifest
from qia3.errors import BundleError

ROUNDS, FREE_ROUNDS = 20, 6
# contents of the documents by name, given the manifest without `files` and the sizes of the sealed files
Documents = Callable[[Manifest, Mapping[str, int]], Mapping[str, bytes]]


def seal_files(folder: Path, manifest: Manifest, documents: Documents) -> Manifest:
    """Writes `manifest` with its `files` (SHA-256 and bytes of every file but the manifest), and the documents. Returns
    it.

    Raises BundleError if a document does not settle on its own length, and whatever `documents` raises.
    """
    others = {name: _entry_of(folder / name) for name in files_on_disk(folder) if name not in WRITTEN_ANEW}
    bare = replace(manifest, files={})  # the list of an earlier seal is out of date
    sizes = dict.fromkeys(WRITTEN_ANEW, 0)
    for turn in range(ROUNDS):
        written = dict(documents(bare, sizes))
        if turn >= FREE_ROUNDS:
            written = {name: data.ljust(sizes[name], b"\n") for name, data in written.items()}
        files = sorted((others | {name: _entry(data) for name, data in written.items()}).items())
        sealed = replace(manifest, files=dict(files))
        written[MANIFEST] = to_json(sealed.to_json())
        stated, sizes = sizes, dict.fromkeys(WRITTEN_ANEW, 0) | {name: len(data) for name, data in written.items()}
        if stated == sizes:
            for name in set(WRITTEN_ANEW) - set(written):  # a document of an earlier seal, now out of date
                (folder / name).unlink(missing_ok=True)
            for name, data in written.items():
                (folder / name).write_bytes(data)
            return sealed
    raise BundleError(f"the report of {folder} does not settle on its own length; this is a bug, please report it")


def files_on_disk(folder: Path) -> dict[str, int]:
    """Bytes per file, by path within the folder; follows links to folders, each folder once."""
    found: dict[str, int] = {}
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        paths = (Path(place, name) for name in files)
        found |= {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths if path.is_file()}
    return dict(sorted(found.items()))


def to_json(content: Any) -> bytes:
    """JSON in UTF-8: keys in their order, one space of indent, a newline at the end."""
    return (json.dumps(content, indent=1, sort_keys=False, ensure_ascii=False) + "\n").encode()


def _entry(data: bytes) -> File:
    return File(hashlib.sha256(data).hexdigest(), len(data))


def _entry_of(path: Path) -> File:
    """Reads in pieces: a weight file may be larger than memory."""
    with path.open("rb") as file:
        return File(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)
