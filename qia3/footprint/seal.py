"""Writes report.md, report.json and manifest.json so that the report's own bytes are inside its total.

The report states how many bytes it takes, and its length depends on how many digits that has: it is written again until the length that it
states is the length that it has, which takes two or three rounds.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from qia3.errors import BundleError
from qia3.footprint.account import SEALED
from qia3.footprint.render import markdown
from qia3.footprint.report import Report, build_report

ROUNDS = 20


def seal(folder: Path, manifest: dict[str, Any]) -> Report:
    """Adds `files` (SHA-256 and bytes of every file but the manifest) to `manifest` and writes the three files."""
    others = {n: _entry(f.read_bytes()) for n, f in _files(folder).items() if n not in SEALED}
    sizes = dict.fromkeys(SEALED, 0)
    for _ in range(ROUNDS):
        report = build_report(folder, manifest, sizes)
        written = {"report.md": markdown(report).encode(), "report.json": _json(report.to_dict())}
        manifest["files"] = others | {n: _entry(data) for n, data in written.items()}
        written["manifest.json"] = _json(manifest)
        if sizes == (sizes := {n: len(data) for n, data in written.items()}):
            for name, data in written.items():
                (folder / name).write_bytes(data)
            return report
    raise BundleError(f"the report of {folder} does not settle on its own length; this is a defect, please report it")


def _files(folder: Path) -> dict[str, Path]:
    return {f.relative_to(folder).as_posix(): f for f in sorted(folder.rglob("*")) if f.is_file()}


def _entry(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
