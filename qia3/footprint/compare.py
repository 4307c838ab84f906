"""Two things side by side: bundles, models that are not built yet, or one of each.

Both are described by the same named figures; a figure that one of them lacks (nothing is measured before a build) is
None. Weights and adapters mean the same on both sides: for a model the usual 4-bit build (weights.USUAL), for a bundle
what is in it, including its graph; another task for a merged bundle is another model. The cache is compared at the
longest context that both support, up to CONTEXT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qia3.bundle.manifest import Architecture
from qia3.footprint.before import Before
from qia3.footprint.bits import bits_each
from qia3.footprint.estimate import Estimate
from qia3.footprint.kernels import KernelBytes, kernel_for
from qia3.footprint.report import Report
from qia3.footprint.weights import USUAL, cache_bytes

CONTEXT = 2048
MANY = 100
LEVEL = 4  # accuracy_level of the usual build
LORA = "LoRA r=8 on all linear"
Figure = float | int | None


@dataclass(frozen=True)
class Side:
    """`figures` by name (see FIGURES in compare_page.py), `accuracy` and `estimates` by task and device."""

    name: str
    built: bool
    context: int
    figures: Mapping[str, Figure]
    accuracy: Mapping[str, float]
    estimates: Mapping[str, Estimate]


@dataclass(frozen=True)
class Comparison:
    context: int
    first: Side
    second: Side


def compare(
    found: Sequence[Report | Before], names: Sequence[str], estimates: Sequence[Sequence[Estimate]]
) -> Comparison:
    """Compares two; `names` are those given by the user, `estimates` those for the requested devices."""
    context = min(CONTEXT, *(one.architecture.context_length or CONTEXT for one in found))
    first, second = (
        _side(one, name, context, devices) for one, name, devices in zip(found, names, estimates, strict=True)
    )
    return Comparison(context, first, second)


def _side(found: Report | Before, name: str, context: int, devices: Sequence[Estimate]) -> Side:
    figures = _of_bundle(found) if isinstance(found, Report) else _of_model(found)
    scores = (found.evaluation or {}) if isinstance(found, Report) else {}
    return Side(
        name=name,
        built=isinstance(found, Report),
        context=context,
        figures=figures | _of_cache(found.architecture, context) | _of_tasks(found, figures["weights"]),
        accuracy={task: score.after.accuracy for task, score in scores.items()},
        estimates={one.device: one for one in devices},
    )


def _of_bundle(report: Report) -> dict[str, Figure]:
    measured, kernel = report.measured, kernel_for("x64", (), report.graph.accuracy_level)
    return {
        "parameters": report.base.parameters,
        "bits": bits_each(report.account.weights - report.account.parts.get("graph", 0), report.base.parameters),
        "weights": report.account.weights,
        "disk": report.account.total,
        **_of_kernels(report.memory.kernels, report.graph.accuracy_level),
        "mapped": report.memory.mapped_bytes + report.memory.kernels[kernel].unpacked_bytes,
        "resident": measured.peak_resident_bytes if measured else None,
        "load": measured.load_seconds if measured else None,
        "prompt": measured.prompt_tokens_per_second if measured else None,
        "decode": measured.decode_tokens_per_second if measured else None,
    }


def _of_model(found: Before) -> dict[str, Figure]:
    usual = next(one for one in found.weights if one.form == USUAL.label)
    return {
        "parameters": found.parameters,
        "bits": usual.bits_per_number,
        "weights": usual.disk_bytes,
        "disk": None,
        **_of_kernels(usual.kernels or {}, LEVEL),
        "mapped": usual.mapped_bytes,
        "resident": None,
        "load": None,
        "prompt": None,
        "decode": None,
    }


def _of_kernels(kernels: Mapping[str, KernelBytes], level: int) -> dict[str, Figure]:
    x64, arm = kernels[kernel_for("x64", (), level)], kernels[kernel_for("arm", ("dotprod",), level)]
    return {"held_x64": x64.held_bytes, "held_arm": arm.held_bytes, "read_x64": x64.streamed_bytes}


def _of_cache(shape: Architecture, context: int) -> dict[str, Figure]:
    return {"cache": cache_bytes(shape, context) or None}  # an encoder has none


def _of_tasks(found: Report | Before, weights: Figure) -> dict[str, Figure]:
    """IA³ and LoRA for one more task, and for 100 tasks with the weights."""
    ours, lora = found.adapters[0], next(cost for cost in found.adapters if cost.method == LORA)
    base, merged = weights or 0, isinstance(found, Report) and found.mode == "merged"
    return {
        "task": ours.disk_bytes,
        "task_parameters": ours.parameters,
        "task_lora": lora.disk_bytes,
        "many": MANY * ours.disk_bytes + (0 if merged else base),
        "many_lora": base + MANY * lora.disk_bytes,
    }
