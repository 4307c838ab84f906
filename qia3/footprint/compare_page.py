"""Two things side by side as a page. Wording only."""

from __future__ import annotations

from qia3.footprint.cells import Cell
from qia3.footprint.compare import MANY, Comparison, Side
from qia3.footprint.devices_page import speed
from qia3.footprint.sections import Chart, Page, Row, Section, section, table

SIZES = {
    "weights": "weights on disk",
    "disk": "whole bundle on disk",
    "held_x64": "weights held, x64",
    "held_arm": "weights held, ARM with dot products",
    "mapped": "mapped from the file at most",
    "read_x64": "read per token, x64",
    "cache": "cache",
    "resident": "whole process, measured",
}
TASKS = {
    "task": "IA³, one more task",
    "task_lora": "LoRA r=8 on all linear, one more task",
    "many": f"{MANY} tasks, weights with IA³",
    "many_lora": f"{MANY} tasks, weights with LoRA",
}
COUNTS = {"parameters": "parameters", "task_parameters": "IA³ parameters"}
SPEEDS = {"load": ("load", "seconds"), "prompt": ("prompt", "speed"), "decode": ("decoding", "speed")}
TELLING = {
    "weights": "Weights on disk",
    "resident": "Memory, measured",
    "held_x64": "Weights held, x64",
    "task": "One more task",
}


def compare_page(found: Comparison) -> Page:
    parts = (_answer, _sizes, _tasks, _counts, _speeds, _accuracy, _devices)
    sections = tuple(made for part in parts if (made := part(found)))
    return Page(f"{found.second.name} beside {found.first.name}", _lead(found), sections)


def _lead(found: Comparison) -> str:
    kinds = [
        f"{side.name} is {'a bundle' if side.built else 'not built; its figures are computed'}"
        for side in (found.first, found.second)
    ]
    return (
        f"{'; '.join(kinds)}. Ratios are the second divided by the first. The cache is for one row of "
        f"{found.context:,} positions."
    )


def _answer(found: Comparison) -> Section:
    rows: list[Row] = []
    for key, title in TELLING.items():
        a, b = (side.figures[key] for side in (found.first, found.second))
        if a and b:
            form = "kib" if key == "task" else "size"
            rows.append([title, f"{b / a:.2f} times", f"{Cell(form, b).text} beside {Cell(form, a).text}"])
    return section("answer", "In short", table(("question", "answer", "that is"), rows, left=(0, 1, 2), cards=True))


def _head(found: Comparison) -> list[str]:
    return ["", found.first.name, found.second.name, "difference", "ratio"]


def _row(found: Comparison, key: str, title: str, form: str) -> list[Row]:
    """Empty if neither has it."""
    a, b = (side.figures[key] for side in (found.first, found.second))
    if a is None and b is None:
        return []
    both = a is not None and b is not None
    less = Cell(form, b - a) if a is not None and b is not None else Cell(form, None)
    ratio = Cell("ratio", b / a if both and a and b is not None else None)
    return [[title, Cell(form, a), Cell(form, b), less, ratio]]


def _compared(
    found: Comparison, key: str, title: str, chosen: dict[str, tuple[str, str]], chart: str = ""
) -> Section | None:
    rows = [row for name, (words, form) in chosen.items() for row in _row(found, name, words, form)]
    drawn = [Chart("bars", chart, values=(1, 2))] if chart else []
    return section(key, title, table(_head(found), rows, charts=drawn)) if rows else None


def _sizes(found: Comparison) -> Section | None:
    return _compared(found, "size", "Size and memory", {k: (v, "mib") for k, v in SIZES.items()}, "What each takes")


def _tasks(found: Comparison) -> Section | None:
    return _compared(
        found, "tasks", "Tasks", {k: (v, "mib" if k.startswith("many") else "kib") for k, v in TASKS.items()}
    )


def _counts(found: Comparison) -> Section | None:
    chosen = {k: (v, "count") for k, v in COUNTS.items()} | {"bits": ("bits per parameter", "bits")}
    return _compared(found, "counts", "Counts", chosen)


def _speeds(found: Comparison) -> Section | None:
    return _compared(found, "speed", "Speed, measured where each was built", SPEEDS)


def _accuracy(found: Comparison) -> Section | None:
    names = [*dict.fromkeys((*found.first.accuracy, *found.second.accuracy))]
    rows: list[Row] = [
        [name, Cell("share", found.first.accuracy.get(name)), Cell("share", found.second.accuracy.get(name))]
        for name in names
    ]
    head = ["task", found.first.name, found.second.name]
    drawn = [Chart("bars", "Held-out accuracy", values=(1, 2))]
    return section("accuracy", "Held-out accuracy", table(head, rows, charts=drawn)) if rows else None


def _devices(found: Comparison) -> Section | None:
    sides: tuple[Side, Side] = (found.first, found.second)
    rows: list[Row] = []
    for name in found.first.estimates:
        both = [side.estimates[name] for side in sides]
        fits = [Cell("fits", one.fits) for one in both]
        needs = [Cell("mib", one.needed_ram_bytes) for one in both]
        rows.append([name, *fits, *needs, Cell("mib", both[0].usable_ram_bytes), *map(speed, both)])
    if not rows:
        return None
    names = [side.name for side in sides]
    head = [
        "device",
        *(f"fits, {n}" for n in names),
        *(f"needs, {n}" for n in names),
        "usable",
        *(f"tokens/s, {n}" for n in names),
    ]
    note = (
        "A model at the longest requested context, a bundle at its full context; speeds are estimates, not "
        "measurements."
    )
    return section("devices", "Devices", note, table(head, rows))
