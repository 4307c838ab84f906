"""Writes docs/reports: what `qia3 report` says of five models before they are built, on eight devices.

    python benchmarks/example_reports.py          # the pages, from what is kept in tests/golden/counted
    python benchmarks/example_reports.py --anew   # the models are counted again first (torch, transformers; a minute)

docs/reports/NAME/config.json has the sizes that a model's makers publish, written down and not fetched; report.md and
report.html are what `qia3 report docs/reports/NAME --device ...` prints as Markdown and writes with `--html`. tests/
test_example_reports.py holds the Markdown against the code.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import TypeAdapter

from qia3.footprint.before import TEXTS, TOKENS, Before, before
from qia3.footprint.before_page import before_page
from qia3.footprint.devices import load_device
from qia3.footprint.shapes import Shapes
from qia3.footprint.verdict import verdict
from qia3.printers.html import html
from qia3.printers.markdown import markdown

ROOT = Path(__file__).parents[1]
REPORTS, COUNTED = ROOT / "docs" / "reports", ROOT / "tests" / "golden" / "counted"
MODELS = {"llama-3.2-1b": 2048, "qwen3-0.6b": 2048, "gemma-3-1b": 2048, "flan-t5-base": 512, "flan-t5-xl": 512}
DEVICES = (
    *("raspberry-pi-zero-2-w", "raspberry-pi-4", "raspberry-pi-5-4gb", "jetson-orin-nano"),
    *("pixel-10", "iphone-16", "intel-n100", "browser-tab-ios"),
)


def example(name: str) -> Before:
    """From the kept count."""
    kept = TypeAdapter(tuple[Shapes, dict[str, int]]).validate_json((COUNTED / f"{name}.json").read_bytes())
    shapes, context = replace(kept[0], reference=name), MODELS[name]
    verdicts = [verdict(shapes, load_device(device), context, 1) for device in DEVICES]
    return before(shapes, [context], 1, kept[1], (TEXTS, TOKENS), verdicts)


def recount(name: str) -> str:
    """A count as it is kept."""
    from qia3.counting import count

    found = count(str(REPORTS / name))
    return json.dumps([asdict(replace(found.shapes, reference=name)), found.kept], separators=(",", ":")) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--anew", action="store_true")
    anew = parser.parse_args().anew
    COUNTED.mkdir(exist_ok=True)
    for name in MODELS:
        if anew:
            (COUNTED / f"{name}.json").write_text(recount(name), encoding="utf-8")
        page = before_page(example(name))
        (REPORTS / name / "report.md").write_text(markdown(page), encoding="utf-8")
        (REPORTS / name / "report.html").write_text(html(page), encoding="utf-8")


if __name__ == "__main__":
    main()
