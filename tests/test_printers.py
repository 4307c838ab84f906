"""One page, four printers: the figures are the same in each, columns add up as printed, and each reads where it is read."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest
from test_footprint_account import write_bundle

from qia3.bundle.checked import encode
from qia3.cli import main
from qia3.console import complaint
from qia3.footprint.before import Before
from qia3.footprint.before_page import before_page
from qia3.footprint.bundle_page import bundle_page
from qia3.footprint.cells import FORMS, Cell
from qia3.footprint.compare import Comparison, compare
from qia3.footprint.compare_page import compare_page
from qia3.footprint.devices import load_device
from qia3.footprint.estimate import estimate
from qia3.footprint.report import Report, build_report
from qia3.footprint.sections import Chart, Note, Page, Table
from qia3.footprint.sections import table as made_of
from qia3.printers import documents
from qia3.printers.charts import svg
from qia3.printers.data import CellData, ReportData, page_data
from qia3.printers.drawing import drawing
from qia3.printers.html import html
from qia3.printers.markdown import markdown
from qia3.printers.terminal import terminal

GOLDEN = Path(__file__).parent / "golden" / "before.md"
SCHEMA = Path(__file__).parents[1] / "docs" / "report.schema.json"
LLAMA = {
    "model_type": "llama", "vocab_size": 480, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}  # fmt: skip
EVIL = '<img src=x onerror="alert(1)">&|`'


@pytest.fixture(scope="module")
def forecast_of_a_config(tmp_path_factory) -> Before:
    from qia3.forecast import forecast

    file = tmp_path_factory.mktemp("tiny-llama") / "config.json"
    file.write_text(json.dumps(LLAMA))
    devices = [load_device(name) for name in ("raspberry-pi-zero-2-w", "raspberry-pi-5", "intel-n100")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QIA3_CACHE", str(file.parent / "cache"))
        return replace(forecast(str(file), [512, 1024], 2, devices), reference="tiny-llama")


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    folder = tmp_path_factory.mktemp("bundle")
    return build_report(folder, write_bundle(folder))


@pytest.fixture(scope="module")
def compared(forecast_of_a_config, report) -> Comparison:
    estimates = [one.estimate for one in forecast_of_a_config.verdicts]
    ours = [estimate(load_device(one.device), report) for one in estimates]
    return compare([report, forecast_of_a_config], ["small", "tiny-llama"], [ours, estimates])


@pytest.fixture(scope="module", params=["before", "bundle", "compared"])
def page(request, forecast_of_a_config, report, compared) -> Page:
    made = {
        "before": before_page(forecast_of_a_config),
        "bundle": bundle_page(report),
        "compared": compare_page(compared),
    }
    return made[request.param]


def tables(page: Page) -> list[Table]:
    return [one for section in page.sections for one in section.tables]


def test_the_golden_report_before_a_build(forecast_of_a_config):
    """QIA3_GOLDEN=1 writes it anew; read the difference before you commit it."""
    text = markdown(before_page(forecast_of_a_config))
    if os.environ.get("QIA3_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("stuck", "said", "unsaid"),
    [
        (0, "costs nothing beyond the base", "constants of the graph"),
        (320, "but for 320 entries behind an activation function", "nothing beyond the base"),
        (None, "cannot be merged into this model's 4-bit scales", "folds into 4-bit scales exactly"),
    ],
)
def test_merging_is_said_to_be_free_only_where_all_vectors_fold(forecast_of_a_config, stuck, said, unsaid):
    bases = [one.lora_merged_int4_bytes for one in forecast_of_a_config.fleets]
    sizes = [None if stuck is None else base + 4 * n * stuck for base, n in zip(bases, (1, 10, 100, 1000), strict=True)]
    fleets = [replace(one, ia3_merged_bytes=size) for one, size in zip(forecast_of_a_config.fleets, sizes, strict=True)]
    assert {one.constants for one in fleets} == {stuck}
    text = markdown(before_page(replace(forecast_of_a_config, fleets=fleets)))
    assert said in text
    assert unsaid not in text


class Cells(HTMLParser):
    """Rows of every table, and what stands in the page beside it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes) -> None:
        self.attributes += [(name, value or "") for name, value in attributes]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes) -> None:
        pass

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag, "tags are closed in their order"

    def handle_data(self, data) -> None:
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def printed(page: Page, printer: str) -> list[tuple[str, str]]:
    """First and second cells of all rows, as they are printed."""
    if printer == "markdown":
        lines = [line.split("|")[1:3] for line in markdown(page).splitlines() if line.startswith("| ")]
        return [(name.strip(), figure.strip()) for name, figure in lines]
    if printer == "json":
        data = json.loads(json.dumps(page_data(page, {})))
        rows = [row for s in data["sections"] for part in s["body"] if part["kind"] == "table" for row in part["rows"]]
        return [(row[0]["text"], f"{row[1]['value']:,}") for row in rows if isinstance(row[1]["value"], int)]
    if printer == "html":
        return [(row[0], row[1]) for row in Cells(html(page)).rows if len(row) > 1]
    if printer == "narrow":
        return re.findall(r"^(\S.*)\n  (?:bytes|parameters): (\S+)$", terminal(page, 40, colours=False), re.MULTILINE)
    return re.findall(r"^ (\S.*?) {2,}([\d,]+)\b", terminal(page, 160, colours=False), re.MULTILINE)


@pytest.mark.parametrize("printer", ["markdown", "json", "html", "narrow", "wide"])
def test_the_printed_columns_add_up(page, printer):
    adding = [table for table in tables(page) if table.sums]
    assert adding or "beside" in page.title
    found = printed(page, printer)
    for table in adding:
        names = [row[0].text for row in table.rows]
        starts = [i for i in range(len(found)) if [name for name, _ in found[i : i + len(names)]] == names]
        assert starts, (printer, names, found)
        *parts, total = (int(n.replace(",", "")) for _, n in found[starts[-1] : starts[-1] + len(names)])
        assert sum(parts) == total == table.rows[-1][1].value


def test_every_figure_is_in_every_printer(page):
    texts = {cell.text for table in tables(page) for row in table.rows for cell in row if len(cell.text) < 24}
    data, plain = json.dumps(page_data(page, {}), ensure_ascii=False), "".join(Cells(html(page)).words)
    for where in (markdown(page), terminal(page, 160, False), terminal(page, 60, False), data, plain):
        assert [text for text in texts if text.replace("`", "") not in where.replace("`", "")] == []


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_a_terminal_is_never_too_narrow(page, width):
    text = terminal(page, width, colours=False)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "\x1b" not in text
    assert "\x1b[" in terminal(page, width, colours=True)


def test_a_pipe_gets_whole_lines_without_colours(page):
    """As here: pytest's standard output is no terminal."""
    lines = terminal(page).splitlines()
    assert page.lead.replace("`", "") in lines
    notes = [line for s in page.sections for part in s.body if isinstance(part, Note) for line in part.lines]
    assert {note.replace("`", "") for note in notes} <= {line.strip().removeprefix("- ") for line in lines}
    assert "\x1b" not in "".join(lines)


def test_no_colours_where_none_are_wanted(page, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in terminal(page, 80, colours=True)


def test_json_is_what_its_schema_says(page, forecast_of_a_config, report, compared):
    before, bundle = asdict(forecast_of_a_config), report.to_dict()
    figures = {"tiny-llama, before it is built": before, "small": bundle}.get(page.title, asdict(compared))
    data = json.loads(json.dumps(page_data(page, encode(figures))))
    read = ReportData.model_validate(data)
    assert [s.key for s in read.sections] == [s.key for s in page.sections]
    assert set(figures) <= set(data), "what was there before has kept its place"
    assert len({s.key for s in page.sections}) == len(page.sections)
    with pytest.raises(ValueError, match="version"):
        ReportData.model_validate(data | {"version": 2})


def test_the_published_schema_is_that_of_the_code():
    """QIA3_GOLDEN=1 writes it anew; what is gone or changed asks for a new version."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **ReportData.model_json_schema()}
    if os.environ.get("QIA3_GOLDEN"):
        SCHEMA.write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == schema


def test_every_unit_is_in_the_schema():
    known = get_args(CellData.model_fields["unit"].annotation)
    assert {form.unit for form in FORMS.values()} <= set(known)


def test_html_asks_nobody_for_anything(page):
    text = html(page)
    found = Cells(text)
    assert found.open == []
    assert "<script" not in text
    assert "@import" not in text
    assert "url(http" not in text
    for name, value in found.attributes:
        assert not name.startswith("on"), name
        assert name != "src", value
        assert name not in ("href", "xlink:href") or value.startswith(("#", "data:,", "https://")), value
    names = [value for name, value in found.attributes if name == "id"]
    assert len(set(names)) == len(names)
    assert len(text.encode()) < 400_000


def test_what_a_key_reaches_has_a_name_of_its_own(page):
    names = re.findall(r'role="region" tabindex="0" aria-label="([^"]*)"', html(page))
    assert len(names) == len(set(names)) > 1


def test_words_are_words_in_html(forecast_of_a_config):
    page = before_page(replace(forecast_of_a_config, reference=EVIL))
    text = html(page)
    assert "<img" not in text
    assert "&lt;img" in text
    assert Cells(text).open == []


def test_a_chart_has_no_figure_that_its_table_has_not(page):
    drawn = 0
    for table in tables(page):
        for chart in table.charts:
            texts = {cell.text for row in table.rows for cell in row} | {"the rest"}
            found = drawing(table, chart)
            shown = {text for series in found.series for text in series.texts}
            assert chart.kind == "stack" or shown <= texts
            picture = svg(found, 320)
            assert "#0100" not in picture, "every sentinel is a colour of the page"
            assert "<svg" in picture
            assert picture == svg.__wrapped__(found, 320), "the same in every run"
            drawn += 1
    assert drawn >= 2


def test_two_side_by_side(report, forecast_of_a_config, compared):
    """Each figure is that of its own report, and differences and ratios are theirs."""
    first, second = compared.first.figures, compared.second.figures
    assert (first["disk"], second["disk"]) == (report.account.total, None)
    assert first["weights"] == report.account.weights
    assert second["weights"] == next(w.disk_bytes for w in forecast_of_a_config.weights if w.form == "int4, block 64")
    assert first["many"] - first["weights"] == 100 * report.adapters[0].disk_bytes
    assert compared.context == report.architecture.context_length == 128
    assert second["cache"] == 128 * 3 * 2 * 2 * 16 * 4
    assert set(first) == set(second)
    rows = {row[0].text: row for table in tables(compare_page(compared)) for row in table.rows if len(row) == 5}
    row = rows["weights on disk"]
    assert [cell.value for cell in row[1:]] == [
        first["weights"],
        second["weights"],
        second["weights"] - first["weights"],
        second["weights"] / first["weights"],
    ]
    assert [cell.value for cell in rows["whole bundle on disk"][2:]] == [None, None, None]


def test_a_thing_beside_itself_is_the_same(report):
    both = compare([report, report], ["a", "b"], [[], []])
    for table in tables(compare_page(both)):
        for row in table.rows:
            if len(row) == 5:
                assert row[3].value in (0, None)
                assert row[4].value in (1.0, None)


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--compare", "a"], ["--compare", "a", "b", "c"]])
def test_how_many_are_taken(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        main(["report", *arguments])
    assert capsys.readouterr().err.count("\n") == 1


def test_devices_that_were_asked_for_come_right_after_the_answer(report):
    devices = [estimate(load_device(name), report) for name in ("raspberry-pi-5", "intel-n100")]
    small = replace(devices[1], fits=False, usable_ram_bytes=2**20)
    page = bundle_page(report, [devices[0], small])
    assert [s.key for s in page.sections[:2]] == ["answer", "devices"]
    assert [cell.text for cell in next(page.sections[0].tables).rows[0]] == [
        "Fits", "1 of 2 devices", "at the full context; not intel-n100"
    ]  # fmt: skip
    (table,) = bundle_page(report, [small]).sections[0].tables
    assert table.rows[0][1].value is False
    assert "short at the full context" in table.rows[0][2].text


def test_memory_at_the_full_context_is_what_a_device_needs(report):
    """One row at the full context, on the kernels of this machine, which are those of an N100."""
    n100 = estimate(load_device("intel-n100"), report)
    (section,) = [s for s in bundle_page(report, [n100]).sections if s.key == "memory"]
    (found,) = section.tables
    assert report.memory.kernel_here == "x64-int8"
    assert found.rows[-1][2].value == n100.needed_ram_bytes
    assert found.charts == () or found.charts[0].limits[0].value == n100.usable_ram_bytes
    assert all(row[2].value - row[1].value == found.rows[-1][2].value - found.rows[-1][1].value for row in found.rows)


def test_half_a_pair_is_not_drawn():
    rows = [["both", Cell("mib", 2.0), Cell("mib", 3.0)], ["one", Cell("mib", None), Cell("mib", 3.0)]]
    made = made_of(["", "a", "b"], rows, charts=[Chart("pairs", "x", values=(1, 2))])
    assert drawing(made, made.charts[0]).labels == ("both",)


def test_a_stack_is_whole(report):
    (section,) = [s for s in bundle_page(report).sections if s.key == "bytes"]
    (table,) = section.tables
    pieces = drawing(table, table.charts[0]).series
    assert len(pieces) <= 8
    assert sum(piece.values[0] for piece in pieces) == pytest.approx(1, abs=0.01)


def test_without_the_library_html_is_one_line_and_a_bundle_has_none(tmp_path, monkeypatch, report):
    manifest = documents.seal(tmp_path, write_bundle(tmp_path))
    assert "report.html" in manifest.files
    svg.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        html(bundle_page(report))
    assert complaint(caught.value) == ('this needs matplotlib, which is not installed: pip install "qia3[build]"', 2)
    sealed = documents.seal(tmp_path, manifest)
    assert not (tmp_path / "report.html").exists()
    assert "report.html" not in sealed.files
    build_report(tmp_path, sealed)


@pytest.mark.parametrize("options", [[], ["--markdown"], ["--json"], ["--html"], ["--html", "--json"]])
def test_the_command_line(tmp_path, monkeypatch, capsys, forecast_of_a_config, options):
    monkeypatch.setattr("qia3.forecast.forecast", lambda *_: forecast_of_a_config)
    file, page = tmp_path / "x.html", before_page(forecast_of_a_config)
    with pytest.raises(SystemExit, match="0"):
        main(
            [
                "report",
                "tiny-llama",
                *[str(x) for option in options for x in (option, *([file] if option == "--html" else []))],
            ]
        )
    out = capsys.readouterr().out
    said = {
        (): terminal(page, colours=False) + "\n",
        ("--markdown",): markdown(page),
        ("--html",): f"the report is in {file}\n",
    }
    if "--json" in options:
        assert ReportData.model_validate(json.loads(out)).title == page.title
        assert json.loads(out)["parameters"] == forecast_of_a_config.parameters
    else:
        assert out == said[tuple(options)]
    assert file.exists() == ("--html" in options)
    assert not file.exists() or file.read_text(encoding="utf-8") == html(page)
