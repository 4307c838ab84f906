"""A page as Markdown, which is also readable as plain text. Formatting only."""

from __future__ import annotations

from qia3.footprint.cells import Cell
from qia3.footprint.sections import Note, Page, Section, Table
from qia3.footprint.table import table


def markdown(page: Page) -> str:
    """The whole page: a heading, its lead, and a second-level heading per section."""
    return "\n\n".join((f"# {page.title}", page.lead, *map(section_text, page.sections))) + "\n"


def section_text(section: Section) -> str:
    return "\n\n".join((f"## {section.title}", *map(_part, section.body)))


def body_text(section: Section) -> str:
    """A section without its heading."""
    return "\n\n".join(map(_part, section.body))


def _part(part: Note | Table) -> str:
    if isinstance(part, Table):
        head = [column.title for column in part.columns]
        left = [i for i, column in enumerate(part.columns) if column.left]
        return table(head, [[*map(_cell, row)] for row in part.rows], left)
    if part.kind != "list":
        return "\n".join(part.lines)
    return (f"{part.title}:\n\n" if part.title else "") + "\n".join(f"- {line}" for line in part.lines)


def _cell(cell: Cell) -> str:
    return f"**{cell.text}**" if cell.form == "fits" and cell.value is False else cell.text
