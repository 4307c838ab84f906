"""What a bundle costs, as sections of its page: memory and speed, bytes, adapters, whole systems, the published claim."""

from __future__ import annotations

from collections.abc import Sequence

from qia3.bundle.records import Measured
from qia3.bundle.task import LABELLED
from qia3.footprint.cells import Cell
from qia3.footprint.cells import measured as figure
from qia3.footprint.estimate import Estimate, process_bytes
from qia3.footprint.report import Report
from qia3.footprint.sections import Chart, Limit, Row, Section, section, table
from qia3.footprint.table import NOT_MEASURED
from qia3.footprint.weights import cache_bytes

SHORTEST = 7  # contexts are powers of two from 2**7
AS_SMALL = 1.25  # a LoRA with up to this many times IA³'s parameters counts as equally small
PARTS = {
    "codes": "4-bit codes",
    "scales": "scales (float32, one per block)",
    "zero_points": "zero points (4-bit, one per block)",
    "embedding_codes": "embedding and head: codes",
    "embedding_scales": "embedding and head: scales",
    "embedding_zero_points": "embedding and head: zero points",
    "embedding_weights": "embedding and head: float32",
    "dense": "layers in float32",
    "prompt_weights": "int8 weights for prompts",
    "int8_weights": "int8 weights",
    "norms_and_biases": "norms and biases",
    "rotary": "rotary tables",
    "positions": "position and segment tables",
    "other": "other tensors",
    "padding": "padding between tensors",
    "graph": "graph (.onnx)",
    "training_graph": "graph that learns (.onnx)",
    "tokenizer": "tokenizer",
    "vectors": "IA³ vectors (.onnx_adapter)",
    "peft_checkpoints": "the same vectors for PEFT",
    "configs": "configurations",
    "reports_and_manifest": "this report and the manifest",
    "other_files": "other files",
}
TABLE = {  # where no head is beside it
    name: text.replace("embedding and head", "embedding")
    for name, text in PARTS.items()
    if name in ("embedding_codes", "embedding_scales", "embedding_zero_points")
}
FLOAT_TABLE = {"embedding_weights": "embedding: float32"}  # of an encoder: int8 products leave a float head beside it
CODES = {  # where layers are at 8 bits: all of them, or some
    (8,): {"codes": "8-bit codes", "zero_points": "zero points (8-bit, one per block)"},
    (4, 8): {"codes": "codes, 4 bits and 8", "zero_points": "zero points (one per block)"},
}


def measured(report: Report) -> Section:
    found, caches = report.measured, _caches(report)
    title = "Memory and speed"
    if not found:
        return section("measured", title, NOT_MEASURED, table(["", "bytes"], caches))
    rows: list[Row] = [
        ["peak resident memory", figure("mib", found.peak_resident_bytes)],
        ["anonymous (held), at its peak", figure("mib", found.peak_anonymous_bytes)],
        ["file-backed (mapped, can be dropped), at its peak", figure("mib", found.peak_file_bytes)],
        ["load", Cell("seconds", found.load_seconds)],
        [f"prompt of {found.prompt_tokens} tokens", Cell("speed", found.prompt_tokens_per_second)],
        *_decoding(found),
        *caches,
    ]
    versions = ", ".join(f"{k} {v}" for k, v in report.versions.items())
    where = f"A fresh ONNX Runtime process (`qia3 bench BUNDLE`), {found.threads} threads, {found.machine}; {versions}."
    return section("measured", title, where, table(["", "measured"], rows))


def _decoding(found: Measured) -> list[Row]:
    """A row for decoding; none for an encoder."""
    if found.decode_tokens_per_second is None:
        return []
    return [[f"decoding {found.new_tokens} tokens", Cell("speed", found.decode_tokens_per_second)]]


def _caches(report: Report) -> list[Row]:
    """A row per cache, for one row of a batch at the full context; an encoder has none."""
    shape = report.architecture
    if shape.pooling is not None:
        return []
    kinds = {"cache": report.memory.kv_cache_bytes}
    if shape.encoder_layers is not None:
        kinds |= {"the encoder's states' cache": report.memory.cross_cache_bytes}
    return [
        [f"{name} for {shape.context_length} positions (computed, {shape.cache})", Cell("mib", size)]
        for name, size in kinds.items()
    ]


PREDICTED = {"bytes": "mib", "seconds": "seconds", "tokens/s": "speed"}


def predicted(report: Report) -> Section | None:
    """Predictions compared with measurements, with the error; None if nothing was measured."""
    if not report.predicted:
        return None
    rows: list[Row] = [
        [
            one.name,
            Cell(PREDICTED[one.unit], one.predicted),
            Cell(PREDICTED[one.unit], one.measured),
            Cell("apart", one.error),
        ]
        for one in report.predicted
        if one.measured is not None  # an encoder generates nothing
    ]
    note = (
        "Arithmetic on the sizes of the graph, compared with the fresh process above. Speeds are predicted "
        "for a calibrated machine "
        "(`qia3 bench --calibrate`): bytes and operators per token, operations and outputs per prompt. "
        "Accuracy and agreement "
        "with torch cannot be predicted from sizes: they are measured above, with the limits that the build "
        "had to meet."
    )
    drawn = [Chart("pairs", "Predicted and measured, each on its own scale", values=(1, 2))]
    head = ["", "predicted", "measured", "error"]
    return section("predicted", "Predicted and measured", note, table(head, rows, charts=drawn))


def memory(report: Report, estimates: Sequence[Estimate]) -> Section | None:
    """Memory by context, with the memory of each requested device; None for an encoder, which has no cache."""
    shape, found = report.architecture, report.memory
    if shape.pooling is not None:
        return None
    held = found.weights_bytes + process_bytes(report)
    contexts = sorted({*(2**k for k in range(SHORTEST, 18) if 2**k < shape.context_length), shape.context_length})
    rows: list[Row] = [
        [Cell("count", n), Cell("mib", size := cache_bytes(shape, n)), Cell("mib", held + size)] for n in contexts
    ]
    process = (
        "what its process held besides when it was measured"
        if report.measured
        else "without its process, which was not measured"
    )
    note = (
        f"Weights held and mapped ({found.kernel_here} kernels), the cache of one row in {shape.cache}, and "
        f"{process}. Only the context "
        "in use costs memory, not the model's maximum."
    )
    limits = tuple(Limit(one.device, one.usable_ram_bytes) for one in estimates)
    title = "Memory by context" + (", with each device's memory" if limits else "")
    drawn = [Chart("lines", title, values=(2,), limits=limits, logarithmic=True)] if len(rows) > 1 else []
    return section("memory", "Memory by context", note, table(["context", "cache", "total"], rows, charts=drawn))


def bytes_on_disk(report: Report) -> Section:
    total, widths = report.account.total, report.account.code_bits
    rounded = "int8_weights" in report.account.parts
    names = PARTS | CODES.get(widths, {}) | ({} if _head_is_beside(report) else TABLE)
    if report.architecture.pooling is not None:
        names |= FLOAT_TABLE
    rows: list[Row] = [
        [names.get(p, p), Cell("bytes", n), Cell("share", round(n / total, 4))] for p, n in report.account.parts.items()
    ]
    rows.append(["total on disk", Cell("bytes", total), Cell("share", 1.0)])
    tied = "The embedding and the head are one tensor, stored and counted once. " if report.account.tied else ""
    bits, grid = report.account.bits_per_weight, report.account.grid_bits_per_weight
    layers = {(8,): "The 8-bit layers", (4, 8): "The layers, at 4 and at 8 bits,"}.get(widths, "The 4-bit layers")
    note = f"{tied}{layers} take {bits:.3f} bits per weight; the grid's arithmetic gives {grid:.3f}."
    if rounded:
        note = (
            f"{tied}Int8 weights are made from those on the grid: one byte each, scales per column, and what smooths "
            f"their inputs. With what is left on the grid they take {bits:.3f} bits per weight (arithmetic, without "
            f"smoothing: {grid:.3f})."
        )
    drawn = [Chart("stack", "Where the bytes are", values=(1,))]
    return section("bytes", "Bytes on disk", note, table(["part", "bytes", "share"], rows, sums=(1,), charts=drawn))


def _head_is_beside(report: Report) -> bool:
    """Whether a head's bytes are with the embedding's: an encoder has none, and with int8 products it is one of them."""
    return report.architecture.pooling is None and not report.memory.int8_products


def adapters(report: Report) -> Section:
    ours = report.adapters[0]
    rows: list[Row] = [
        [
            a.method,
            Cell("count", a.parameters),
            Cell("ratio", a.parameters / ours.parameters if ours.parameters else None),
            *(Cell("kib", n) for n in (a.disk_bytes, a.runtime_bytes, a.training_state_bytes)),
            Cell("count", a.operations_per_token),
        ]
        for a in report.adapters
    ]
    head = ["adapter", "parameters", "x IA³", "disk", "loaded", "training state", "operations per token"]
    return section("adapters", "What one more task costs", _adapters_note(report), table(head, rows))


def _adapters_note(report: Report) -> str:
    ours, smallest = report.adapters[:2]
    ratio = smallest.parameters / ours.parameters if ours.parameters else 0.0
    folds = "; exact folding into 4-bit scales does" if _folds(report) else ""
    as_small = f": size does not distinguish IA³ from the smallest LoRA{folds}" if ratio <= AS_SMALL else ""
    small = f"{smallest.method} has {ratio:.2f} times the parameters of IA³{as_small}. " if ratio else ""
    fused = (
        " Queries, keys and values are one fused layer here, so LoRA on q, v is LoRA on all of it."
        if report.fused_qkv
        else ""
    )
    where = "weights" if "int8_weights" in report.account.parts else "scales"
    left = (
        f"; {ours.operations_per_token:,} entries, behind an activation function, are constants of the graph;"
        if ours.operations_per_token
        else ", so nothing is loaded or added;"
    )
    merged = f" This bundle is merged: its vectors are in the {where}{left} one more task is one more model."
    merged = merged if report.mode == "merged" else ""
    labels = {name: len(task.choices or ()) for name, task in report.tasks.items() if task.kind in LABELLED}
    width = report.architecture.hidden_size
    heads = (
        " Besides its vectors, each task has a head in float32, which is not counted here: "
        + ", ".join(f"{name} {count * (width + 1):,}" for name, count in labels.items())
        + "."
        if labels and report.architecture.pooling is not None
        else ""
    )
    both = (
        " A token here means one of the prompt and one of the answer: the encoder runs for the first, the "
        "decoder for the second."
        if report.architecture.encoder_layers is not None
        else ""
    )
    return (
        f"{small}LoRA is computed, float32.{fused}{merged}{heads}{both} "
        "Training state is a master copy, a gradient and Adam's two moments in float32, 16 bytes per "
        "parameter for both methods. Apart from that "
        "state, IA³ needs as much training memory as LoRA: the activations kept for the backward pass come "
        "on top and are not fewer."
    )


def _folds(report: Report) -> bool:
    """Whether all vectors fold: the last system is the merged one, if there is one."""
    last = report.systems[-1]
    return last.name.endswith("merged") and last.operations_per_token == 0


def whole_systems(report: Report) -> Section:
    rows: list[Row] = [
        [
            s.name + (f" ({s.model_files} model files)" if s.model_files > 1 else ""),
            Cell("mib", s.disk_bytes),
            Cell("mib", s.weights_resident_bytes),
            Cell("mib", s.measured_resident_bytes),
            Cell("kib", s.training_state_bytes),
            Cell("count", s.operations_per_token),
        ]
        for s in report.systems
    ]
    head = ["system", "disk", "resident weights", "resident process", "training state", "operations added per token"]
    count = max(1, len(report.tasks))
    note = (
        f"Weights, graph and adapters for {count} task{'s' if count > 1 else ''}, without the tokenizer; LoRA on all linear layers. "
        "Merged models need one model file per task. Resident weights are computed: held and at most mapped, "
        "with one adapter, "
        "without process, activations and cache. The resident process was measured, for this bundle only; "
        "the two columns are not comparable."
    )
    drawn = [Chart("bars", "Whole systems: disk and resident weights", values=(1, 2))]
    return section("systems", "Whole systems", note, table(head, rows, charts=drawn))


def published_claim(report: Report) -> Section:
    verdicts = "; ".join(
        f"against {name} with LoRA the ratio is {ratio:.2f}, so it {'holds' if report.claim.holds[name] else 'does not hold'}"
        for name, ratio in report.claim.disk_ratio.items()
    )
    read_as = f"Interpreted as: at least {report.claim.holds_from} times smaller on disk."
    note = f'"{report.claim.sentence}". {read_as} Here, {verdicts}.'
    return section("claim", "The published claim", note)
