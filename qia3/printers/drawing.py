"""What a chart shows, taken from its table: names and figures, ready to be drawn.

Figures are rounded to three digits, finer than a pixel. So a chart stays the same when its page changes by a few bytes,
as a bundle's does while its report settles on its own length (qia3.bundle.seal), and is drawn once.
"""

from __future__ import annotations

from dataclasses import dataclass

from qia3.footprint.cells import Cell
from qia3.footprint.sections import Chart, ChartKind, Table

DIGITS = 3
SMALL = 0.01  # a piece of a stack that is less than this share goes into "the rest"
REST = "the rest"
COLOURS = 8
Rows = tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Series:
    """One colour's figures, a figure for each label, and how each is written."""

    name: str
    values: tuple[float | None, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Drawing:
    """`unit` is the figures', for the axis. Of a stack each series is one piece, with one value."""

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
    """Of pairs only those that are whole: half of one says nothing."""
    if chart.kind != "pairs":
        return table.parts
    return tuple(row for row in table.parts if all(row[i].number is not None for i in chart.values))


def _columns(table: Table, rows: Rows, chart: Chart) -> tuple[Series, ...]:
    """Without columns that have no figure at all."""
    found = []
    for i in chart.values:
        cells = [row[i] for row in rows]
        values = tuple(None if (n := cell.number) is None else _rounded(n) for cell in cells)
        if any(value is not None for value in values):
            found.append(Series(table.columns[i].title, values, tuple(cell.text for cell in cells)))
    return tuple(found)


def _pieces(table: Table, chart: Chart) -> tuple[Series, ...]:
    """The largest first; those too small to see, or too many, are one."""
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
