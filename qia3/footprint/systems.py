"""Four kinds of whole systems side by side, each serving the bundle's tasks: a float base with LoRA (in float32 and in
bfloat16), the 4-bit base with the same LoRA, the 4-bit base with unmerged IA³, and the 4-bit base with merged IA³,
where vectors of this model fold.

Disk is weights, graph and adapters, without tokenizer and reports, which all of them share, and without a graph that
learns. Memory is computed in the same way for all: a float base holds its weights once, the 4-bit base holds what its
kernels pack and what stays mapped (kernels.py), each with one adapter loaded. An encoder's heads are in all of them. It
leaves out the process, its libraries and activations, and the cache, which is given separately; the whole process was
measured for the bundle itself only. With int8 weights or 8-bit codes, the base is that of the bundle, and is called so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qia3.bundle.manifest import Manifest
from qia3.footprint.account import Account
from qia3.footprint.bits import in_int8
from qia3.footprint.kernels import bundle_kernels, kernel_here, mapped_bytes
from qia3.footprint.lora import FLOAT32_BYTES, AdapterCost, head_entries, ia3_entries, lora_cost, unfolded

CLAIM = "a 4-bit base with IA³ is about four times smaller than a full-precision LoRA-adapted model"
ABOUT_FOUR = 3.5
LORA_RANK = 8
FLOATS = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class System:
    """One way to ship the tasks.

    `weights_resident_bytes` is computed; `measured_resident_bytes` is the whole process, None if it did not run.
    """

    name: str
    model_files: int
    disk_bytes: int
    weights_resident_bytes: int
    measured_resident_bytes: int | None
    training_state_bytes: int
    operations_per_token: int


@dataclass(frozen=True)
class Claim:
    """The published claim compared with the figures: disk of a float base with LoRA divided by disk of the 4-bit base
    with unmerged IA³.
    """

    sentence: str
    holds_from: float
    disk_ratio: dict[str, float]
    holds: dict[str, bool]


def systems(manifest: Manifest, totals: Account, ia3: AdapterCost) -> list[System]:
    """In the order: float32 with LoRA, bfloat16 with LoRA, 4-bit with LoRA, 4-bit with unmerged IA³, 4-bit with merged
    IA³ (absent if it cannot be built).
    """
    tasks = max(1, len(manifest.tasks))
    lora = lora_cost((*manifest.linears, *manifest.dense), LORA_RANK, roles=None)
    kernel = bundle_kernels(manifest, totals.parts)[kernel_here(manifest)]
    resident = kernel.held_bytes + kernel.unpacked_bytes + mapped_bytes(manifest, totals.parts)
    measured = manifest.measured.peak_resident_bytes if manifest.measured else None
    side = manifest.mode == "side"

    def with_lora(name: str, disk: int, held: int) -> System:
        added = lora.operations_per_token
        disk += tasks * lora.disk_bytes + heads
        return System(
            f"{name}, LoRA r={LORA_RANK}", 1, disk, held + lora.runtime_bytes, None, lora.training_state_bytes, added
        )

    def with_ia3(name: str, files: int, vectors: int, held: int, added: int, is_bundle: bool) -> System:
        disk = files * totals.weights + vectors
        return System(name, files, disk, held, measured if is_bundle else None, ia3.training_state_bytes, added)

    base = _base(manifest, totals)
    float_bytes = {name: size * manifest.base.parameters for name, size in FLOATS.items()}
    entries = ia3_entries(manifest.sites) if side else ia3.parameters
    heads = FLOAT32_BYTES * sum(head_entries(manifest, task) for task in manifest.tasks) if side else 0
    vectors = totals.parts.get("vectors", 0) if side else tasks * ia3.disk_bytes
    left = unfolded(manifest)
    merged = (
        []
        if left is None
        else [with_ia3(f"{base}, IA³ merged", tasks, tasks * FLOAT32_BYTES * left * side, resident, left, not side)]
    )
    return [
        *(with_lora(f"{name} base", size, size) for name, size in float_bytes.items()),
        with_lora(base, totals.weights, resident),
        with_ia3(f"{base}, IA³ unmerged", 1, vectors, resident + FLOAT32_BYTES * entries, entries, side),
        *merged,
    ]


def _base(manifest: Manifest, totals: Account) -> str:
    if rounded := in_int8(manifest.linears):
        return "int8 base" if len(rounded) == len(manifest.linears) else "base in 4 bits and int8"
    return {(8,): "8-bit base", (4, 8): "base in 4 and 8 bits"}.get(totals.code_bits, "4-bit base")


def claim(found: Sequence[System]) -> Claim:
    """The claim, from the systems in the order of `systems`."""
    ratios = {name: found[i].disk_bytes / found[3].disk_bytes for i, name in enumerate(FLOATS)}
    return Claim(
        CLAIM, ABOUT_FOUR, {n: round(r, 2) for n, r in ratios.items()}, {n: r >= ABOUT_FOUR for n, r in ratios.items()}
    )
