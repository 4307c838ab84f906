"""What an adapter costs, for IA³ and LoRA: closed formulas over the base's linear layers.

    IA³   one number per output of each key, value and feed-forward branch:  L (2 kv + d_ff)      (Liu et al. 2022, arXiv:2205.05638)
    LoRA  r (inputs + outputs) per layer that it is on                       (Hu et al. 2021, arXiv:2106.09685)

Llama-3.2-3B (28 layers, hidden 3072, kv 1024, d_ff 8192): IA³ 28 (2048 + 8192) = 286,720; LoRA r=32 on q and v 28 * 32
(6144 + 4096) = 9,175,040. Both are PEFT's own counts.

Training state in float32: a master copy, a gradient and Adam's two moments, 16 bytes per parameter, for both methods
(QIA³'s forward pass uses a bfloat16 rounding of the master copy). Activations kept for the backward pass come on top
and are not smaller for IA³ than for LoRA. Per token an unmerged LoRA adds 2 r (inputs + outputs) operations (multiplies
and adds), unmerged IA³ one multiply per entry of its vectors, and a merged adapter nothing, except for vectors that
do not fold (`unfolded`). In an encoder-decoder that is for one token of the prompt and one of the answer together: the
encoder's layers, and cross-attention's keys and values, run for the first, the others for the second.

mT0-large (24 layers per stack, hidden 1024, 16 heads of 64, d_ff 2816): 72 attentions, 48 feed-forwards; IA³ 72 * 2048
+ 48 * 2816 = 282,624; LoRA r=8 on q and v 72 * 2 * 8 (1024 + 1024) = 2,359,296. Both figures are in PEFT's
documentation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from qia3.bundle.manifest import Architecture, Dense, Layer, Manifest
from qia3.bundle.sites import Site

STATE_BYTES = 16
FLOAT32_BYTES = 4
CONSTANT = ".vector"  # how the names of such constants end
RANKS = (1, 4, 8, 16, 64)
Linear = Layer | Dense
QUERY_VALUE = ("query", "value", "qkv")  # if q, k and v are fused, LoRA applies to the whole layer


@dataclass(frozen=True)
class AdapterCost:
    """One adapter of one task.

    `operations_per_token` are added while it is not merged; `runtime_bytes` are its float32 values, loaded.
    """

    method: str
    parameters: int
    disk_bytes: int
    runtime_bytes: int
    training_state_bytes: int
    operations_per_token: int


def lora_parameters(linears: Sequence[Linear], rank: int, roles: Collection[str] | None = None) -> int:
    """Parameters of LoRA on the layers of these roles; None: every linear layer except the head and experts."""
    chosen = [x for x in linears if (x.role not in ("head", "experts") if roles is None else x.role in roles)]
    return sum(rank * (x.inputs + x.outputs) for x in chosen)


def ia3_parameters(sites: Sequence[Site]) -> int:
    """Trainable entries: `rows` of a fused layer if given; query vectors are excluded, since only other tools train
    them.
    """
    return sum(site.parameters for site in sites if site.role != "query")


def ia3_entries(sites: Sequence[Site]) -> int:
    """Entries that are multiplied at run time, including those fixed at one."""
    return sum(site.size for site in sites)


def unfolded(manifest: Manifest) -> int | None:
    """Entries that a merged model still multiplies by: those of vectors between an activation function and a layer on a
    grid. Only an encoder's graph keeps them as constants (`Multiplied`, qia3/ia3/vectors.py); None if there are such
    entries and the model generates, so that it cannot be merged.
    """
    if manifest.mode == "merged":
        return sum(tensor.bytes for tensor in manifest.tensors if tensor.name.endswith(CONSTANT)) // FLOAT32_BYTES
    return unfolding(manifest.sites, {layer.name for layer in manifest.dense}, manifest.architecture)


def unfolding(sites: Sequence[Site], floats: Collection[str], shape: Architecture) -> int | None:
    """The same for vectors on these sites, before they are merged; `floats` are the modules that stay in float."""
    stuck = sum(s.size for s in sites if s.placement == "input" and s.module not in floats)
    return None if stuck and shape.pooling is None else stuck


def head_entries(manifest: Manifest, task: str) -> int:
    """Numbers of a task's head, which an encoder trains with its vectors; 0 for others, and for a task that is not in
    the bundle.
    """
    if manifest.architecture.pooling is None or task not in manifest.tasks:
        return 0
    return len(manifest.tasks[task].choices or ()) * (manifest.architecture.hidden_size + 1)


def lora_cost(linears: Sequence[Linear], rank: int, roles: Collection[str] | None) -> AdapterCost:
    """The computed cost, float32 on disk and in memory, without the few bytes of a file header."""
    count = lora_parameters(linears, rank, roles)
    where = "all linear" if roles is None else "q, v"
    return AdapterCost(
        f"LoRA r={rank} on {where}", count, FLOAT32_BYTES * count, FLOAT32_BYTES * count, STATE_BYTES * count, 2 * count
    )


def ia3_cost(parameters: int, entries: int, disk_bytes: int) -> AdapterCost:
    """`disk_bytes` is the size of the largest .onnx_adapter file; `entries` of merged vectors are those that did not fold."""
    return AdapterCost("IA³", parameters, disk_bytes, FLOAT32_BYTES * entries, STATE_BYTES * parameters, entries)


def adapter_costs(linears: Sequence[Linear], ia3: AdapterCost) -> list[AdapterCost]:
    """IA³ first, then LoRA by rank, on q and v and on every linear layer."""
    return [ia3, *(lora_cost(linears, rank, roles) for roles in (QUERY_VALUE, None) for rank in RANKS)]
