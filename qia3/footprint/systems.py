"""Four whole systems side by side, each serving the bundle's tasks: float base with LoRA, 4-bit base with LoRA, 4-bit base with IA³ at the
side, 4-bit base merged. Disk is weights and adapters, without tokenizer and reports, which all of them share.

Resident memory is measured for the bundle itself and computed for the others: a float base holds its weights once (4 or 2 bytes each); on x64
at accuracy_level 4 ONNX Runtime holds, per weight of a block of b, 4 bits of codes, 32/b of packed scales, 32/b of block sums and 32/b of scales it
keeps: 4 + 96/b bits (7 at block 32). Computed figures leave out the process, its libraries and activations, so they are not to be compared with
measured ones to the percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qia3.footprint.account import Account, quantised_weights
from qia3.footprint.lora import STATE_BYTES, lora_parameters

CLAIM = "a 4-bit base with IA³ is about four times smaller than a full-precision LoRA-adapted model"
LORA_RANK = 8


@dataclass(frozen=True)
class System:
    """One way to ship the tasks. `resident_bytes` is None where nothing was measured for it."""

    name: str
    disk_bytes: int
    resident_bytes: int | None
    resident_is: str
    training_state_bytes: int
    operations_per_token: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def systems(manifest: Mapping[str, Any], totals: Account, ia3_parameters: int) -> list[System]:
    """In the order: float32 with LoRA, bfloat16 with LoRA, 4-bit with LoRA, 4-bit with IA³ at the side, 4-bit merged."""
    parameters, tasks = manifest["base"]["parameters"], max(1, len(manifest["tasks"]))
    lora = lora_parameters(manifest["linears"], LORA_RANK, attention_only=False)
    measured = (manifest.get("measured") or {}).get("peak_resident_bytes")
    four_bit, held = totals.weights, _held(manifest, totals)
    side = manifest["mode"] == "side"

    def with_lora(name: str, disk: int, resident: int) -> System:
        return System(f"{name}, LoRA r={LORA_RANK}", disk + 4 * lora * tasks, resident + 4 * lora, "computed", STATE_BYTES * lora, 2 * lora)

    def with_ia3(name: str, disk: int, is_bundle: bool, operations: int) -> System:
        resident, kind = (measured, "measured") if is_bundle and measured else (held, "computed")
        return System(name, disk, resident, kind, STATE_BYTES * ia3_parameters, operations)

    vector_bytes = totals.parts.get("vectors", 4 * ia3_parameters * tasks)
    return [
        with_lora("float32 base", 4 * parameters, 4 * parameters),
        with_lora("bfloat16 base", 2 * parameters, 2 * parameters),
        with_lora("4-bit base", four_bit, held),
        with_ia3("4-bit base, IA³ at the side", four_bit + vector_bytes, side, ia3_parameters),
        with_ia3("4-bit base, IA³ merged (one file a task)", four_bit * (tasks if side else 1), not side, 0),
    ]


def claim(found: list[System]) -> dict[str, Any]:
    """The published claim, with the ratios as they are: disk of the float systems over disk of the 4-bit one with IA³ at the side."""
    by_name = {s.name.split(",")[0]: s.disk_bytes for s in found[:2]}
    ours = found[3].disk_bytes
    ratios = {name.removesuffix(" base"): round(size / ours, 2) for name, size in by_name.items()}
    return {"claim": CLAIM, "disk_ratio": ratios, "holds": {name: 3.5 <= r for name, r in ratios.items()}}


def kv_cache_bytes(manifest: Mapping[str, Any], positions: int) -> int:
    """Keys and values in float32 for one row of `positions` tokens."""
    shape = manifest["architecture"]
    return int(2 * shape["layers"] * shape["kv_heads"] * shape["head_size"] * 4 * positions)


def _held(manifest: Mapping[str, Any], totals: Account) -> int:
    """Bytes that ONNX Runtime holds for the weights on x64 at accuracy_level 4; an embedding that is looked up stays mapped besides."""
    block = manifest["base"]["grid"]["block_size"]
    packed = quantised_weights(manifest) * (4 + 96 / block) / 8
    table = sum(n for part, n in totals.parts.items() if part.startswith("embedding_"))
    rest = sum(totals.parts.get(part, 0) for part in ("norms_and_biases", "rotary", "other"))
    return int(packed + table + rest)
