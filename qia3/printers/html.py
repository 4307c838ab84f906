"""A page as one HTML file: no script, no network, no other file; light and dark, for phones and for paper.

Plain strings, with html.escape around every text from elsewhere: the page is one heading and sections of paragraphs,
tables and some charts, which takes a hundred lines here. A template language would be one more dependency of builds,
with its own escaping rules.

A chart is drawn twice, for a phone and for a wide page; the style sheet shows one of them. Its legend is HTML, so that
it can wrap, and its figures are in the table below it, or beside it if there is room for both.
"""

from __future__ import annotations

import re
from html import escape
from importlib.resources import files

from qia3 import __version__
from qia3.footprint.cells import Cell
from qia3.footprint.sections import Chart, Note, Page, Section, Table
from qia3.printers.charts import NARROW, WIDE, svg
from qia3.printers.drawing import COLOURS, Drawing, drawing

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # nothing is fetched
WORDS = 24  # letters from which a cell is prose and may wrap


def html(page: Page) -> str:
    """The complete file."""
    style = (files("qia3.printers") / "page.css").read_text(encoding="utf-8")
    first, *others = page.sections
    links = "".join(f'<li><a href="#{escape(s.key)}">{escape(s.title)}</a></li>' for s in others)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(page.title)} - QIA³ report</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header class="top"><p class="brand">QIA³ report</p><h1>{escape(page.title)}</h1>'
        f"<p>{_words(page.lead)}</p></header>\n<main>\n{_section(first)}"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n{"".join(map(_section, others))}</main>\n'
        f"<footer><p>Written by qia3 {__version__}. Every chart has its figures in the table that follows it.</p></footer>\n"
        "</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    name = escape(section.key)
    tables = [part for part in section.body if isinstance(part, Table) and not part.cards]
    names = {id(table): f"Table{f' {i}' if i > 1 else ''}: {section.title}" for i, table in enumerate(tables, 1)}
    body = "".join(_table(p, names.get(id(p), "")) if isinstance(p, Table) else _note(p) for p in section.body)
    return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(section.title)}</h2>{body}</section>\n'


def _words(text: str) -> str:
    """Escaped text; `x` becomes code, and an address becomes a link with its host's name."""
    linked = re.sub(r"(https?://([^\s/;,)&]+)[^\s;,)&]*)", r'<a href="\1" rel="noreferrer">\2</a>', escape(text))
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", linked)


def _note(note: Note) -> str:
    if note.kind == "list":
        items = "".join(f"<li>{_words(line)}</li>" for line in note.lines)
        listed = f'<ul class="basis">{items}</ul>'
        return f"<details><summary>{escape(note.title)}</summary>{listed}</details>" if note.title else listed
    return "".join(f'<p class="{note.kind}">{_words(line)}</p>' for line in note.lines)


def _table(table: Table, label: str) -> str:
    """`label` tells it apart from the page's other tables: a region that can be reached by key needs a name of its own."""
    if table.cards:
        return _cards(table)
    head = "".join(f'<th scope="col"{_side(c.left)}>{escape(c.title) or "<span></span>"}</th>' for c in table.columns)
    if not table.columns[0].title:
        head = head.replace('<th scope="col"><span></span></th>', "<td></td>", 1)
    rows = "".join(_row(table, i) for i in range(len(table.rows)))
    charts = "".join(_chart(table, chart) for chart in table.charts)
    whole = (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
    return f'<div class="beside">{charts}{whole}</div>' if charts else whole


def _side(left: bool) -> str:
    return "" if left else ' class="n"'


def _row(table: Table, index: int) -> str:
    first, *others = table.rows[index]
    total = ' class="total"' if table.sums and index == len(table.rows) - 1 else ""
    cells = "".join(
        f"<td{_kind(cell, column.left)}>{_cell(cell)}</td>"
        for cell, column in zip(others, table.columns[1:], strict=True)
    )
    return f'<tr{total}><th scope="row"{_kind(first, table.columns[0].left)}>{_cell(first)}</th>{cells}</tr>'


def _kind(cell: Cell, left: bool) -> str:
    names = [*([] if left else ["n"]), *(["prose"] if len(cell.text) > WORDS else [])]
    return f' class="{" ".join(names)}"' if names else ""


def _cell(cell: Cell) -> str:
    text = _words(cell.text)
    if isinstance(cell.value, bool):
        return f'<span class="{"good" if cell.value else "bad"}">{text}</span>'
    return text


def _cards(table: Table) -> str:
    """Cards with question, answer and meaning."""
    cards = "".join(
        f"<div{_verdict(answer)}><dt>{_words(question.text)}</dt><dd><strong>{_words(answer.text)}</strong>"
        f"<span>{_words(remark.text)}</span></dd></div>"
        for question, answer, remark in table.rows
    )
    return f'<dl class="cards">{cards}</dl>'


def _verdict(answer: Cell) -> str:
    return "" if not isinstance(answer.value, bool) else f' class="{"good" if answer.value else "bad"}"'


def _chart(table: Table, chart: Chart) -> str:
    drawn = drawing(table, chart)
    if not drawn.series:
        return ""
    name = escape(f"{chart.title}. The figures are in the table that follows.")
    both = "".join(
        f'<div class="{kind}" role="img" aria-label="{name}">{svg(drawn, width)}</div>'
        for kind, width in (("narrow", NARROW), ("wide", WIDE))
    )
    return f'<figure class="{chart.kind}"><figcaption>{escape(chart.title)}</figcaption>{_legend(drawn)}{both}</figure>'


def _legend(drawn: Drawing) -> str:
    if len(drawn.series) == 1:
        return ""
    keys = "".join(
        f'<li><i class="k{i % COLOURS}"></i>{escape(s.name)}{_amount(drawn, s.texts)}</li>'
        for i, s in enumerate(drawn.series)
    )
    return f'<ul class="legend">{keys}</ul>'


def _amount(drawn: Drawing, texts: tuple[str, ...]) -> str:
    return f" <b>{escape(texts[0])}</b>" if drawn.kind == "stack" else ""
