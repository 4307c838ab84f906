"""The report before a build as a page. Wording only."""

from __future__ import annotations

from pathlib import Path

from qia3.footprint.before import Before, Training
from qia3.footprint.before_answer import before_answer
from qia3.footprint.cells import Cell
from qia3.footprint.devices_page import remarks, speed
from qia3.footprint.learning import PART
from qia3.footprint.sections import Chart, Limit, Note, Page, Row, Section, section, table
from qia3.footprint.weights import Weights

PARTS = {
    "embedding": "embedding",
    "head": "head",
    "attention": "attention",
    "feed_forward": "feed-forward",
    "experts": "experts",
    "other_linear": "other linear layers",
    "norms_biases_and_positions": "norms, biases, positions",
}


def before_page(found: Before) -> Page:
    """The whole report."""
    parts = (before_answer, _verdicts, _weights, _needs, _adapters, _fleets, _training, _learning, _parts, _claims)
    made = tuple(one for part in parts if (one := part(found)))
    return Page(f"{short_name(found.reference)}, before it is built", _lead(found), made)


def short_name(reference: str) -> str:
    """A hub id as it is; for a path, the name of the model's folder or file."""
    path = Path(reference)
    if not (path.is_absolute() or path.exists()):
        return reference
    return path.resolve().parent.name if path.name == "config.json" else path.resolve().name


def _lead(found: Before) -> str:
    shape = found.architecture
    stacks = f"{shape.layers} layers"
    if shape.encoder_layers is not None:
        stacks = f"{shape.encoder_layers} + {shape.layers} layers"
    tied = ", embedding and head one table" if shape.tied_embedding else ""
    return (
        f"{found.reference}: {found.model_type}, {found.parameters:,} parameters, {stacks}, width "
        f"{shape.hidden_size:,}, {shape.heads} heads of {shape.head_size} ({shape.kv_heads} of keys and values){tied}. "
        f"IA³ has {found.vectors} vectors. No weights were read: everything here is arithmetic, except what a "
        "training step "
        "keeps, which is counted on a model of shapes only."
    )


def _parts(found: Before) -> Section:
    rows: list[Row] = [
        [PARTS[p], Cell("count", n), Cell("share", n / found.parameters)] for p, n in found.parts.items()
    ]
    rows.append(["all", Cell("count", found.parameters), Cell("share", 1.0)])
    drawn = [Chart("stack", "Where the parameters are", values=(1,))]
    return section("parameters", "Parameters", table(["part", "parameters", "share"], rows, sums=(1,), charts=drawn))


def _weights(found: Before) -> Section:
    rows: list[Row] = [
        [one.form, Cell("bits", one.bits_per_number), Cell("mib", one.disk_bytes), *_memory(one)]
        for one in found.weights
    ]
    head = [
        "weights",
        "bits per parameter",
        "disk and download",
        "held, x64",
        "held, ARM with dot products",
        "mapped at most",
        "read per token, x64",
    ]
    note = (
        "Disk is weights only: a build adds graph, tokenizer and reports, and counts them to the byte. Held "
        "and mapped are for a 4-bit "
        "graph in ONNX Runtime, without its process; other forms are mapped, or held by programs that copy them."
    )
    if any("bits" in one.form for one in found.weights):
        note += (
            " With `bits`, a build chooses the layers at 8 bits by their effect on a text: the sizes are right, "
            "but the layers are not known yet."
        )
    drawn = [Chart("bars", "Weights on disk", values=(2,))]
    return section("weights", "Weights", note, table(head, rows, charts=drawn))


def _memory(one: Weights) -> list[Cell]:
    x64, arm = (one.kernels and one.kernels[name] for name in ("x64-int8", "arm-dotprod"))
    return [
        Cell("mib", x64.held_bytes if x64 else None),
        Cell("mib", arm.held_bytes if arm else None),
        Cell("mib", one.mapped_bytes),
        Cell("mib", x64.streamed_bytes if x64 else None),
    ]


def _needs(found: Before) -> Section:
    first = found.needs[0]
    small = first.int8_cache_bytes is not None
    rows: list[Row] = [
        [
            Cell("count", n.context),
            Cell("mib", n.cache_bytes),
            *([Cell("mib", n.int8_cache_bytes)] if small else ()),
            Cell("mib", n.x64_bytes),
            Cell("mib", n.arm_bytes),
        ]
        for n in found.needs
    ]
    note = (
        f"A build in {first.form}, vectors unmerged, {first.rows} row{'s' if first.rows > 1 else ''}: the "
        "kernels' weights, what is mapped "
        "from the file, the cache of keys and values in float32, and the process. Only the context in use "
        "costs memory, not the model's maximum."
    )
    if small:
        note += ' With cache = "int8" in [export] the totals are smaller by the difference of the two caches.'
    limits = tuple(Limit(one.estimate.device, one.estimate.usable_ram_bytes) for one in found.verdicts)
    values = (3, 4) if small else (2, 3)
    drawn = [
        Chart("lines", "Memory by context, with each device's memory", values=values, limits=limits, logarithmic=True)
    ]
    head = ["context", "cache", *(["cache, int8"] if small else ()), "total, x64", "total, ARM with dot products"]
    return section("cache", "Memory by context", note, table(head, rows, charts=drawn if len(rows) > 1 else ()))


def _adapters(found: Before) -> Section:
    ours = found.adapters[0]
    rows: list[Row] = [
        [
            one.method,
            Cell("count", one.parameters),
            Cell("ratio", one.parameters / ours.parameters),
            Cell("kib", one.disk_bytes),
            Cell("kib", one.training_state_bytes),
            Cell("count", one.operations_per_token),
        ]
        for one in found.adapters
    ]
    note = f"One task's adapter, float32. {_merged(found.fleets[0].constants)}"
    head = ["adapter", "parameters", "x IA³", "disk", "training state", "operations added per token"]
    return section("adapters", "What one more task costs", note, table(head, rows))


def _merged(constants: int | None) -> str:
    """What merging saves, and whether it sets IA³ apart from a LoRA of its size."""
    if constants is None:
        return (
            "IA³ cannot be merged into this model's 4-bit scales. If LoRA is as small, size does not distinguish them."
        )
    if constants:
        return (
            f"Merged IA³ is in the scales, but for {constants:,} entries behind an activation function, which stay "
            "constants of the graph. If LoRA is as small, size does not distinguish them, but IA³ merges exactly."
        )
    return (
        "Merged IA³ costs nothing beyond the base: it is in the scales. If LoRA is as small, size "
        "does not distinguish them, but IA³ folds into 4-bit scales exactly."
    )


def _training(found: Before) -> Section:
    rows: list[Row] = [[one.form, one.method, Cell("count", one.parameters), *_step(one)] for one in found.training]
    note = (
        f"Minimum for {found.training_rows} texts of {found.training_length} tokens in bfloat16, without "
        "recomputation: weights, 16 bytes "
        "of state per trained parameter (12 if the float32 weights themselves are trained), and what is kept "
        "for the backward pass."
    )
    head = ["weights", "method", "trained", "weights", "state", "kept for the backward pass", "total"]
    return section("training", "Training", note, table(head, rows, left=(0, 1)))


def _learning(found: Before) -> Section | None:
    """None for a model whose builds have no graph that learns."""
    if not found.learning:
        return None
    rows: list[Row] = [
        [one.method, *(Cell("mib", n) for n in (one.weights_bytes, one.state_bytes, one.kept_bytes, one.total_bytes))]
        for one in found.learning
    ]
    note = (
        f"`qia3 learn`, of a bundle built with trainable = true: float32, {PART} tokens at once, without torch. Weights are the kernels', the "
        "file's, and one layer's in float32. LoRA's row is computed for a graph that nobody has made."
    )
    head = ["adapter", "weights", "state", "kept for the backward pass", "with the process, all"]
    tables = [table(head, rows)]
    if found.learners:
        able: list[Row] = [
            [
                one.device,
                Cell("mib", one.usable_bytes),
                *("yes" if fits else "no" for fits in (one.fits, one.fits_lora)),
            ]
            for one in found.learners
        ]
        tables.append(table(["device", "usable memory", "learns IA³", "would learn LoRA"], able))
    return section("learning", "Learning on the device", note, *tables)


def _step(one: Training) -> list[Cell]:
    return [Cell("mib", n) for n in (one.weights_bytes, one.state_bytes, one.kept_bytes, one.total_bytes)]


def _fleets(found: Before) -> Section:
    rows: list[Row] = [
        [
            Cell("count", one.tasks),
            Cell("mib", one.lora_kept_bytes),
            Cell("mib", one.lora_merged_bfloat16_bytes),
            Cell("mib", one.lora_merged_int4_bytes),
            Cell("mib", one.ia3_side_bytes),
            Cell("mib", one.ia3_merged_bytes),
        ]
        for one in found.fleets
    ]
    head = [
        "tasks",
        "LoRA r=8, unmerged",
        "LoRA merged, bfloat16",
        "LoRA merged, 4 bits again",
        "IA³, unmerged",
        "IA³ merged",
    ]
    note = (
        "Disk, on a 4-bit base in blocks of 64. Unmerged: one base and an adapter per task; merged: one model per task."
    )
    if found.fleets[0].ia3_merged_bytes is None:
        note += (
            " There is an activation function before the feed-forward's vectors here, so IA³ cannot be "
            "merged into 4 bits."
        )
    drawn = [Chart("lines", "Disk by number of tasks", values=(1, 2, 3, 4, 5), logarithmic=True)]
    return section("tasks", "Many tasks", note, table(head, rows, charts=drawn))


def _claims(found: Before) -> Section:
    rows: list[Row] = [[c.sentence, c.claimed, c.here, Cell("holds", c.holds), c.why or "-"] for c in found.claims]
    head = ["sentence", "says", "here", "holds", "why"]
    return section("claims", "Claims about IA³", table(head, rows, left=(0, 4)))


def _verdicts(found: Before) -> Section | None:
    if not found.verdicts:
        return None
    rows: list[Row] = [
        [
            one.estimate.device,
            Cell("fits", one.estimate.fits),
            Cell("mib", one.estimate.needed_ram_bytes),
            Cell("mib", one.estimate.usable_ram_bytes),
            Cell("mib", one.left_bytes),
            Cell("count", one.longest_context),
            speed(one.estimate),
            one.first_change or ("-" if one.estimate.fits else "neither blocks, rows nor context"),
        ]
        for one in found.verdicts
    ]
    first = found.verdicts[0]
    note = (
        f"A build in {first.form}, vectors unmerged, {first.rows} row{'s' if first.rows > 1 else ''} of "
        f"{first.context:,} positions. Speeds "
        f"are estimates for one row and a short context, not measurements; to check: {first.check}."
    )
    head = [
        "device",
        "fits",
        "needs",
        "usable",
        "left",
        "longest context",
        "decoding, tokens/s (estimate)",
        "first change",
    ]
    basis = tuple(f"{one.estimate.device}: {'; '.join(one.basis)}" for one in found.verdicts)
    found_table, told = table(head, rows, left=(0, 7)), remarks([one.estimate for one in found.verdicts])
    return section(
        "devices", "Devices", note, found_table, *told, Note(basis, "list", "What the estimates are made of")
    )
