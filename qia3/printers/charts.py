"""Charts as SVG, drawn by matplotlib.

Why matplotlib: it is twenty years old, maintained, available on every system, and writes a static SVG that needs no
script. Plotly, Bokeh and Vega draw in the browser (megabytes of script in each file, and nothing on paper, where a
report should work, too); Vega's renderer for Python brings a JavaScript engine of tens of megabytes. matplotlib is
imported only here and only when a chart is drawn: a device that runs bundles does not need it (tests/test_printers.py).

Colours are those of the page. Each colour is drawn as a sentinel, #0100NN (never black, which matplotlib omits), and
becomes the custom property --cNN: one drawing serves light, dark and paper. Text stays text, in the page's font,
anchored at the side it is aligned to, so fonts of other widths do not move anything. Sizes are CSS pixels: a drawing is
made for one width, NARROW for a phone, WIDE otherwise.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any
from xml.etree import ElementTree

from qia3.printers.drawing import COLOURS, Drawing
from qia3.printers.scale import decades, short

NARROW, WIDE = 320, 720
INK, MUTED, RULE, ON = "#010090", "#010091", "#010092", "#010093"  # text, lesser text, rules, text on a colour
TEXT = 12
NAMESPACE = "http://www.w3.org/2000/svg"
DASHES = ("-", "--", "-", ":", (0, (4, 4)))  # dashes keep lines visible that lie on each other
MARKS = ("o", "s", "^", "D", "v")


def colour(index: int) -> str:
    """The sentinel of the series' colour; they repeat from the ninth on."""
    return f"#0100{index % COLOURS:02d}"


@lru_cache(maxsize=256)
def svg(drawn: Drawing, width: int) -> str:
    """An <svg> without a title: the page that shows it adds one."""
    height = HEIGHTS[drawn.kind](drawn, width)
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    salt = f"{width} {drawn}"  # ids are the same in every process and differ between charts
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": TEXT, "text.parse_math": False}
    ):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        PAINTERS[drawn.kind](figure, drawn, width, height)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return cleaned(out.getvalue())


def _canvas(figure: Any, width: int, height: int) -> Any:
    """Axes in pixels, from the upper left corner."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return axes


BAR, GAP, LINE, ROOM = (
    14,
    3,
    20,
    96,
)  # of a bar: its height, the gap after it; of a label; for figures at the bars' ends


def _stack(figure: Any, drawn: Drawing, width: int, height: int) -> None:
    axes, left = _canvas(figure, width, height), 0.0
    for i, piece in enumerate(drawn.series):
        share = piece.values[0] or 0.0
        axes.barh(height / 2, share * width, height, left=left, color=colour(i), edgecolor="#010094", linewidth=1)
        if share * width > 50:
            axes.text(left + share * width / 2, height / 2, piece.texts[0], ha="center", va="center", color=ON)
        left += share * width


def _bars(figure: Any, drawn: Drawing, width: int, height: int) -> None:
    axes, top = _canvas(figure, width, height), 0.0
    whole = [v for series in drawn.series for v in series.values if v is not None]
    for row, label in enumerate(drawn.labels):
        here = [v for series in drawn.series if (v := series.values[row]) is not None]
        place = _place(here if drawn.kind == "pairs" else whole, drawn.logarithmic, width - ROOM)
        axes.text(0, top + 14, label, ha="left", va="baseline", color=INK)
        top += LINE
        for i, series in enumerate(drawn.series):
            value = series.values[row]
            at, middle = 0.0 if value is None else place(value), top + BAR / 2
            if drawn.logarithmic and value is not None:
                axes.plot([0, width - ROOM], [middle, middle], color=RULE, linewidth=1)
                axes.plot([at], [middle], marker=MARKS[i % len(MARKS)], color=colour(i), markersize=8)
            elif value is not None:
                axes.barh(middle, max(at, 1), BAR, color=colour(i))
            shown = width - ROOM if drawn.logarithmic else at
            axes.text(shown + 6, top + BAR - 3, series.texts[row], ha="left", va="baseline", color=MUTED)
            top += BAR + GAP
        top += 8


def _place(values: Sequence[float], logarithmic: bool, width: float) -> Callable[[float], float]:
    """A function from a figure to pixels, on a scale for `values`."""
    most = max(values, default=0.0) or 1.0
    if not logarithmic:
        return lambda value: value / most * width
    low, high = decades([v for v in values if v > 0] or [1.0])
    return lambda value: (math.log10(max(value, low)) - math.log10(low)) / (math.log10(high / low)) * (width - 12) + 6


def _lines(figure: Any, drawn: Drawing, width: int, height: int) -> None:
    wide = width > NARROW
    right = (150 if wide else 124) if drawn.limits else 14
    axes = figure.add_axes((62 / width, 44 / height, 1 - (62 + right) / width, 1 - 58 / height))
    axes.patch.set_visible(False)
    if drawn.logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
    for i, series in enumerate(drawn.series):
        points = [(x, y) for x, y in zip(drawn.places, series.values, strict=True) if y is not None]
        style = {"linestyle": DASHES[i % len(DASHES)], "marker": MARKS[i % len(MARKS)], "markersize": 5}
        axes.plot(*zip(*points, strict=True), color=colour(i), linewidth=2, **style)
    _axis(axes, drawn, wide)
    _limits(axes, drawn, height, wide)


def _axis(axes: Any, drawn: Drawing, wide: bool) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    values = [v for series in drawn.series for v in series.values if v] + [value for _, value in drawn.limits]
    low, high = min(values, default=1.0), max(values, default=1.0)
    axes.set_ylim(low / 1.5, high * 1.6)
    ticks = [2.0**k for k in range(math.floor(math.log2(low / 1.5)), math.ceil(math.log2(high * 1.6)) + 1)]
    step = max(1, math.ceil(len(ticks) / 7))
    axes.yaxis.set_major_locator(FixedLocator([t for i, t in enumerate(ticks) if i % step == 0]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value, drawn.unit)))
    every = max(1, math.ceil(len(drawn.places) / (9 if wide else 4)))
    axes.xaxis.set_major_locator(FixedLocator(drawn.places[::every]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.tick_params(colors=MUTED, length=0, labelsize=TEXT, pad=6)
    axes.grid(axis="y", color=RULE, linewidth=1)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)


def _limits(axes: Any, drawn: Drawing, height: int, wide: bool) -> None:
    """Draws limit lines with names: equal ones share a name, and names keep a distance."""
    together: dict[float, list[str]] = {}
    for name, value in sorted(drawn.limits, key=lambda limit: limit[1]):
        together.setdefault(value, []).append(name)
    below = -math.inf
    for value, names in together.items():
        axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
        at = float(axes.transData.transform((1, value))[1])
        below = max(at, below + TEXT + 3)
        words = names[0] if len(names) == 1 else f"{names[0]} +{len(names) - 1}"
        axes.annotate(
            words,
            xy=(1, value),
            xycoords=("axes fraction", "data"),
            xytext=(6, below - at - 4),
            textcoords="offset points",
            ha="left",
            color=MUTED,
            fontsize=TEXT if wide else TEXT - 2,
            annotation_clip=False,
        )


def cleaned(text: str) -> str:
    """matplotlib's SVG reduced to what a page needs: no header, no style, only ids that are referenced."""
    ElementTree.register_namespace("", NAMESPACE)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{NAMESPACE}}}metadata", f"{{{NAMESPACE}}}style"):
                parent.remove(child)
    used = set(re.findall(r"#([A-Za-z]\w+)", text))
    places = ("d", "x", "y", "transform", "viewBox")
    for element in root.iter():
        for name in set(places) & set(element.attrib):
            element.set(name, re.sub(r"(\.\d\d)\d+", r"\1", element.attrib[name]))
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        if element.tag == f"{{{NAMESPACE}}}text":
            element.set("style", re.sub(r"font: [^;]*;?", "", element.get("style", "")).strip())
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    plain = ElementTree.tostring(root, encoding="unicode")
    plain = re.sub(r"#0100(\d\d)", r"var(--c\1)", plain)
    return re.sub(r">\s+<", "><", plain)


def _bars_high(drawn: Drawing, width: int) -> int:
    return len(drawn.labels) * (LINE + len(drawn.series) * (BAR + GAP) + 8)


HEIGHTS: dict[str, Callable[[Drawing, int], int]] = {
    "stack": lambda drawn, width: 40,
    "bars": _bars_high,
    "pairs": _bars_high,
    "lines": lambda drawn, width: 320 if width > NARROW else 280,
}
PAINTERS: dict[str, Callable[[Any, Drawing, int, int], None]] = {
    "stack": _stack,
    "bars": _bars,
    "pairs": _bars,
    "lines": _lines,
}
