"""Puts the report of a bundle that was just built into docs/reports.md, between its two marks.

make demo && python benchmarks/sample_report.py dist/home-intents
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reports.md"
START, END = "<!-- sample-report:start -->", "<!-- sample-report:end -->"
SHOWN = ("Tasks", "Parity with torch", "Memory and speed", "Bytes on disk", "Whole systems", "The published claim")


def sample(report: str) -> str:
    """The sections that the page shows, one heading deeper than their own document has them."""
    title, *sections = re.split(r"^## ", report, flags=re.M)
    chosen = [s for s in sections if s.split("\n", 1)[0] in SHOWN]
    return "\n".join(
        [
            title.split("\n", 1)[1].strip(),
            "",
            *(f"**{s.split(chr(10), 1)[0]}**\n{s.split(chr(10), 1)[1].rstrip()}\n" for s in chosen),
        ]
    )


def main() -> None:
    report = (Path(sys.argv[1]) / "report.md").read_text(encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    PAGE.write_text(f"{before}{START}\n{sample(report)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
