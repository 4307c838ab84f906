"""The report as a bundle carries it: report.md and report.json, whose own bytes are inside its total."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from qia3.bundle.manifest import Manifest
from qia3.bundle.seal import seal_files, to_json
from qia3.footprint.bundle_page import bundle_page
from qia3.footprint.report import build_report
from qia3.footprint.sections import Page
from qia3.printers.markdown import markdown


def seal(folder: Path, manifest: Manifest, render: Callable[[Page], str] = markdown) -> Manifest:
    """Seals a bundle's folder with its report; the manifest as it is written, with its files.

    Raises BundleError where the bytes do not add up, or where the text does not settle on its own length.
    """

    def documents(bare: Manifest, sizes: Mapping[str, int]) -> dict[str, bytes]:
        made = build_report(folder, bare, sizes)
        return {"report.md": render(bundle_page(made)).encode(), "report.json": to_json(made.to_dict())}

    return seal_files(folder, manifest, documents)
