"""A page in a terminal, drawn by rich: as wide as the window, and in colour if possible.

A table that is wider than the window becomes a list with one entry per row, so that no figure is cut or wrapped. If the
output goes to a file or another program, the same text comes without colours, and no line is broken.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from io import StringIO

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from qia3.footprint.cells import Cell
from qia3.footprint.sections import Note, Page, Section, Table

PIPED = 10_000  # wide enough that no line is broken, so that grep works
PROSE = 24  # letters from which a cell is prose and may wrap
BETWEEN = 3  # spaces between columns, and before the first
BAR = 20  # letters of a full bar
HEADING, LESSER, STRONG = "bold", "dim", "bold cyan"


def terminal(page: Page, width: int | None = None, colours: bool | None = None) -> str:
    """The whole page. None: as standard output supports."""
    head = (Text(page.title, style="bold magenta"), _words(page.lead, LESSER))
    return _drawn([*_spaced(head), *(_section(section) for section in page.sections)], width, colours)


def section_text(section: Section, width: int | None = None, colours: bool | None = None) -> str:
    """One section without its heading."""
    return _drawn(_spaced([_Part(part) for part in section.body]), width, colours)


def _drawn(parts: Sequence[RenderableType], width: int | None, colours: bool | None) -> str:
    shown = sys.stdout.isatty() if colours is None else colours
    here = shutil.get_terminal_size((PIPED, 24)).columns if sys.stdout.isatty() else PIPED
    console = Console(
        file=(out := StringIO()),
        width=width or here,
        force_terminal=shown,
        no_color=not shown or bool(os.environ.get("NO_COLOR")),
        color_system="standard" if shown else None,
        highlight=False,
    )
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")


def _section(section: Section) -> Group:
    return Group(*_spaced([Text(section.title, style=HEADING + " underline"), *map(_Part, section.body)]))


def _spaced(parts: Iterable[RenderableType]) -> list[RenderableType]:
    """The parts, each followed by an empty line."""
    return [x for part in parts for x in (part, "")]


class _Part:
    """A note or a table, drawn once the width is known."""

    def __init__(self, part: Note | Table) -> None:
        self.part = part

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if isinstance(self.part, Note):
            yield from _note(self.part)
        elif _width(self.part) <= console.width:
            yield _grid(self.part, _width(self.part) + BETWEEN + BAR <= console.width)
        else:
            yield from _entries(self.part)


def _note(note: Note) -> Sequence[RenderableType]:
    if note.kind == "list":
        return [_words(f"{note.title}:", LESSER)] + [
            Padding(_words(f"- {line}", LESSER), (0, 0, 0, 2)) for line in note.lines
        ]
    return [_words(line, "yellow" if note.kind == "warning" else LESSER) for line in note.lines]


def _words(text: str, style: str) -> Text:
    """Text in which `x` (code) stands out."""
    return Text.from_markup(re.sub(r"`([^`]*)`", r"[not dim bold]\1[/]", escape(text)), style=style)


def _width(table: Table) -> int:
    """The minimum width of a table: prose wraps, figures do not."""
    columns = zip(*(row for row in table.rows), strict=True)
    most = [
        max(len(column.title), *(min(len(c.text), PROSE) for c in cells))
        for column, cells in zip(table.columns, columns, strict=True)
    ]
    return sum(most) + BETWEEN * len(most)


def _grid(table: Table, room: bool) -> Grid:
    grid = Grid(
        box=None if table.cards else box.SIMPLE_HEAD,
        show_header=not table.cards,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for i, column in enumerate(table.columns):
        prose = any(len(row[i].text) > PROSE for row in table.rows)
        grid.add_column(
            column.title, justify="left" if column.left else "right", no_wrap=not prose, header_style=LESSER
        )
    bars = _bars(table) if room else []
    if bars:
        grid.add_column("")
    for i, row in enumerate(table.rows):
        last = bool(table.sums) and i == len(table.rows) - 1
        cells = [_cell(cell, table.cards and k == 1) for k, cell in enumerate(row)]
        grid.add_row(*cells, *([Text(bars[i], style="blue")] if bars else []), style="bold" if last else None)
    return grid


def _bars(table: Table) -> list[str]:
    """One bar per row, for the column that a chart stacks."""
    columns = [chart.values[0] for chart in table.charts if chart.kind == "stack"]
    if not columns:
        return []
    sizes = [row[columns[0]].number or 0.0 for row in table.parts]
    most = max(sizes, default=0.0) or 1.0
    return [*("█" * round(BAR * size / most) for size in sizes), *([""] if table.sums else [])]


def _entries(table: Table) -> list[RenderableType]:
    made: list[RenderableType] = []
    for row in table.rows:
        first, *others = (_cell(cell, False) for cell in row)
        first.stylize(HEADING)
        made.append(first)
        named = zip(table.columns[1:], others, strict=True)
        lines = (
            cell if table.cards else Text.assemble((f"{c.title}: ", LESSER), cell)
            for c, cell in named
            if cell.plain != "-"
        )
        made += [Padding(line, (0, 0, 0, 2)) for line in lines]
    return made


def _cell(cell: Cell, strong: bool) -> Text:
    if isinstance(cell.value, bool):
        return Text(cell.text, style="green" if cell.value else "bold red")
    return Text(cell.text, style=STRONG) if strong else Text(cell.text)
