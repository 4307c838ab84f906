"""The report's HTML as a person sees it: headless Chromium, three widths, light and dark (make browser).

Needs Chromium, node, and what tests/browser/package.json names, in the folder QIA3_BROWSER (tests/browser/setup.sh). Pictures
are left in QIA3_PICTURES: look at them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from test_footprint_account import write_bundle
from test_printers import forecast_of_a_config  # noqa: F401

from qia3.bundle.folder import is_or_was_bundle
from qia3.bundle.opened import Bundle
from qia3.footprint.before import Before
from qia3.footprint.before_page import before_page
from qia3.footprint.bundle_page import bundle_page
from qia3.footprint.report import build_report
from qia3.printers.html import html

LOOK = Path(__file__).parent / "browser" / "look.mjs"
DEMO = Path(__file__).parents[1] / "dist" / "home-intents"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MODULES = os.environ.get("QIA3_BROWSER")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and MODULES and shutil.which("node")), reason="no Chromium, or not by make browser"
    ),
]


def looked_at(folder: Path, pages: dict[str, str]) -> list[dict]:
    files = [folder / f"{name}.html" for name in pages]
    for file in files:
        file.write_text(pages[file.stem], encoding="utf-8")
    pictures = os.environ.get("QIA3_PICTURES", "")  # for people to look at, half of the time
    if pictures:
        Path(pictures).mkdir(parents=True, exist_ok=True)
    command = ["node", LOOK, CHROMIUM, MODULES, pictures, *files]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_reports_in_a_browser(tmp_path, forecast_of_a_config: Before):  # noqa: F811
    bundle = tmp_path / "bundle"
    pages = {"bundle": html(bundle_page(build_report(bundle, write_bundle(bundle))))}
    pages["before"] = html(before_page(forecast_of_a_config))
    pages["encoder"] = html(before_page(replace(forecast_of_a_config, caches=[], needs=forecast_of_a_config.needs[:1])))
    if is_or_was_bundle(DEMO):
        pages["demo"] = html(bundle_page(build_report(DEMO, Bundle.open(DEMO).manifest)))
    found = looked_at(tmp_path, pages)
    assert len(found) == len(pages)
    for page in found:
        name = page.pop("file")
        assert page == {"console": [], "network": [], "wider": [], "outside": [], "axe": []}, name


def test_what_is_wrong_is_seen(tmp_path):
    """The looking itself: a page with a fault of each kind."""
    bad = (
        "<!DOCTYPE html><html><title>x</title><body><section><h2>a</h2><figure><svg viewBox='0 0 9 9' style='width:99px;overflow:visible'>"
        "<text x='900' y='5'>far</text></svg></figure><div style='width:2000px'>b</div><img src='http://127.0.0.1:9/x.png'>"
        "<script>console.error('oh')</script></section></body></html>"
    )
    (found,) = looked_at(tmp_path, {"bad": bad})
    assert all(found[kind] for kind in ("console", "network", "wider", "outside", "axe")), found
