"""What a report says, apart from how it looks: a page is a list of sections, and printers make text, JSON and HTML of it.

    Page       title, lead, sections
    Section    key (the same for ever, for programs), title, body: notes and tables in the order they are read
    Table      columns, rows of cells (cells.py), which columns add up to their last row, and its charts
    Chart      which columns of its table to draw, and how: it has no figures of its own, so that every chart has its table

Bodies are built where the figures are known (bundle_page.py, before_page.py, devices_page.py); nothing below looks at
what a page is about. In a note, `x` is code, as in Markdown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from qia3.footprint.cells import Cell

ChartKind = Literal["stack", "bars", "pairs", "lines"]
NoteKind = Literal["note", "warning", "list"]
Row = Sequence[Cell | str]  # words may come as they are


@dataclass(frozen=True)
class Column:
    title: str
    left: bool = False


@dataclass(frozen=True)
class Limit:
    """A line across a chart: what a device has, beside what is needed."""

    name: str
    value: float


@dataclass(frozen=True)
class Chart:
    """`labels` and `values` are columns of the table; several labels are read together.

    stack   one bar, a piece for each row of the one column (the last row is left out where it is a sum)
    bars    a group of bars for each row, one for each column; logarithmic: dots on a rule
    pairs   as bars, each row on a scale of its own: figures of different units
    lines   a line for each column over the first of `labels`, which holds numbers
    """

    kind: ChartKind
    title: str
    values: tuple[int, ...]
    labels: tuple[int, ...] = (0,)
    limits: tuple[Limit, ...] = ()
    logarithmic: bool = False


@dataclass(frozen=True)
class Table:
    """`sums`: columns whose last row is the sum of the others. `cards`: short enough to be shown large, a row a card."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    sums: tuple[int, ...] = ()
    charts: tuple[Chart, ...] = ()
    cards: bool = False

    @property
    def parts(self) -> tuple[tuple[Cell, ...], ...]:
        """The rows without that of the sums."""
        return self.rows[:-1] if self.sums else self.rows


@dataclass(frozen=True)
class Note:
    """A paragraph, something to be aware of, or a list of lines under a title."""

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
    """Columns in `left` are aligned left, the others right."""
    columns = tuple(Column(title, i in left) for i, title in enumerate(head))
    made = tuple(tuple(Cell("text", c) if isinstance(c, str) else c for c in row) for row in rows)
    if any(len(row) != len(columns) for row in made):
        raise ValueError(f"a row of {head} has another number of cells")
    return Table(columns, made, tuple(sums), tuple(charts), cards)


def section(key: str, title: str, *body: Note | Table | str | None) -> Section:
    """Strings are notes; None and empty strings are left out."""
    parts = (Note(part) if isinstance(part, str) else part for part in body if part)
    return Section(key, title, tuple(parts))


def warning(text: str) -> Note | None:
    """None where there is nothing to warn of."""
    return Note(text, "warning") if text else None
