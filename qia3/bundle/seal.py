"""Writes a bundle's documents and manifest.json, where a document may state how many bytes the whole bundle takes.

A document's length depends on how many digits that number has: it is written again until the length that it states is
the length that it has, which takes two or three rounds. Shares of the whole may go to and fro by a digit; after some rounds
a document is not allowed to shrink, and ends with empty lines instead. The JSON is deterministic: keys in the order they were given,
one space of indent, a newline at the end.
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
# what the documents hold, by name, given the manifest without `files` and the sizes that the sealed files are to have
Documents = Callable[[Manifest, Mapping[str, int]], Mapping[str, bytes]]


def seal_files(folder: Path, manifest: Manifest, documents: Documents) -> Manifest:
    """`manifest` with its `files` (SHA-256 and bytes of every file but the manifest), written with the documents.

    Raises BundleError where a document does not settle on its own length, and as `documents` does.
    """
    others = {name: _entry_of(folder / name) for name in files_on_disk(folder) if name not in WRITTEN_ANEW}
    bare = replace(manifest, files={})  # an earlier seal's list is not today's
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
            for name in set(WRITTEN_ANEW) - set(written):  # an earlier one, which speaks of what was
                (folder / name).unlink(missing_ok=True)
            for name, data in written.items():
                (folder / name).write_bytes(data)
            return sealed
    raise BundleError(f"the report of {folder} does not settle on its own length; this is a defect, please report it")


def files_on_disk(folder: Path) -> dict[str, int]:
    """Bytes of each file, by its path within the folder; through links to folders, each folder once."""
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
    """UTF-8, keys in their order, one space of indent, a newline at the end."""
    return (json.dumps(content, indent=1, sort_keys=False, ensure_ascii=False) + "\n").encode()


def _entry(data: bytes) -> File:
    return File(hashlib.sha256(data).hexdigest(), len(data))


def _entry_of(path: Path) -> File:
    """Read in pieces: a weight file may be larger than memory."""
    with path.open("rb") as file:
        return File(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)
