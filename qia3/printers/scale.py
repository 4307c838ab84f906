"""Figures on an axis: short labels, and round ends."""

from __future__ import annotations

import math
from collections.abc import Sequence


def short(value: float, unit: str) -> str:
    """A short label for an axis: 512 MiB, 1.5 GiB, 40 %, 2 M."""
    if unit == "bytes":
        return _stepped(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))
    if unit == "of one":
        return f"{100 * value:g} %"
    return _stepped(value, 1000, ("", "k", "M", "G")).rstrip()


def _stepped(value: float, step: int, names: Sequence[str]) -> str:
    index = 0
    while abs(value) >= step and index < len(names) - 1:
        value, index = value / step, index + 1
    return f"{value:.3g} {names[index]}"


def decades(values: Sequence[float]) -> tuple[float, float]:
    """Powers of ten around positive figures, at least one apart."""
    low = math.floor(math.log10(min(values)))
    return 10.0**low, 10.0 ** max(low + 1, math.ceil(math.log10(max(values))))
