"""The report as a bundle carries it: report.md and report.json, whose own bytes are inside its total."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qia3.bundle.seal import seal_files, to_json
from qia3.footprint.render import markdown
from qia3.footprint.report import Report, build_report


def seal(folder: Path, manifest: dict[str, Any], render: Callable[[Report], str] = markdown) -> Report:
    """Seals a bundle's folder with its report, which is returned.

    Raises BundleError where the bytes do not add up, or where the text does not settle on its own length.
    """
    made: list[Report] = []

    def documents(bare: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, bytes]:
        made[:] = [build_report(folder, bare, sizes)]
        return {"report.md": render(made[0]).encode(), "report.json": to_json(made[0].to_dict())}

    seal_files(folder, manifest, documents)
    return made[0]
