"""The report of a bundle as a page: what it is, how good it is, how close to torch. Costs: bundle_costs.py.

Wording only: every figure comes from the report's object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qia3.bundle.manifest import SCALES_TRAINED
from qia3.bundle.records import Agreement, HeldOut, Record, change
from qia3.bundle.task import TAGS, Task
from qia3.footprint.bundle_answer import bundle_answer
from qia3.footprint.bundle_costs import (
    adapters,
    bytes_on_disk,
    measured,
    memory,
    predicted,
    published_claim,
    whole_systems,
)
from qia3.footprint.cells import Cell
from qia3.footprint.cells import measured as figure
from qia3.footprint.devices_page import estimates_section
from qia3.footprint.estimate import Estimate
from qia3.footprint.report import Report
from qia3.footprint.sections import Chart, Page, Row, Section, section, table, warning
from qia3.footprint.table import NOT_MEASURED, percent

MANY = 8  # with more tasks than this, the worst come first
FLOAT_CACHE = "float32 cache"
LIKE_STEPS = "prompts like steps"
SCORED = "Held-out accuracy of this bundle on ONNX Runtime (`qia3 eval BUNDLE FILE --adapter NAME`; generation: exact match, and F1 over words)."
UNSCORED = "Not evaluated: made with `--no-evaluation`. `qia3 eval BUNDLE FILE --adapter NAME` scores it."
FOUR_BITS = "4-bit products"
AGREEMENT = ("max difference", "KL (nats)", "same top token", "positions")


def bundle_page(report: Report, estimates: Sequence[Estimate] = ()) -> Page:
    """The whole report, with estimates for the requested devices."""
    parts: tuple[Callable[[Report], Section | None], ...] = (
        _tasks,
        _parity,
        _drift,
        _rounding,
        measured,
        lambda found: memory(found, estimates),
        predicted,
        bytes_on_disk,
        adapters,
        whole_systems,
        published_claim,
    )
    made = tuple(one for part in parts if (one := part(report)))
    devices = (estimates_section(estimates),) if estimates else ()
    return Page(report.name, _lead(report), (bundle_answer(report, estimates), *devices, *made))


def _lead(report: Report) -> str:
    base, grid = report.base, report.base.grid
    symmetry = ", symmetric" if grid.symmetric else ", asymmetric"
    if grid.format == "nf4":  # it has no zero points
        symmetry = ""
    mode = "vectors unmerged" if report.mode == "side" else f"merged with {report.merged_task}"
    shipped = f", shipped as {base.drift.format}" if base.drift else ""
    return (
        f"Base {base.reference} ({base.model_type}, {base.parameters:,} parameters) on the {grid.format} grid"
        f"{symmetry}, block {grid.block_size}{shipped}; {mode}; "
        f"target {report.graph.target} (accuracy_level {report.graph.accuracy_level}). "
        f"Fingerprint {base.fingerprint[:16]}.{_finer(report)}"
    )


def _finer(report: Report) -> str:
    """Which layers are in other blocks, and which at 8 bits, and whether scales were trained; empty if none are."""
    grid = report.base.grid
    named = {f"In blocks of {size}": roles for size, roles in grid.blocks.items()} | {"At 8 bits": grid.eight_bit}
    trained = " Its scales were trained towards the float model." if grid.calibration.endswith(SCALES_TRAINED) else ""
    return "".join(f" {where}: {'; '.join(roles)}." for where, roles in named.items() if roles) + trained


def _tasks(report: Report) -> Section:
    rows: list[Row] = []
    worse = []
    for name, task in _ordered(report):
        scores = (report.evaluation or {}).get(name)
        before, after = (scores.before, scores.after) if scores else (None, None)
        if before and after and after.accuracy < before.accuracy:
            worse.append(name)
        shares = [figure("share", score.accuracy if score else None) for score in (before, after)]
        overlap = Cell("ratio", after.f1 if after else None)
        rows.append([name, task.kind, _count(scores), *shares, overlap, _training(report.training.get(name))])
    note = UNSCORED if report.evaluation is None else SCORED
    if report.evaluation is not None and any(task.kind == TAGS for task in report.tasks.values()):
        note += " Token classification: the share of words, and F1 over entities."
    head = ["task", "kind", "n", "no adapter", "with adapter", "token F1", "training"]
    bad = warning(f"Worse with its adapter than without: {', '.join(worse)}." if worse else "")
    return section(
        "tasks",
        "Tasks",
        note,
        bad,
        table(head, rows, left=(0, 1, 6), charts=[Chart("bars", "Held-out accuracy", values=(3, 4))]),
    )


def _count(scores: HeldOut | None) -> Cell | str:
    """How many were scored: examples, or words in examples where those are labelled."""
    words = scores.after.words if scores else None
    if scores is None or words is None:
        return Cell("count", scores.n if scores else None)
    return f"{words:,} words in {scores.n:,}"


def _ordered(report: Report) -> list[tuple[str, Task]]:
    """In the order of the build file; with many tasks the worst first."""
    tasks, scores = list(report.tasks.items()), report.evaluation or {}
    if len(tasks) <= MANY:
        return tasks
    return sorted(tasks, key=lambda named: scores[named[0]].after.accuracy if named[0] in scores else 2.0)


def _training(run: Record | None) -> str:
    if run is None:
        return NOT_MEASURED
    return f"{run.examples} examples, {run.steps} steps, {run.seconds:.0f} s, {run.compute}"


def _parity(report: Report) -> Section:
    rows: list[Row] = [
        [name, kind, *_agreement(agreement)]
        for name, both in (report.parity or {}).items()
        for kind, agreement in (
            ("exact", both.exact),
            ("shipped", both.shipped),
            (LIKE_STEPS, both.prompts_like_steps),
            (FOUR_BITS, both.four_bit_products),
            (FLOAT_CACHE, both.float_cache),
        )
        if agreement is not None
    ]
    if not rows:
        return section("parity", "Parity with torch", NOT_MEASURED)
    note = (
        "`exact` is the graph at accuracy_level 0, `shipped` is the graph in this bundle. Differences are those "
        "of logits."
    )
    if report.architecture.cache == "int8":
        note += (
            f" `{FLOAT_CACHE}` is the shipped graph with a float32 cache instead of int8; `exact` has a float32 "
            "cache, too."
        )
    if any(both.prompts_like_steps for both in (report.parity or {}).values()):
        note += (
            f" `{LIKE_STEPS}` is the shipped graph without int8 prompts: all tokens run through the 4-bit products "
            "of a step."
        )
    if any(both.four_bit_products for both in (report.parity or {}).values()):
        note += f" `{FOUR_BITS}` is the graph with 4-bit products in place of those in int8; `exact` has them, too."
    if report.limits:
        note += (
            f" Limits: for the exact graph a difference of {report.limits['max_difference']:g} (beyond it the "
            "build fails); for the shipped "
            f"graph a KL of {report.limits['max_kl']:g} and the same top token in {percent(report.limits['min_top1'])}."
        )
    if report.architecture.pooling is not None:
        note += " Without an adapter an encoder has no logits: there they are those of its states."
    far = warning(_beyond(report))
    head = ["adapter", "graph", *AGREEMENT]
    drawn = Chart(
        "bars",
        "KL divergence from torch, in nats (logarithmic)",
        values=(3,),
        labels=(0, 1),
        logarithmic=True,
    )
    return section("parity", "Parity with torch", note, table(head, rows, left=(0, 1), charts=[drawn]), far)


def _beyond(report: Report) -> str:
    """What changes which adapters more than the build file allows; empty if nothing does."""
    if not report.beyond or not report.parity:
        return ""
    by = change(report.parity[next(iter(report.beyond))].approximations(report.graph.accuracy_level))
    beyond = "; ".join(f"{name}: {', '.join(far)}" for name, far in report.beyond.items())
    return f"{by[0].upper()}{by[1:]} these more than the build file allows: {beyond}."


def _agreement(a: Agreement) -> list[Cell]:
    return [
        Cell("digits", a.max_difference),
        Cell("digits", a.kl),
        Cell("share", a.top1),
        Cell("count", a.positions),
    ]


def _drift(report: Report) -> Section | None:
    """What recoding an NF4 base to another grid changed; None if it was not recoded."""
    drift = report.base.drift
    if not drift:
        return None
    rows: list[Row] = [[name, *_agreement(agreement)] for name, agreement in drift.logits.items()]
    note = (
        f"{drift.layers} layers were recoded from NF4 to {drift.format} (blocks of at most "
        f"{drift.block_size}): their weights changed by "
        f"{percent(drift.relative_rms)} of their size, those of {drift.worst_layer} by {percent(drift.worst_relative_rms)} "
        "(root mean squares). In torch, before against after:"
    )
    return section("drift", "Drift", note, table(["adapter", *AGREEMENT], rows))


def _rounding(report: Report) -> Section | None:
    """What rounding zero points to whole numbers changed, for a base whose codes came with other offsets; None for
    others.
    """
    rounding = report.base.grid.rounding
    if not rounding:
        return None
    anew = f", and {rounding.anew} of them have blocks with other codes" if rounding.anew else ""
    note = (
        f"{rounding.layers} layers keep their codes and scales, with zero points rounded to whole numbers: "
        "their weights change by "
        f"{percent(rounding.relative_rms)} of their size, those of {rounding.worst_layer} by "
        f"{percent(rounding.worst_relative_rms)} (root mean squares){anew}."
    )
    return section("rounding", f"Codes of {report.base.grid.codes}", note)
