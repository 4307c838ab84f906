"""What a base is made from, told by content: two copies of a model are one, whatever their folders and times.

The weights are hashed whole, and the small files that transformers reads beside them. A file's SHA-256 is remembered
with its place, size, inode and both of its times: a program can set the time of modification back, but not that of the
inode's change, so a file that was written to since is hashed anew. A file that was changed in the last seconds is not
remembered at all: a second change within the clock's tick would not be seen.
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
BESIDE_GGUF = ("tokenizer.json",)  # read where the file's own tokenizer is not understood
LEAST_REMEMBERED = 1 << 26  # bytes; a smaller file is hashed in a blink
SETTLED = 2.0  # seconds; the coarsest times are those of FAT


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
    """SHA-256 of a file; of a large one it is remembered in `memory`. Raises BaseModelError."""
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
    """What is damaged or not there is nothing."""
    try:
        return read_json_table(memory, BaseModelError) if memory.is_file() else {}
    except BaseModelError:
        return {}


def _remember(memory: Path, known: dict[str, Any]) -> None:
    """Whole or not at all; where the cache cannot be written, the next build hashes again."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=memory.parent, prefix=f"{memory.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            json.dump({place: facts for place, facts in known.items() if Path(place).exists()}, opened, indent=1)
        Path(scratch).replace(memory)
    except OSError:
        return
