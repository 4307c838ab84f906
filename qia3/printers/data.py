"""A page as JSON: its sections, together with the figures that it was made from. docs/report.schema.json is its schema.

`schema` and `version` identify the format. The version is raised when something is removed or changes its meaning;
additions may come at any time. Keys of sections do not change. A cell's `value` is the figure as computed, in `unit`;
`text` is its form for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qia3.footprint.cells import Cell
from qia3.footprint.sections import Chart, ChartKind, Note, NoteKind, Page, Section, Table

SCHEMA, VERSION = "qia3-report", 1
Place = Annotated[int, Field(ge=0)]  # index of a column, from 0


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CellData(_Part):
    """The figure as computed; a range is two numbers; if it is null, the text says why."""

    value: str | bool | int | float | tuple[float, float] | None
    unit: Literal["", "bytes", "bytes/s", "bits", "s", "tokens/s", "of one"]
    text: str


class LimitData(_Part):
    """A line across a chart."""

    name: str
    value: float


class ChartData(_Part):
    """Which columns of its table are drawn, and how."""

    kind: ChartKind
    title: str
    labels: list[Place]
    values: list[Place]
    limits: list[LimitData]
    logarithmic: bool


class TableData(_Part):
    """`sums`: columns whose last row is the sum of the others."""

    kind: Literal["table"]
    columns: list[str]
    rows: list[list[CellData]]
    sums: list[Place]
    charts: list[ChartData]


class NoteData(_Part):
    """Paragraphs, or the lines of a list."""

    kind: NoteKind
    title: str
    lines: list[str]


class SectionData(_Part):
    """A section; `body` is in reading order."""

    key: Annotated[str, Field(pattern="^[a-z][a-z0-9-]*$")]
    title: str
    body: list[TableData | NoteData]


class ReportData(BaseModel):
    """A report of qia3, as report.json and --json have it. Beside what stands here are the figures that the sections were
    made from, under names of their own: of a bundle as in qia3/footprint/report.py, of a model before it is built as in
    qia3/footprint/before.py, of two things side by side as in qia3/footprint/compare.py.
    """

    model_config = ConfigDict(extra="allow")

    schema_: Annotated[Literal["qia3-report"], Field(alias="schema")]
    version: Literal[1]
    title: str
    lead: str
    sections: list[SectionData]


def page_data(page: Page, figures: Mapping[str, Any]) -> dict[str, Any]:
    """The page as JSON. `figures` keep the names and places that they had before there were sections."""
    ours = {"schema": SCHEMA, "version": VERSION, "title": page.title}
    return ours | dict(figures) | {"lead": page.lead, "sections": [_section(s) for s in page.sections]}


def _section(section: Section) -> dict[str, Any]:
    body = [_table(part) if isinstance(part, Table) else _note(part) for part in section.body]
    return {"key": section.key, "title": section.title, "body": body}


def _note(note: Note) -> dict[str, Any]:
    return {"kind": note.kind, "title": note.title, "lines": list(note.lines)}


def _table(table: Table) -> dict[str, Any]:
    return {
        "kind": "table",
        "columns": [column.title for column in table.columns],
        "rows": [[_cell(cell) for cell in row] for row in table.rows],
        "sums": list(table.sums),
        "charts": [_chart(chart) for chart in table.charts],
    }


def _cell(cell: Cell) -> dict[str, Any]:
    value = list(cell.value) if isinstance(cell.value, tuple) else cell.value
    return {"value": value, "unit": cell.unit, "text": cell.text}


def _chart(chart: Chart) -> dict[str, Any]:
    return {
        "kind": chart.kind,
        "title": chart.title,
        "labels": list(chart.labels),
        "values": list(chart.values),
        "limits": [{"name": limit.name, "value": limit.value} for limit in chart.limits],
        "logarithmic": chart.logarithmic,
    }
