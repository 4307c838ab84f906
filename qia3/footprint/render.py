"""The report as Markdown. Formatting only: every figure comes from the report's object."""

from __future__ import annotations

from qia3.bundle.records import Agreement, Measured, Record
from qia3.footprint.report import Report
from qia3.footprint.table import NOT_MEASURED, kib, mib, percent, table

AS_SMALL = 1.25  # times the parameters of IA³, up to which a LoRA is called as small
PARTS = {
    "codes": "4-bit codes",
    "scales": "scales (float32, one a block)",
    "zero_points": "zero points (4-bit, one a block)",
    "embedding_codes": "embedding and head: codes",
    "embedding_scales": "embedding and head: scales",
    "embedding_zero_points": "embedding and head: zero points",
    "embedding_weights": "embedding and head: float32",
    "dense": "layers in float32",
    "norms_and_biases": "norms and biases",
    "rotary": "rotary tables",
    "other": "other tensors",
    "padding": "padding between tensors",
    "graph": "graph (.onnx)",
    "tokenizer": "tokenizer",
    "vectors": "IA³ vectors (.onnx_adapter)",
    "peft_checkpoints": "the same vectors for PEFT",
    "configs": "configurations",
    "reports_and_manifest": "this report and the manifest",
    "other_files": "other files",
}
BOTH = {"codes": "codes, 4 bits and 8", "zero_points": "zero points (one a block)"}  # where some layers are at 8 bits


def markdown(report: Report) -> str:
    """The whole report."""
    sections = (_title, _tasks, _parity, _drift, _rounding, _measured, _bytes, _adapters, _systems, _claim)
    return "\n\n".join(text for section in sections if (text := section(report))) + "\n"


def _title(report: Report) -> str:
    base, grid = report.base, report.base.grid
    symmetry = "symmetric" if grid.symmetric else "asymmetric"
    mode = "vectors at the side" if report.mode == "side" else f"merged with {report.merged_task}"
    shipped = f", shipped as {base.drift.format}" if base.drift else ""
    return (
        f"# {report.name}\n\nBase {base.reference} ({base.model_type}, {base.parameters:,} parameters) on the {grid.format} grid, "
        f"{symmetry}, block {grid.block_size}{shipped}; {mode}; "
        f"target {report.graph.target} (accuracy_level {report.graph.accuracy_level}). "
        f"Fingerprint {base.fingerprint[:16]}.{_finer(report)}"
    )


def _finer(report: Report) -> str:
    """Which layers are in other blocks, and which at 8 bits; empty where none are."""
    grid = report.base.grid
    named = {f"In blocks of {size}": roles for size, roles in grid.blocks.items()} | {"At 8 bits": grid.eight_bit}
    return "".join(f" {where}: {'; '.join(roles)}." for where, roles in named.items() if roles)


def _has_eight_bit(report: Report) -> bool:
    return bool(report.base.grid.eight_bit)


def _tasks(report: Report) -> str:
    rows, worse = [], []
    for name, task in report.tasks.items():
        scores = (report.evaluation or {}).get(name)
        before, after = (scores.before, scores.after) if scores else (None, None)
        if before and after and after.accuracy < before.accuracy:
            worse.append(name)
        shares = [percent(score.accuracy if score else None) for score in (before, after)]
        overlap = "-" if after is None or after.f1 is None else f"{after.f1:.2f}"
        count = str(scores.n) if scores else "-"
        rows.append([name, task.kind, count, *shares, overlap, _training(report.training.get(name))])
    note = "Held-out accuracy of this bundle on ONNX Runtime (`qia3 eval BUNDLE FILE --adapter NAME`; generation: exact match, and F1 over words)."
    warning = f"\n\nWorse with its adapter than without: {', '.join(worse)}." if worse else ""
    head = ["task", "kind", "n", "no adapter", "with adapter", "token F1", "training"]
    return f"## Tasks\n\n{note}{warning}\n\n" + table(head, rows, left=(0, 1, 6))


def _training(run: Record | None) -> str:
    if run is None:
        return NOT_MEASURED
    return f"{run.examples} examples, {run.steps} steps, {run.seconds:.0f} s, {run.compute}"


def _parity(report: Report) -> str:
    rows = [
        [name, kind, *_agreement(agreement)]
        for name, both in (report.parity or {}).items()
        for kind, agreement in (("exact", both.exact), ("shipped", both.shipped))
    ]
    if not rows:
        return f"## Parity with torch\n\n{NOT_MEASURED}"
    head = ["adapter", "graph", "max difference", "KL (nats)", "same top token", "positions"]
    note = "`exact` is the graph at accuracy_level 0, `shipped` as it is in this bundle. Differences are of logits."
    if report.architecture.pooling is not None:
        note += " Without an adapter an encoder has none: there they are of its states."
    beyond = "; ".join(f"{name}: {', '.join(far)}" for name, far in report.beyond.items())
    warning = f"\n\nInt8 activations change these more than the build file's limits: {beyond}." if beyond else ""
    return f"## Parity with torch\n\n{note}\n\n{table(head, rows, left=(0, 1))}{warning}"


def _agreement(a: Agreement) -> list[str]:
    return [f"{a.max_difference:.2g}", f"{a.kl:.2g}", percent(a.top1), str(a.positions)]


def _drift(report: Report) -> str:
    """What a base on NF4 lost on its way to another grid; empty where it took none."""
    drift = report.base.drift
    if not drift:
        return ""
    rows = [[name, *_agreement(agreement)] for name, agreement in drift.logits.items()]
    note = (
        f"{drift.layers} layers moved from NF4 to {drift.format} (blocks of {drift.block_size} at most): their weights by "
        f"{percent(drift.relative_rms)} of their size, those of {drift.worst_layer} by {percent(drift.worst_relative_rms)} "
        "(root mean squares). In torch, before against after:"
    )
    return f"## Drift\n\n{note}\n\n" + table(
        ["adapter", "max difference", "KL (nats)", "same top token", "positions"], rows
    )


def _rounding(report: Report) -> str:
    """What whole zero points made of a base whose codes came with other offsets; empty for all others."""
    rounding = report.base.grid.rounding
    if not rounding:
        return ""
    anew = f", and {rounding.anew} of them have blocks with other codes" if rounding.anew else ""
    return (
        f"## Codes of {report.base.grid.codes}\n\n"
        f"{rounding.layers} layers keep the codes and scales that they came with, on whole zero points: their weights move by "
        f"{percent(rounding.relative_rms)} of their size, those of {rounding.worst_layer} by "
        f"{percent(rounding.worst_relative_rms)} (root mean squares){anew}."
    )


def _measured(report: Report) -> str:
    title, found, caches = "## Memory and speed\n\n", report.measured, _caches(report)
    if not found:
        return f"{title}{NOT_MEASURED}\n\n" + table(["", "bytes"], caches)
    rows = [
        ["peak resident memory", mib(found.peak_resident_bytes)],
        ["anonymous (held), at its peak", mib(found.peak_anonymous_bytes)],
        ["file-backed (mapped, can be dropped), at its peak", mib(found.peak_file_bytes)],
        ["load", f"{found.load_seconds:.2f} s"],
        [f"prompt of {found.prompt_tokens} tokens", f"{found.prompt_tokens_per_second:,.0f} tokens/s"],
        *_decoding(found),
        *caches,
    ]
    versions = ", ".join(f"{k} {v}" for k, v in report.versions.items())
    where = f"A fresh ONNX Runtime process (`qia3 bench BUNDLE`), {found.threads} threads, {found.machine}; {versions}."
    return f"{title}{where}\n\n" + table(["", "measured"], rows)


def _decoding(found: Measured) -> list[list[str]]:
    """What an encoder does not do."""
    if found.decode_tokens_per_second is None:
        return []
    return [[f"decoding {found.new_tokens} tokens", f"{found.decode_tokens_per_second:,.0f} tokens/s"]]


def _caches(report: Report) -> list[list[str]]:
    """A row for each that one row of a batch has at the full context; an encoder has none."""
    shape = report.architecture
    if shape.pooling is not None:
        return []
    kinds = {"cache": report.memory.kv_cache_bytes}
    if shape.encoder_layers is not None:
        kinds |= {"the encoder's states' cache": report.memory.cross_cache_bytes}
    return [
        [f"{name} for {shape.context_length} positions (computed, float32)", mib(size)] for name, size in kinds.items()
    ]


def _bytes(report: Report) -> str:
    total = report.account.total
    names = PARTS | (BOTH if _has_eight_bit(report) else {})
    rows = [[names.get(p, p), f"{n:,}", percent(n / total)] for p, n in report.account.parts.items()]
    rows.append(["total on disk", f"{total:,}", percent(1.0)])
    tied = "The embedding and the head are one tensor, stored and counted once. " if report.account.tied else ""
    bits, grid = report.account.bits_per_weight, report.account.grid_bits_per_weight
    layers = "The layers, at 4 and at 8 bits," if _has_eight_bit(report) else "The 4-bit layers"
    note = f"{tied}{layers} take {bits:.3f} bits a weight; the grid's arithmetic gives {grid:.3f}."
    return f"## Bytes on disk\n\n{note}\n\n" + table(["part", "bytes", "share"], rows)


def _adapters(report: Report) -> str:
    ours = report.adapters[0]
    rows = [
        [
            a.method,
            f"{a.parameters:,}",
            f"{a.parameters / ours.parameters:.2f}" if ours.parameters else "-",
            *(kib(n) for n in (a.disk_bytes, a.runtime_bytes, a.training_state_bytes)),
            f"{a.operations_per_token:,}",
        ]
        for a in report.adapters
    ]
    head = ["adapter", "parameters", "x IA³", "disk", "loaded", "training state", "operations a token"]
    return f"## What one more task costs\n\n{_adapters_note(report)}\n\n" + table(head, rows)


def _adapters_note(report: Report) -> str:
    ours, smallest = report.adapters[:2]
    ratio = smallest.parameters / ours.parameters if ours.parameters else 0.0
    as_small = (
        ": size alone does not part IA³ from the smallest LoRA, the exact fold into 4-bit scales does"
        if ratio <= AS_SMALL
        else ""
    )
    small = f"{smallest.method} has {ratio:.2f} times the parameters of IA³{as_small}. " if ratio else ""
    fused = (
        " Queries, keys and values are one fused layer here, so LoRA on q, v is LoRA on all of it."
        if report.fused_qkv
        else ""
    )
    merged = (
        " This bundle is merged: its vectors are in the scales, so nothing is loaded or added."
        if report.mode == "merged"
        else ""
    )
    both = (
        " A token is one of the prompt and one of the answer here: the encoder runs for the first, the decoder for the other."
        if report.architecture.encoder_layers is not None
        else ""
    )
    return (
        f"{small}LoRA is computed, float32.{fused}{merged}{both} "
        "Training state is a master copy, a gradient and Adam's two moments in float32, 16 bytes a parameter for both; beyond that "
        "state IA³ is not lighter in training memory than LoRA: the activations kept for the backward pass come on top, and are not fewer."
    )


def _systems(report: Report) -> str:
    rows = [
        [
            s.name + (f" ({s.model_files} model files)" if s.model_files > 1 else ""),
            mib(s.disk_bytes),
            mib(s.weights_resident_bytes),
            "-" if s.measured_resident_bytes is None else mib(s.measured_resident_bytes),
            kib(s.training_state_bytes),
            f"{s.operations_per_token:,}",
        ]
        for s in report.systems
    ]
    head = ["system", "disk", "resident weights", "resident process", "training state", "operations added a token"]
    count = max(1, len(report.tasks))
    note = (
        f"Weights, graph and adapters for {count} task{'s' if count > 1 else ''}, without the tokenizer; LoRA on all linear layers. "
        "A merged model needs one model file for each task. Resident weights are computed: what is held with one adapter, and at most mapped, "
        "without process, activations and cache. The resident process was measured, for this bundle only; the two columns do not compare."
    )
    return f"## Whole systems\n\n{note}\n\n" + table(head, rows)


def _claim(report: Report) -> str:
    verdicts = "; ".join(
        f"against {name} with LoRA the ratio is {ratio:.2f}, so it {'holds' if report.claim.holds[name] else 'does not hold'}"
        for name, ratio in report.claim.disk_ratio.items()
    )
    read_as = f"Read as: on disk, {report.claim.holds_from} times or more."
    return f'## The published claim\n\n"{report.claim.sentence}". {read_as} Here, {verdicts}.'
