"""What a model will cost, before anything is downloaded or built: sizes, what training keeps in memory, and verdicts.

What needs torch (counting.py) is cached for a configuration that is a file: the same question for another device or
context then needs no torch. A cached count is found by everything that it depends on: the configuration's bytes, the
names, sizes and times of the weight files beside it (which say whether the head is a separate table), and the versions
and code used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from qia3.errors import ConfigError, QIA3Error
from qia3.footprint.before import TEXTS, TOKENS, Before, before
from qia3.footprint.device import Device
from qia3.footprint.shapes import Shapes
from qia3.footprint.verdict import verdict
from qia3.parse import read_bytes
from qia3.storage import cache_folder

if TYPE_CHECKING:
    from qia3.counting import Counted

USUAL_CONTEXT = 2048
LARGEST = 1 << 24  # bytes, of a cached count and of a configuration
MOST = 200  # cached counts
CONFIGURATIONS = ("config.json", "generation_config.json")


def forecast(reference: str, contexts: Sequence[int], rows: int, devices: Sequence[Device]) -> Before:
    """Assumes blocks of 64. Verdicts are for the longest of `contexts`, by default USUAL_CONTEXT.

    Raises BaseModelError if the model is not supported, and ConfigError if a context exceeds its positions.
    """
    shapes, kept = counted(reference)
    asked = _contexts(shapes, contexts)
    verdicts = [verdict(shapes, device, max(asked), rows) for device in devices]
    return before(shapes, asked, rows, kept, (TEXTS, TOKENS), verdicts)


def counted(reference: str) -> tuple[Shapes, dict[str, int]]:
    """A model's sizes, and what a training step keeps by method: from the cache, or counted now. Raises BaseModelError."""
    place = _place(reference)
    known = None if place is None else _read(place)
    if known is None:
        from qia3.counting import count

        found = count(reference)
        if place is not None:
            _keep(place, found)
        known = found.shapes, found.kept
    return replace(known[0], reference=reference), known[1]


def _contexts(shapes: Shapes, asked: Sequence[int]) -> list[int]:
    limit = shapes.architecture.context_length
    if not asked:
        return [min(USUAL_CONTEXT, limit or USUAL_CONTEXT)]
    if limit and max(asked) > limit:
        raise ConfigError(f"{shapes.reference} has {limit:,} positions, but a context of {max(asked):,} was asked for")
    return sorted(set(asked))


def _place(reference: str) -> Path | None:
    """The file that this model's count is cached in; None if its configuration is not a separate file."""
    given = Path(reference)
    folder = given.parent if given.name == "config.json" else given
    if not (folder / "config.json").is_file():
        return None
    seen = hashlib.sha256()
    with contextlib.suppress(QIA3Error):
        for part in _made_of(folder):
            seen.update(len(part).to_bytes(8, "little") + part)
        return cache_folder() / "forecasts" / f"{seen.hexdigest()[:32]}.json"
    return None


def _made_of(folder: Path) -> Iterator[bytes]:
    """Everything that a count depends on."""
    for name in CONFIGURATIONS:
        if (folder / name).is_file():
            yield name.encode() + read_bytes(folder / name, ConfigError, largest=LARGEST)
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin", ".py") or file.name.endswith(".index.json"):
            facts = file.stat()
            yield f"{file.name} {facts.st_size} {facts.st_mtime_ns}".encode()
    yield " ".join([sys.version, *(version(name) for name in ("torch", "transformers"))]).encode()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        yield file.read_bytes()


def _read(place: Path) -> tuple[Shapes, dict[str, int]] | None:
    """A cached count; None if there is none or it cannot be read, and it is counted again."""
    from pydantic import TypeAdapter, ValidationError

    if not place.is_file():
        return None
    with contextlib.suppress(QIA3Error, ValidationError, OSError):
        return TypeAdapter(tuple[Shapes, dict[str, int]]).validate_json(read_bytes(place, ConfigError, largest=LARGEST))
    return None


def _keep(place: Path, found: Counted) -> None:
    """Writes atomically; does nothing if the folder cannot be written."""
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch = place.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps([asdict(found.shapes), found.kept]), encoding="utf-8")
        scratch.replace(place)
        for old in sorted(place.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)[:-MOST]:
            old.unlink(missing_ok=True)
