"""The report as part of a bundle: report.md, report.json and report.html, whose own bytes count in its total.

The HTML needs the library that draws its charts. If a bundle is changed without it (a device imports an adapter), the
old file would be out of date, so it is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from qia3.bundle.manifest import Manifest
from qia3.bundle.seal import seal_files, to_json
from qia3.footprint.bundle_page import bundle_page
from qia3.footprint.report import build_report
from qia3.footprint.sections import Page
from qia3.printers.data import page_data
from qia3.printers.html import html
from qia3.printers.markdown import markdown


def seal(folder: Path, manifest: Manifest, render: Callable[[Page], str] = markdown) -> Manifest:
    """Seals a bundle's folder with its report; returns the manifest as written, with its files.

    Raises BundleError if the bytes do not add up, or if the text does not settle on its own length.
    """
    drawn = find_spec("matplotlib") is not None

    def documents(bare: Manifest, sizes: Mapping[str, int]) -> dict[str, bytes]:
        made = build_report(folder, bare, sizes)
        page = bundle_page(made)
        texts = {"report.md": render(page).encode(), "report.json": to_json(page_data(page, made.to_dict()))}
        return texts | ({"report.html": html(page).encode()} if drawn else {})

    return seal_files(folder, manifest, documents)
