"""What an adapter costs, IA³ and LoRA side by side: closed formulas over the base's linear layers.

    IA³   one number an output of each key, value and feed-forward branch:  L (2 kv + d_ff)
    LoRA  r (inputs + outputs) a layer it is put on                          (Hu et al. 2021, arXiv:2106.09685)

Training state in float32: a master copy, a gradient, Adam's two moments: 16 bytes a parameter, for both. Activations kept for the backward
pass come on top and are not smaller for IA³ than for LoRA. Per token an unmerged LoRA adds 2 r (inputs + outputs) operations (a multiply and
an add each), IA³ at the side one multiply an entry, a merged adapter nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

STATE_BYTES = 16
RANKS = (1, 4, 8, 16, 64)
ATTENTION_ROLES = ("query", "value", "qkv")


@dataclass(frozen=True)
class AdapterCost:
    """One adapter of one task. `operations` are added per token when it is not merged."""

    method: str
    parameters: int
    disk_bytes: int
    training_state_bytes: int
    operations: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def lora_parameters(linears: Sequence[Mapping[str, Any]], rank: int, attention_only: bool) -> int:
    """On the query and value projections (a fused q|k|v layer counts whole), or on every linear layer but the head."""
    chosen = [x for x in linears if (x["role"] in ATTENTION_ROLES if attention_only else x["role"] != "head")]
    return sum(rank * (x["inputs"] + x["outputs"]) for x in chosen)


def ia3_parameters(vectors: Sequence[Mapping[str, Any]]) -> int:
    """Entries that train; a fused layer's query or gate entries do not."""
    return sum(len(v["rows"]) if "rows" in v else v["size"] for v in vectors if v["role"] != "query")


def lora_cost(linears: Sequence[Mapping[str, Any]], rank: int, attention_only: bool) -> AdapterCost:
    """Computed, float32 on disk."""
    count = lora_parameters(linears, rank, attention_only)
    where = "q, v" if attention_only else "all linear"
    return AdapterCost(f"LoRA r={rank} on {where}", count, 4 * count, STATE_BYTES * count, 2 * count)


def ia3_cost(parameters: int, disk_bytes: int) -> AdapterCost:
    """`disk_bytes` is the .onnx_adapter file as it is."""
    return AdapterCost("IA³", parameters, disk_bytes, STATE_BYTES * parameters, parameters)


def adapter_costs(linears: Sequence[Mapping[str, Any]], parameters: int, disk_bytes: int) -> list[AdapterCost]:
    """IA³ first, then LoRA by rank, on q and v and on every linear layer."""
    return [ia3_cost(parameters, disk_bytes), *(lora_cost(linears, rank, where) for where in (True, False) for rank in RANKS)]
