"""What a base is made from, identified by content: copies of a model count as the same, whatever their folders and
times.

The weights are hashed completely, and so are the small files that transformers reads beside them. A file's SHA-256 is
cached with its path, size, inode, mtime and ctime. A program can set the mtime back but not the ctime, so a file that
was written to is hashed again. A file that was changed in the last seconds is not cached: a second change within the
clock's resolution would go unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from qia3.base.shards import INDEX
from qia3.errors import BaseModelError
from qia3.parse import read_json_table

READ = (".json", ".jinja", ".model", ".txt", ".tiktoken")  # beside the weights: configuration and tokenizer
BESIDE_GGUF = ("tokenizer.json",)  # read if the file's own tokenizer is not supported
LEAST_REMEMBERED = 1 << 26  # bytes; smaller files are hashed quickly
SETTLED = 2.0  # seconds; the coarsest file times, those of FAT


def identity(weights: list[Path], gguf: bool, memory: Path) -> list[list[str]]:
    """Names and digests. The name of a GGUF file does not matter. Raises BaseModelError."""
    folder = weights[0].parent
    small = [
        f
        for f in sorted(folder.iterdir())
        if f.is_file() and (f.name in BESIDE_GGUF if gguf else f.suffix in READ and f.name != INDEX)
    ]
    templates = [] if gguf else sorted((folder / "additional_chat_templates").glob("*.jinja"))
    named = [["" if gguf else file.name, digest(file, memory)] for file in weights]
    return named + [[file.name, _hashed(file)] for file in (*small, *templates)]


def digest(file: Path, memory: Path) -> str:
    """SHA-256 of a file; for a large file, cached in `memory`. Raises BaseModelError if it cannot be read."""
    before = _facts(file)
    if before[0] < LEAST_REMEMBERED:
        return _hashed(file)
    place, known = str(file.resolve()), _remembered(memory)
    found = known.get(place)
    if isinstance(found, list) and len(found) == 2 and found[0] == before and isinstance(found[1], str):
        return found[1]
    hashed = _hashed(file)
    settled = time.time() - max(before[1], before[2]) / 1e9 > SETTLED
    if settled and _facts(file) == before:
        _remember(memory, known | {place: [before, hashed]})
    return hashed


def _hashed(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise BaseModelError(f"cannot read {file}: {error.strerror}") from error


def _facts(file: Path) -> list[int]:
    try:
        seen = file.stat()
    except OSError as error:
        raise BaseModelError(f"cannot read {file}: {error.strerror}") from error
    return [seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, seen.st_dev]


def _remembered(memory: Path) -> dict[str, Any]:
    """The cached digests; empty if the file is damaged or missing."""
    try:
        return read_json_table(memory, BaseModelError) if memory.is_file() else {}
    except BaseModelError:
        return {}


def _remember(memory: Path, known: dict[str, Any]) -> None:
    """Writes the cache atomically; if it cannot be written, the next build hashes again."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=memory.parent, prefix=f"{memory.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            json.dump({place: facts for place, facts in known.items() if Path(place).exists()}, opened, indent=1)
        Path(scratch).replace(memory)
    except OSError:
        return
