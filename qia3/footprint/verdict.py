"""Whether a model that is not built yet would fit a device, how fast it may be, and what to change if it does not fit.

    needs = held by the kernels + mapped from the file + the cache at this context + the process
            + the working memory of a prompt of this context

Everything that a verdict is made of is listed with it, and so is the command that would check it. The process is what
Python, ONNX Runtime and the tokenizer take (predicted.py), as measured if the device was calibrated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from qia3.footprint.device import Device, Figure
from qia3.footprint.estimate import Estimate, Load, fit
from qia3.footprint.predicted import nodes_of, process, work_bytes
from qia3.footprint.shapes import Form, Shapes
from qia3.footprint.table import mib
from qia3.footprint.weights import BLOCKS, USUAL, cache_bytes, weights_of

SHORTEST = 64  # the shortest context that is worth a build
CHECK = "build it, copy the bundle there, and run `qia3 bench BUNDLE`"


@dataclass(frozen=True)
class Verdict:
    """The verdict for one device. `left_bytes` is negative if it does not fit; `longest_context` is 0 if the weights
    alone do not.

    `first_change` is the smallest change that would make it fit; None if it fits, or if no change would.
    """

    estimate: Estimate
    title: str
    form: str
    context: int
    rows: int
    left_bytes: int
    longest_context: int
    basis: tuple[str, ...]
    check: str
    first_change: str | None


def verdict(shapes: Shapes, device: Device, context: int, rows: int, form: Form = USUAL) -> Verdict:
    """The verdict for unmerged vectors with one adapter loaded."""
    load = load_of(shapes, form, context, rows, device)
    found = fit(device, load)
    left = found.usable_ram_bytes - found.needed_ram_bytes
    each, limit = rows * cache_bytes(shapes.architecture, 1), shapes.architecture.context_length
    each += work_bytes(shapes, form, rows)
    longest = (left + each * context) // each
    return Verdict(
        estimate=found,
        title=device.title,
        form=form.label,
        context=context,
        rows=rows,
        left_bytes=left,
        longest_context=max(0, min(longest, limit or longest)),
        basis=_basis(load, device, found.streamed_bytes_per_token),
        check=CHECK,
        first_change=None if found.fits else _first_change(shapes, device, context, rows, form),
    )


@dataclass(frozen=True)
class Need:
    """All the memory that a build in `form` would take at this context: kernels, mapped, cache and the process.

    `int8_cache_bytes` is what the cache would take with cache = "int8" in [export]; None where there is no such cache.
    """

    form: str
    context: int
    rows: int
    cache_bytes: int
    int8_cache_bytes: int | None
    x64_bytes: int
    arm_bytes: int


def needs(shapes: Shapes, asked: Sequence[int], rows: int, form: Form = USUAL) -> list[Need]:
    """Needs at powers of two up to the model's context, and at the requested contexts. Just one for an encoder, which
    has no cache.
    """
    if not cache_bytes(shapes.architecture, 1):
        asked, spread = (max(asked),), []
    else:
        limit = shapes.architecture.context_length or max(asked)
        spread = [2**k for k in range(8, 18) if 2**k <= limit]
    return [_need(shapes, form, n, rows) for n in sorted({*spread, *asked})]


def _need(shapes: Shapes, form: Form, context: int, rows: int) -> Need:
    load = load_of(shapes, form, context, rows)
    rest = load.mapped_bytes + load.cache_bytes + load.process_bytes
    x64, arm = (load.kernels[name].held_bytes + rest for name in ("x64-int8", "arm-dotprod"))
    small = load_of(_small(shapes), form, context, rows).cache_bytes if takes_int8_cache(shapes) else None
    return Need(form.label, context, rows, load.cache_bytes, small, x64, arm)


def takes_int8_cache(shapes: Shapes) -> bool:
    """Whether a build can keep keys and values in int8 (qia3.graph.cache): of a decoder alone."""
    shape = shapes.architecture
    return shape.pooling is None and shape.encoder_layers is None


def _small(shapes: Shapes) -> Shapes:
    """The same, with an int8 cache."""
    return replace(shapes, architecture=replace(shapes.architecture, cache="int8"))


def load_of(shapes: Shapes, form: Form, context: int, rows: int, device: Device | None = None) -> Load:
    """What the graph of such a build would need from a device."""
    weights = weights_of(shapes, form)
    assert weights.kernels is not None, "ONNX Runtime's 4-bit kernels are for int4"
    return Load(
        kernels=weights.kernels,
        accuracy_level=4,
        mapped_bytes=weights.mapped_bytes,
        cache_bytes=rows * cache_bytes(shapes.architecture, context),
        process_bytes=sum(process(device)) + context * work_bytes(shapes, form, rows),
        nodes=nodes_of(shapes),
        writes=shapes.architecture.pooling is None,
        file_bytes=weights.disk_bytes,
    )


def _basis(load: Load, device: Device, streamed: int) -> tuple[str, ...]:
    usable = device.usable_bytes
    whose = "all its memory (the limit per app is not known)" if usable is None else f"usable: {_sourced(usable)}"
    low, peak = device.decode_bandwidth_low_bytes_per_second, device.peak_bandwidth_bytes_per_second
    rate = low or peak
    speed = "no published bandwidth" if rate is None else f"bandwidth: {_sourced(rate)}"
    return (
        f"cache {mib(load.cache_bytes)}, mapped {mib(load.mapped_bytes)}, process and prompt {mib(load.process_bytes)}",
        f"{mib(streamed)} read and {load.nodes:,} operators run per token",
        whose,
        speed,
    )


def _sourced(figure: Figure) -> str:
    return f"{figure.confidence}, {figure.source[0]}"


def _first_change(shapes: Shapes, device: Device, context: int, rows: int, form: Form) -> str | None:
    for words, made, other, positions, count in _changes(shapes, context, rows, form):
        if fit(device, load_of(made, other, positions, count, device)).fits:
            return words
    return None


def _changes(shapes: Shapes, context: int, rows: int, form: Form) -> Iterator[tuple[str, Shapes, Form, int, int]]:
    """Changes, from the smallest to the largest sacrifice."""
    larger: Sequence[int] = [block for block in BLOCKS if block > form.block]
    for block in larger:
        yield f"block_size = {block}", shapes, Form("int4", block, form.symmetric), context, rows
    if takes_int8_cache(shapes) and shapes.architecture.cache == "float32":
        yield 'cache = "int8"', _small(shapes), form, context, rows
    if rows > 1:
        yield "one row at a time", shapes, form, context, 1
    shorter = context // 2
    while shorter >= SHORTEST:
        yield f"context_length = {shorter}", shapes, form, shorter, rows
        shorter //= 2
    for block in larger:
        words = f"block_size = {block}, context_length = {SHORTEST}, one row at a time"
        yield words, shapes, Form("int4", block, form.symmetric), SHORTEST, 1
