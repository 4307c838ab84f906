"""Figures and tables as text. A table is Markdown that is also readable as plain text."""

from __future__ import annotations

from collections.abc import Collection, Sequence

NOT_MEASURED = "not measured"
FIRST = (0,)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = FIRST) -> str:
    """A padded table; columns in `left` are left-aligned, the others right-aligned. A | inside a cell is escaped."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        return (
            "| "
            + " | ".join(
                c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            + " |"
        )

    rule = "| " + " | ".join("-" * w if i in left else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def mib(count: float | None) -> str:
    """Bytes as MiB with one decimal."""
    return NOT_MEASURED if count is None else f"{count / 2**20:,.1f} MiB"


def kib(count: float) -> str:
    """Bytes as KiB."""
    return f"{count / 2**10:,.0f} KiB"


def percent(share: float | None) -> str:
    """A share of one, as percent with one decimal."""
    return NOT_MEASURED if share is None else f"{100 * share:.1f} %"
