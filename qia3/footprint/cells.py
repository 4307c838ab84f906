"""A figure with its unit, and its text.

A cell holds the figure as computed; its form says in which unit, and how people read it. So a printer never rounds
twice, JSON has the exact figure, and a chart draws what the table says:

    Cell("mib", 234_142_105)     bytes; "223.3 MiB"           Cell("share", 0.912)     of one; "91.2 %"
    Cell("bytes", 3_523_554)     bytes; "3,523,554"           Cell("range", (4.1, 9.6))  "4.1 to 9.6"

None means that there is no figure: `absent` says why, in a word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qia3.footprint.table import NOT_MEASURED, kib, mib, percent

Value = str | int | float | bool | tuple[float, float] | None
ABSENT = "-"


@dataclass(frozen=True)
class Form:
    """`unit` is that of the value, whatever the text shows; empty for words and plain counts."""

    unit: str
    text: Callable[[Any], str]


def _size(count: float) -> str:
    """Bytes in a unit that gives one to four digits before the point."""
    return mib(count) if abs(count) < 10 * 2**30 else f"{count / 2**30:,.1f} GiB"


FORMS = {
    "text": Form("", str),
    "count": Form("", "{:,}".format),
    "ratio": Form("", "{:.2f}".format),
    "digits": Form("", "{:.2g}".format),
    "plain": Form("", "{:g}".format),
    "bytes": Form("bytes", "{:,}".format),
    "kib": Form("bytes", kib),
    "mib": Form("bytes", mib),
    "size": Form("bytes", _size),
    "share": Form("of one", percent),
    "apart": Form("of one", lambda error: f"{100 * error:+.0f} %"),
    "bits": Form("bits", "{:.2f}".format),
    "seconds": Form("s", "{:.2f} s".format),
    "speed": Form("tokens/s", "{:,.0f} tokens/s".format),
    "range": Form("tokens/s", lambda pair: f"{pair[0]:g} to {pair[1]:g}"),
    "below": Form("tokens/s", "below {:g}".format),
    "gigabytes": Form("bytes/s", lambda rate: f"{rate / 1e9:,.1f}"),
    "fits": Form("", lambda fits: "yes" if fits else "no"),
    "holds": Form("", lambda holds: "yes" if holds else "no"),
}


@dataclass(frozen=True)
class Cell:
    """One figure. `form` is a key of FORMS."""

    form: str
    value: Value
    absent: str = ABSENT

    @property
    def text(self) -> str:
        return self.absent if self.value is None else FORMS[self.form].text(self.value)

    @property
    def unit(self) -> str:
        return FORMS[self.form].unit

    @property
    def number(self) -> float | None:
        """For a chart: the middle of a range; None for words."""
        match self.value:
            case bool() | str() | None:
                return None
            case (low, high):
                return (low + high) / 2
            case number:
                return float(number)


def measured(form: str, value: Value) -> Cell:
    """A cell that says "not measured" if there is no value."""
    return Cell(form, value, NOT_MEASURED)
