"""The summary at the top of the report before a build: does it fit, how large is it, what does a task cost compared
with LoRA.
"""

from __future__ import annotations

from qia3.footprint.before import LORA, Before, Fleet
from qia3.footprint.cells import Cell
from qia3.footprint.sections import Row, Section, section, table
from qia3.footprint.table import kib
from qia3.footprint.weights import USUAL

HEAD = ("question", "answer", "that is")
MANY = 100  # tasks


def before_answer(found: Before) -> Section:
    rows = [*_fits(found), _size(found), _memory(found), _task(found), _tasks(found)]
    return section("answer", "In short", table(HEAD, rows, left=(0, 1, 2), cards=True))


def _fits(found: Before) -> list[Row]:
    """A single device by name, several by number, naming those that do not fit."""
    if not found.verdicts:
        return []
    missed = [one for one in found.verdicts if not one.estimate.fits]
    context = f"{found.verdicts[0].context:,} positions"
    if len(found.verdicts) == 1:
        (one,) = found.verdicts
        size = Cell("size", abs(one.left_bytes)).text
        remark = (
            f"{size} left at {context}"
            if one.estimate.fits
            else f"{size} short at {context}; {_change(one.first_change)}"
        )
        return [[f"Fits {one.title}", Cell("fits", one.estimate.fits), remark]]
    held = f"{len(found.verdicts) - len(missed)} of {len(found.verdicts)} devices"
    names = ", ".join(one.title for one in missed)
    return [["Fits", held, f"at {context}; not {names}" if missed else f"at {context}"]]


def _change(words: str | None) -> str:
    return f"it would with {words}" if words else "no block size, batch or context would make it fit"


def _size(found: Before) -> Row:
    disk = {one.form: one for one in found.weights}
    ours, full = disk[USUAL.label], disk["float32"]
    remark = f"{ours.bits_per_number:.2f} bits per parameter; {full.disk_bytes / ours.disk_bytes:.1f} times smaller than float32"
    return ["Weights in 4 bits", Cell("size", ours.disk_bytes), remark]


def _memory(found: Before) -> Row:
    asked = max((one.context for one in found.caches), default=found.needs[-1].context)
    need = next(one for one in found.needs if one.context == asked)
    cache = f", {Cell('size', need.cache_bytes).text} of it the cache" if need.cache_bytes else ""
    return [
        f"Memory at {asked:,} positions",
        Cell("size", need.x64_bytes),
        f"on x64, computed, process included{cache}",
    ]


def _task(found: Before) -> Row:
    ours, lora = found.adapters[0], next(one for one in found.adapters if one.method == LORA)
    times = f"{lora.disk_bytes / ours.disk_bytes:.0f} times as much"
    return [
        "One more task",
        Cell("kib", ours.disk_bytes),
        f"LoRA r=8 on all linear layers: {kib(lora.disk_bytes)}, {times}",
    ]


def _tasks(found: Before) -> Row:
    many = next(one for one in found.fleets if one.tasks == MANY)
    return [f"{MANY} tasks", Cell("size", many.ia3_side_bytes), f"with LoRA beside the same base: {_with_lora(many)}"]


def _with_lora(many: Fleet) -> str:
    return f"{Cell('size', many.lora_kept_bytes).text}, {many.lora_kept_bytes / many.ia3_side_bytes:.1f} times as much"
