"""What a report says, independent of how it looks: a page is a list of sections, which printers turn into text, JSON
and HTML.

    Page       title, lead, sections
    Section    key (never changes, for programs), title, body: notes and tables in the order they are read
    Table      columns, rows of cells (cells.py), which columns add up to their last row, and its charts
    Chart      which columns of its table to draw, and how; it has no figures of its own, so every chart has its table

Bodies are made where the figures are known (bundle_page.py, before_page.py, devices_page.py); nothing below depends on
what a page is about. In a note, `x` is code, as in Markdown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from qia3.footprint.cells import Cell

ChartKind = Literal["stack", "bars", "pairs", "lines"]
NoteKind = Literal["note", "warning", "list"]
Row = Sequence[Cell | str]  # plain words are allowed


@dataclass(frozen=True)
class Column:
    title: str
    left: bool = False


@dataclass(frozen=True)
class Limit:
    """A line across a chart: what a device has, for comparison with what is needed."""

    name: str
    value: float


@dataclass(frozen=True)
class Chart:
    """`labels` and `values` are columns of the table; several labels are joined.

    stack one bar, with a piece per row of the single column (the last row is left out if it is a sum) bars a group of
    bars per row, one per column; logarithmic: dots on a line pairs like bars, each row on its own scale, for figures of
    different units lines a line per column over the first of `labels`, which holds numbers
    """

    kind: ChartKind
    title: str
    values: tuple[int, ...]
    labels: tuple[int, ...] = (0,)
    limits: tuple[Limit, ...] = ()
    logarithmic: bool = False


@dataclass(frozen=True)
class Table:
    """`sums`: columns whose last row is the sum of the others. `cards`: short enough to be shown large, one card per
    row.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    sums: tuple[int, ...] = ()
    charts: tuple[Chart, ...] = ()
    cards: bool = False

    @property
    def parts(self) -> tuple[tuple[Cell, ...], ...]:
        """The rows without the sums."""
        return self.rows[:-1] if self.sums else self.rows


@dataclass(frozen=True)
class Note:
    """A paragraph, a warning, or a list of lines under a title."""

    text: str | tuple[str, ...]
    kind: NoteKind = "note"
    title: str = ""

    @property
    def lines(self) -> tuple[str, ...]:
        return (self.text,) if isinstance(self.text, str) else self.text


@dataclass(frozen=True)
class Section:
    key: str
    title: str
    body: tuple[Note | Table, ...]

    @property
    def tables(self) -> Iterator[Table]:
        return (part for part in self.body if isinstance(part, Table))


@dataclass(frozen=True)
class Page:
    title: str
    lead: str
    sections: tuple[Section, ...]


def table(
    head: Sequence[str],
    rows: Sequence[Row],
    left: Collection[int] = (0,),
    sums: Collection[int] = (),
    charts: Sequence[Chart] = (),
    cards: bool = False,
) -> Table:
    """A table; columns in `left` are left-aligned, the others right-aligned."""
    columns = tuple(Column(title, i in left) for i, title in enumerate(head))
    made = tuple(tuple(Cell("text", c) if isinstance(c, str) else c for c in row) for row in rows)
    if any(len(row) != len(columns) for row in made):
        raise ValueError(f"a row of {head} has another number of cells")
    return Table(columns, made, tuple(sums), tuple(charts), cards)


def section(key: str, title: str, *body: Note | Table | str | None) -> Section:
    """A section; strings become notes, None and empty strings are left out."""
    parts = (Note(part) if isinstance(part, str) else part for part in body if part)
    return Section(key, title, tuple(parts))


def warning(text: str) -> Note | None:
    """A warning; None for an empty text."""
    return Note(text, "warning") if text else None
