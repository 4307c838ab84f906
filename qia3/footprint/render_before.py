"""The report before a build, as Markdown. Formatting only."""

from __future__ import annotations

from qia3.footprint.before import Before, Training
from qia3.footprint.render_devices import speed
from qia3.footprint.table import kib, mib, percent, table
from qia3.footprint.weights import Weights

PARTS = {
    "embedding": "embedding",
    "head": "head",
    "attention": "attention",
    "feed_forward": "feed-forward",
    "other_linear": "other linear layers",
    "norms_biases_and_positions": "norms, biases, positions",
}


def markdown(found: Before) -> str:
    """The whole report."""
    sections = (_title, _parts, _weights, _caches, _adapters, _training, _fleets, _claims, _verdicts)
    return "\n\n".join(text for section in sections if (text := section(found))) + "\n"


def _title(found: Before) -> str:
    shape = found.architecture
    stacks = f"{shape.layers} layers"
    if shape.encoder_layers is not None:
        stacks = f"{shape.encoder_layers} + {shape.layers} layers"
    tied = ", embedding and head one table" if shape.tied_embedding else ""
    return (
        f"# {found.reference}, before it is built\n\n{found.model_type}, {found.parameters:,} parameters: {stacks}, width "
        f"{shape.hidden_size:,}, {shape.heads} heads of {shape.head_size} ({shape.kv_heads} of keys and values){tied}. "
        f"IA³ has {found.vectors} vectors. No weight was read: everything here is arithmetic, but for what a training step "
        "keeps, which is counted on a model without numbers."
    )


def _parts(found: Before) -> str:
    rows = [[PARTS[p], f"{n:,}", percent(n / found.parameters)] for p, n in found.parts.items()]
    rows.append(["all", f"{found.parameters:,}", percent(1.0)])
    return "## Parameters\n\n" + table(["part", "parameters", "share"], rows)


def _weights(found: Before) -> str:
    rows = [[one.form, f"{one.bits_per_number:.2f}", mib(one.disk_bytes), *_memory(one)] for one in found.weights]
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
        "Disk is weights alone: a build adds graph, tokenizer and reports, and counts them to the byte. Held and mapped is what ONNX Runtime "
        "makes of a 4-bit graph, without its process; other forms are mapped, and held by whoever copies them."
    )
    return f"## Weights\n\n{note}\n\n" + table(head, rows)


def _memory(one: Weights) -> list[str]:
    if one.kernels is None:
        return ["-", "-", mib(one.mapped_bytes), "-"]
    x64, arm = one.kernels["x64-int8"], one.kernels["arm-dotprod"]
    return [mib(x64.held_bytes), mib(arm.held_bytes), mib(one.mapped_bytes), mib(x64.streamed_bytes)]


def _caches(found: Before) -> str:
    if not found.caches:  # an encoder's
        return ""
    rows = [[f"{one.context:,}", str(one.rows), mib(one.bytes)] for one in found.caches]
    return "## Cache of keys and values, float32\n\n" + table(["context", "rows", "cache"], rows)


def _adapters(found: Before) -> str:
    ours = found.adapters[0]
    rows = [
        [
            one.method,
            f"{one.parameters:,}",
            f"{one.parameters / ours.parameters:.2f}",
            kib(one.disk_bytes),
            kib(one.training_state_bytes),
            f"{one.operations_per_token:,}",
        ]
        for one in found.adapters
    ]
    note = (
        "One task's adapter, float32. IA³ that is merged costs nothing more than the base: it is in the scales. Where LoRA is as small, size "
        "does not part them; what does is that IA³ folds into 4-bit scales exactly."
    )
    head = ["adapter", "parameters", "x IA³", "disk", "training state", "operations added per token"]
    return f"## What one more task costs\n\n{note}\n\n" + table(head, rows)


def _training(found: Before) -> str:
    rows = [[one.form, one.method, f"{one.parameters:,}", *_step(one)] for one in found.training]
    note = (
        f"At the least, for {found.training_rows} texts of {found.training_length} tokens in bfloat16, nothing recomputed: weights, 16 bytes "
        "of state per trained parameter (12 beside float32 weights that train themselves), and what the backward pass needs kept."
    )
    head = ["weights", "method", "trained", "weights", "state", "kept for the backward pass", "all"]
    return f"## Training\n\n{note}\n\n" + table(head, rows, left=(0, 1))


def _step(one: Training) -> list[str]:
    return [mib(n) for n in (one.weights_bytes, one.state_bytes, one.kept_bytes, one.total_bytes)]


def _fleets(found: Before) -> str:
    rows = []
    for one in found.fleets:
        sizes = (one.lora_kept_bytes, one.lora_merged_bfloat16_bytes, one.lora_merged_int4_bytes, one.ia3_side_bytes)
        merged = "-" if one.ia3_merged_bytes is None else mib(one.ia3_merged_bytes)
        rows.append([f"{one.tasks:,}", *map(mib, sizes), merged])
    head = ["tasks", "LoRA r=8 beside", "LoRA merged, bfloat16", "LoRA merged, 4 bits anew", "IA³ beside", "IA³ merged"]
    note = "Disk, on a 4-bit base in blocks of 64. Beside it are adapters over one base; merged is one model per task."
    if found.fleets[0].ia3_merged_bytes is None:
        note += (
            " An activation function stands before the feed-forward's vectors here, so IA³ is not merged into 4 bits."
        )
    return f"## Many tasks\n\n{note}\n\n" + table(head, rows)


def _claims(found: Before) -> str:
    rows = [[c.sentence, c.claimed, c.here, "yes" if c.holds else "no", c.why or "-"] for c in found.claims]
    return "## What is said of IA³\n\n" + table(["sentence", "says", "here", "holds", "why"], rows, left=(0, 4))


def _verdicts(found: Before) -> str:
    if not found.verdicts:
        return ""
    rows = [
        [
            one.estimate.device,
            "yes" if one.estimate.fits else "**no**",
            mib(one.estimate.needed_ram_bytes),
            mib(one.estimate.usable_ram_bytes),
            mib(one.left_bytes),
            f"{one.longest_context:,}",
            speed(one.estimate),
            one.first_change or ("-" if one.estimate.fits else "none of blocks, rows and context"),
        ]
        for one in found.verdicts
    ]
    first = found.verdicts[0]
    note = (
        f"A build in {first.form}, vectors at the side, {first.rows} row{'s' if first.rows > 1 else ''} of {first.context:,} positions. Speeds "
        f"are an estimate for one row and a short context, not a measurement; to check: {first.check}."
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
    basis = "\n".join(f"- {one.estimate.device}: {'; '.join(one.basis)}" for one in found.verdicts)
    return f"## Devices\n\n{note}\n\n{table(head, rows, left=(0, 7))}\n\nWhat goes into it:\n\n{basis}"
