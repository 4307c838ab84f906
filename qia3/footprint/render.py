"""The report as Markdown. Formatting only: every figure comes from the report's object."""

from __future__ import annotations

from collections.abc import Sequence

from qia3.footprint.report import Report

NOT_MEASURED = "not measured"
PARTS = {
    "codes": "4-bit codes",
    "scales": "scales (float32, one a block)",
    "zero_points": "zero points (4-bit, one a block)",
    "embedding_codes": "embedding and head: codes",
    "embedding_scales": "embedding and head: scales",
    "embedding_zero_points": "embedding and head: zero points",
    "norms_and_biases": "norms and biases",
    "rotary": "rotary tables",
    "other": "other tensors",
    "padding": "padding between tensors",
    "graph": "graph (model.onnx)",
    "vectors": "IA³ vectors (.onnx_adapter)",
    "peft_checkpoints": "the same vectors for PEFT",
    "tokenizer": "tokenizer",
    "configurations": "configurations",
    "reports": "this report and the manifest",
    "other_files": "other files",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads as text too; all columns but the first are aligned right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))) + " |"

    rule = "| " + " | ".join("-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |"
    return "\n".join([line(head), rule, *map(line, rows)])


def markdown(report: Report) -> str:
    """The whole report."""
    parts = (_title(report), _tasks(report), _parity(report), _measured(report), _bytes(report), _adapters(report), _systems(report), _claim(report))
    return "\n\n".join(parts) + "\n"


def mib(count: float | None) -> str:
    """Bytes as MiB with one decimal."""
    return NOT_MEASURED if count is None else f"{count / 2**20:,.1f} MiB"


def kib(count: float) -> str:
    """Bytes as KiB."""
    return f"{count / 2**10:,.0f} KiB"


def percent(share: float | None) -> str:
    return NOT_MEASURED if share is None else f"{100 * share:.1f} %"


def _title(report: Report) -> str:
    base, grid = report.base, report.base["grid"]
    symmetry = "symmetric" if grid["symmetric"] else "asymmetric"
    mode = "vectors at the side" if report.mode == "side" else f"merged with {report.merged_task}"
    lines = [
        f"# {report.name}",
        f"Base {base['reference']} ({base['model_type']}, {base['parameters']:,} parameters) on the {grid['format']} grid, {symmetry}, "
        f"block {grid['block_size']}; {mode}; target {report.graph['target']} (accuracy_level {report.graph['accuracy_level']}). "
        f"Fingerprint {base['fingerprint'][:16]}.",
    ]
    return "\n\n".join(lines)


def _tasks(report: Report) -> str:
    rows = []
    for name, task in report.tasks.items():
        scores = (report.evaluation or {}).get(name, {})
        run = report.training.get(name)
        before, after = (scores.get(when, {}).get("accuracy") for when in ("before", "after"))
        trained = f"{run['examples']} examples, {run['steps']} steps, {run['seconds']:.0f} s, {run['compute']}" if run else "imported"
        rows.append([name, task["kind"], str(scores.get("n", "-")), percent(before), percent(after), trained])
    return "## Tasks\n\nHeld-out accuracy of this bundle on ONNX Runtime (generation: exact match).\n\n" + table(
        ["task", "kind", "n", "no adapter", "with adapter", "training"], rows
    )


def _parity(report: Report) -> str:
    rows = [
        [name, kind, f"{a['max_difference']:.2g}", f"{a['kl']:.2g}", percent(a["top1"]), str(a["positions"])]
        for name, both in (report.parity or {}).items()
        for kind, a in both.items()
    ]
    text = "## Parity with torch\n\n`exact` is the graph at accuracy_level 0, `shipped` as it is in this bundle.\n\n"
    return text + (table(["adapter", "graph", "max difference", "KL (nats)", "same top token", "positions"], rows) if rows else NOT_MEASURED)


def _measured(report: Report) -> str:
    found = report.measured
    if not found:
        return f"## Memory and speed\n\n{NOT_MEASURED}"
    rows = [
        ["peak resident memory", mib(found["peak_resident_bytes"])],
        ["of it anonymous (held)", mib(found["peak_anonymous_bytes"])],
        ["of it file-backed (mapped, can be dropped)", mib(found["peak_file_bytes"])],
        ["load", f"{found['load_seconds']:.2f} s"],
        [f"prompt of {found.get('prompt_tokens', 128)} tokens", f"{found['prompt_tokens_per_second']:,.0f} tokens/s"],
        [f"decoding {found.get('new_tokens', 64)} tokens", f"{found['decode_tokens_per_second']:,.0f} tokens/s"],
        [f"cache for {report.architecture['context_length']} positions (computed, float32)", mib(report.kv_cache_bytes)],
    ]
    versions = ", ".join(f"{k} {v}" for k, v in report.versions.items())
    where = f"A fresh ONNX Runtime process (`qia3 bench BUNDLE`), {found['threads']} threads, {found['machine']}; {versions}."
    return f"## Memory and speed\n\n{where}\n\n" + table(["", "measured"], rows)


def _bytes(report: Report) -> str:
    total = report.account.total
    rows = [[PARTS.get(p, p), f"{n:,}", percent(n / total)] for p, n in report.account.parts.items() if n]
    rows.append(["total on disk", f"{total:,}", percent(1.0)])
    tied = "The embedding and the head are one tensor, stored and counted once. " if report.account.tied else ""
    bits = f"{report.account.measured_bits_per_weight:.3f} bits a weight; the grid's arithmetic gives {report.account.grid_bits_per_weight:.3f}."
    return f"## Bytes on disk\n\n{tied}{bits}\n\n" + table(["part", "bytes", "share"], rows)


def _adapters(report: Report) -> str:
    ours = report.adapters[0]
    rows = [
        [a.method, f"{a.parameters:,}", kib(a.disk_bytes), f"{a.parameters / ours.parameters:.2f}", kib(a.training_state_bytes), f"{a.operations:,}"]
        for a in report.adapters
        if ours.parameters
    ]
    head = ["adapter", "parameters", "disk", "x IA³", "training state", "operations a token"]
    note = (
        "LoRA r=1 on q and v is about as small as IA³; what it lacks is the exact fold into 4-bit scales. Training state is master copy, gradient and "
        "Adam's moments in float32; activations come on top and are not smaller for IA³. LoRA figures are computed."
    )
    return f"## What one more task costs\n\n{note}\n\n" + table(head, rows)


def _systems(report: Report) -> str:
    rows = [
        [s.name, mib(s.disk_bytes), f"{mib(s.resident_bytes)} ({s.resident_is})", kib(s.training_state_bytes), f"{s.operations_per_token:,}"]
        for s in report.systems
    ]
    head = ["system", "disk", "resident", "training state", "operations added a token"]
    note = (
        f"Weights and adapters of {max(1, len(report.tasks))} task(s), without the tokenizer. Computed resident memory is weights alone; measured is the "
        "whole process."
    )
    return f"## Whole systems\n\n{note}\n\n" + table(head, rows)


def _claim(report: Report) -> str:
    ratios = "; ".join(
        f"against {name} with LoRA r=8 the disk ratio is {ratio:.2f} ({'holds' if report.claim['holds'][name] else 'does not hold'})"
        for name, ratio in report.claim["disk_ratio"].items()
    )
    return f'## The published claim\n\n"{report.claim["claim"]}": {ratios}.'
