"""The reports in docs/reports are what the code says; the counts they rest on are made anew with the families."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from example_reports import COUNTED, DEVICES, MODELS, REPORTS, example, recount

from qia3.footprint.before_page import before_page
from qia3.printers.markdown import markdown


@pytest.mark.parametrize("name", MODELS)
def test_a_report_is_what_the_code_says(name: str):
    """`python benchmarks/example_reports.py` writes it anew; read the difference before you commit it."""
    text = markdown(before_page(example(name)))
    assert text == (REPORTS / name / "report.md").read_text(encoding="utf-8")
    assert all(device in text for device in DEVICES)
    assert (REPORTS / name / "report.html").is_file()


def test_every_report_is_in_the_list():
    listed = (REPORTS / "README.md").read_text(encoding="utf-8")
    assert all(f"({name}/report.md)" in listed for name in MODELS)


@pytest.mark.skipif(not os.environ.get("QIA3_ALL_FAMILIES"), reason="a minute; make families")
@pytest.mark.parametrize("name", MODELS)
def test_a_count_is_what_the_model_says(name: str):
    assert recount(name) == (COUNTED / f"{name}.json").read_text(encoding="utf-8")
