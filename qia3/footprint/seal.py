"""Writes report.md, report.json and manifest.json so that the report's own bytes are inside its total.

The report states how many bytes it takes, and its length depends on how many digits that has: it is written again until
the length that it states is the length that it has, which takes two or three rounds. The JSON is deterministic: keys in
the order they were given, one space of indent, a newline at the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qia3.errors import BundleError
from qia3.footprint.account import MANIFEST, SEALED, files_on_disk
from qia3.footprint.render import markdown
from qia3.footprint.report import Report, build_report

ROUNDS = 20


def seal(folder: Path, manifest: dict[str, Any], render: Callable[[Report], str] = markdown) -> Report:
    """Adds `files` (SHA-256 and bytes of every file but the manifest) to `manifest` and writes the three files.

    Raises BundleError where the bytes do not add up, or where the text does not settle on its own length.
    """
    others = {name: _entry_of(folder / name) for name in files_on_disk(folder) if name not in SEALED}
    bare = {key: value for key, value in manifest.items() if key != "files"}  # an earlier seal's list is not today's
    sizes = dict.fromkeys(SEALED, 0)
    for _ in range(ROUNDS):
        report = build_report(folder, bare, sizes)
        written = {"report.md": render(report).encode(), "report.json": to_json(report.to_dict())}
        manifest["files"] = dict(sorted((others | {name: _entry(data) for name, data in written.items()}).items()))
        written[MANIFEST] = to_json(manifest)
        stated, sizes = sizes, {name: len(data) for name, data in written.items()}
        if stated == sizes:
            _write(folder, written)
            return report
    raise BundleError(f"the report of {folder} does not settle on its own length; this is a defect, please report it")


def to_json(content: Any) -> bytes:
    """UTF-8, keys in their order, one space of indent, a newline at the end."""
    return (json.dumps(content, indent=1, sort_keys=False, ensure_ascii=False) + "\n").encode()


def _write(folder: Path, written: dict[str, bytes]) -> None:
    for name, data in written.items():
        (folder / name).write_bytes(data)


def _entry(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _entry_of(path: Path) -> dict[str, Any]:
    """Read in pieces: a weight file may be larger than memory."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}
