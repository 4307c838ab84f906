"""What a chart shows, taken from its table: names and figures, ready to draw.

Figures are rounded to three digits, finer than a pixel. So a chart stays the same when its page changes by a few bytes,
as a bundle's does while its report settles on its own length (qia3.bundle.seal), and is drawn only once.
"""

from __future__ import annotations

from dataclasses import dataclass

from qia3.footprint.cells import Cell
from qia3.footprint.sections import Chart, ChartKind, Table

DIGITS = 3
SMALL = 0.01  # pieces of a stack below this share become "the rest"
REST = "the rest"
COLOURS = 8
Rows = tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Series:
    """The figures of one colour, one per label, and their texts."""

    name: str
    values: tuple[float | None, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Drawing:
    """`unit` is that of the figures, for the axis. In a stack each series is one piece, with one value."""

    kind: ChartKind
    labels: tuple[str, ...]
    places: tuple[float, ...]  # the labels as numbers, for lines
    series: tuple[Series, ...]
    limits: tuple[tuple[str, float], ...]
    unit: str
    logarithmic: bool


def drawing(table: Table, chart: Chart) -> Drawing:
    rows = _drawn(table, chart)
    places = tuple(row[chart.labels[0]].number or 0.0 for row in rows) if chart.kind == "lines" else ()
    return Drawing(
        kind=chart.kind,
        labels=tuple(", ".join(row[i].text for i in chart.labels) for row in rows),
        places=places,
        series=_pieces(table, chart) if chart.kind == "stack" else _columns(table, rows, chart),
        limits=tuple((limit.name, _rounded(limit.value)) for limit in chart.limits),
        unit=rows[0][chart.values[0]].unit if rows else "",
        logarithmic=chart.logarithmic,
    )


def _drawn(table: Table, chart: Chart) -> Rows:
    """The rows to draw; incomplete pairs are left out."""
    if chart.kind != "pairs":
        return table.parts
    return tuple(row for row in table.parts if all(row[i].number is not None for i in chart.values))


def _columns(table: Table, rows: Rows, chart: Chart) -> tuple[Series, ...]:
    """The series of the columns; columns without figures are left out."""
    found = []
    for i in chart.values:
        cells = [row[i] for row in rows]
        values = tuple(None if (n := cell.number) is None else _rounded(n) for cell in cells)
        if any(value is not None for value in values):
            found.append(Series(table.columns[i].title, values, tuple(cell.text for cell in cells)))
    return tuple(found)


def _pieces(table: Table, chart: Chart) -> tuple[Series, ...]:
    """The pieces of a stack, the largest first; those that are too small or too many are merged."""
    (column,) = chart.values
    sizes = [(", ".join(row[i].text for i in chart.labels), row[column].number or 0.0) for row in table.parts]
    total = sum(size for _, size in sizes) or 1.0
    seen = sorted((s for s in sizes if s[1] >= SMALL * total), key=lambda s: -s[1])[: COLOURS - 1]
    rest = total - sum(size for _, size in seen)
    if rest >= total / 1000:
        seen.append((REST, rest))
    return tuple(Series(name, (_rounded(size / total),), (Cell("share", size / total).text,)) for name, size in seen)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
