"""The summary at the top of a bundle's report: how large, how fast, how good, and what a task costs compared with LoRA."""

from __future__ import annotations

from collections.abc import Sequence

from qia3.bundle.records import HeldOut
from qia3.footprint.cells import Cell
from qia3.footprint.estimate import Estimate
from qia3.footprint.report import Report
from qia3.footprint.sections import Row, Section, section, table
from qia3.footprint.systems import LORA_RANK
from qia3.footprint.table import kib, percent

HEAD = ("question", "answer", "that is")
SHARED = ("tokenizer", "configs")  # what every system has besides weights and adapters
LORA = f"LoRA r={LORA_RANK} on all linear"


def bundle_answer(report: Report, estimates: Sequence[Estimate] = ()) -> Section:
    rows = [*_fits(estimates), _disk(report), *_memory(report), *_speed(report), *_accuracy(report), *_task(report)]
    return section("answer", "In short", table(HEAD, rows, left=(0, 1, 2), cards=True))


def _fits(estimates: Sequence[Estimate]) -> list[Row]:
    """A single device by name, several by number."""
    missed = [one.device for one in estimates if not one.fits]
    if len(estimates) == 1:
        (one,) = estimates
        left = one.usable_ram_bytes - one.needed_ram_bytes
        remark = f"{Cell('size', abs(left)).text} {'left' if left >= 0 else 'short'} at the full context"
        return [[f"Fits {one.device}", Cell("fits", one.fits), remark]]
    held = f"{len(estimates) - len(missed)} of {len(estimates)} devices"
    names = f"; not {', '.join(missed)}" if missed else ""
    return [["Fits", held, f"at the full context{names}"]] if estimates else []


def _disk(report: Report) -> Row:
    count = len(report.tasks)
    parts, total = report.account.parts, report.account.total
    ratio = (report.systems[0].disk_bytes + sum(parts.get(part, 0) for part in SHARED)) / total
    tasks = f"with {count} task{'' if count == 1 else 's'}"
    return [
        "On disk",
        Cell("size", total),
        f"{tasks}; the float32 base with LoRA: {ratio:.1f} times as much",
    ]


def _memory(report: Report) -> list[Row]:
    found = report.measured
    if not found or found.peak_resident_bytes is None:
        return []
    held = "" if found.peak_anonymous_bytes is None else f", {Cell('size', found.peak_anonymous_bytes).text} of it held"
    return [["Memory, at its peak", Cell("size", found.peak_resident_bytes), f"the whole process, measured{held}"]]


def _speed(report: Report) -> list[Row]:
    found = report.measured
    if not found:
        return []
    prompt = f"{found.prompt_tokens_per_second:,.0f} tokens/s"
    where = f"measured with {found.threads} threads, {found.machine}"
    if found.decode_tokens_per_second is None:
        return [["Speed", prompt, where]]
    return [["Answering", Cell("speed", found.decode_tokens_per_second), f"prompts {prompt}; {where}"]]


def _accuracy(report: Report) -> list[Row]:
    if report.evaluation is None:
        return [["Right", "not evaluated", "made with --no-evaluation; `qia3 eval` scores it"]]
    return [
        [
            f"Right, {name}",
            Cell("share", scores.after.accuracy),
            _of(scores) + (f"; {percent(scores.before.accuracy)} without the adapter" if scores.before else ""),
        ]
        for name, scores in report.evaluation.items()
    ]


def _of(scores: HeldOut) -> str:
    """What the share is of: examples, or words where those are labelled."""
    words = scores.after.words
    labelled = f"{words:,} words in " if words is not None else ""
    return f"of {labelled}{scores.n:,} held-out examples"


def _task(report: Report) -> list[Row]:
    ours, lora = report.adapters[0], next(one for one in report.adapters if one.method == LORA)
    if not ours.disk_bytes:
        return []
    if report.mode == "merged":
        return [["One more task", Cell("size", ours.disk_bytes), "a model of its own, as this one is merged"]]
    times = f"{lora.disk_bytes / ours.disk_bytes:.0f} times as much"
    return [
        [
            "One more task",
            Cell("kib", ours.disk_bytes),
            f"LoRA r={LORA_RANK} on all linear layers: {kib(lora.disk_bytes)}, {times}",
        ]
    ]
