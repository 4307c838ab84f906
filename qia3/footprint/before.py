"""What a model will cost before it is built: one object, computed from sizes alone (shapes.py).

Weights are arithmetic (shapes.py, bits.py), and so are memory (kernels.py), the cache and adapters (lora.py). What a
training step keeps is counted elsewhere (qia3.ia3.activations) and passed in. Each table has its rule:

    disk          the weights in a form; graph, tokenizer and reports come on top (a build reports them to the byte)
    cache         2 layers kv_heads head_size 4 bytes (int8: 1) per position and row, twice for an encoder-decoder, whose decoder also
                  has the encoder's keys and values
    training      weights in their form, 16 bytes of state per trained parameter (lora.py), and what a step keeps, in
                  bfloat16. Full fine-tuning trains the float32 weights themselves, with 12 bytes of state besides. QIA³
                  also holds dequantised weights if they fit in half the free memory; that is optional and not counted.
    N tasks       disk. A merged model is one file per task; LoRA merges into float weights, which are then quantised again
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qia3.bundle.manifest import Architecture
from qia3.footprint.learning import Learner, Learning, learners, learning
from qia3.footprint.lora import (
    FLOAT32_BYTES,
    STATE_BYTES,
    AdapterCost,
    adapter_costs,
    ia3_cost,
    ia3_entries,
    ia3_parameters,
)
from qia3.footprint.shapes import Shapes
from qia3.footprint.systems import ABOUT_FOUR, CLAIM
from qia3.footprint.verdict import Need, Verdict, needs
from qia3.footprint.weights import FORMS, USUAL, Weights, cache_bytes, mixed, takes_bits, weights_of

TASKS = (1, 10, 100, 1000)
PREFIX = 20  # virtual tokens
TEXTS, TOKENS = 8, 128  # texts, and tokens per text, of a training step
LORA = "LoRA r=8 on all linear"


@dataclass(frozen=True)
class Cache:
    """Keys and values in float32."""

    context: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class Training:
    """Minimum memory of one step: `kept_bytes` is what autograd saves for `rows` texts of `length` tokens."""

    form: str
    method: str
    parameters: int
    weights_bytes: int
    state_bytes: int
    kept_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.state_bytes + self.kept_bytes


@dataclass(frozen=True)
class Fleet:
    """Disk for a number of tasks on one base. `ia3_merged_bytes` is None if a vector cannot be folded."""

    tasks: int
    lora_kept_bytes: int
    lora_merged_bfloat16_bytes: int
    lora_merged_int4_bytes: int
    ia3_side_bytes: int
    ia3_merged_bytes: int | None

    @property
    def constants(self) -> int | None:
        """Entries that one merged model multiplies by, since they do not fold; None if it cannot be merged."""
        if self.ia3_merged_bytes is None:
            return None
        return (self.ia3_merged_bytes - self.lora_merged_int4_bytes) // (FLOAT32_BYTES * self.tasks)


@dataclass(frozen=True)
class Claim:
    """A published claim, what it predicts for this model, the actual figure, and why they differ."""

    sentence: str
    claimed: str
    here: str
    holds: bool
    why: str


@dataclass(frozen=True)
class Before:
    """All figures of the report."""

    reference: str
    model_type: str
    architecture: Architecture
    parameters: int
    parts: dict[str, int]
    vectors: int
    weights: list[Weights]
    caches: list[Cache]
    needs: list[Need]
    adapters: list[AdapterCost]
    training: list[Training]
    training_rows: int
    training_length: int
    learning: list[Learning]
    learners: list[Learner]
    fleets: list[Fleet]
    claims: list[Claim]
    verdicts: list[Verdict]


def before(
    shapes: Shapes,
    contexts: Sequence[int],
    rows: int,
    kept: Mapping[str, int],
    training: tuple[int, int],
    verdicts: Sequence[Verdict] = (),
) -> Before:
    """`contexts` in tokens, `rows` per batch; `kept`: bytes that a step keeps, by method ("ia3", "lora", "full"), for
    `training` = (rows, length).
    """
    ia3 = ia3_of(shapes)
    weights = [weights_of(shapes, form) for form in FORMS]
    if takes_bits(shapes):
        weights.append(mixed(shapes))
    linears, dense = USUAL.layers(shapes)
    costs = [*adapter_costs((*linears, *dense), ia3), prefix_cost(shapes)]
    on_device = learning(shapes, costs[0], next(cost for cost in costs if cost.method == LORA), kept)
    return Before(
        reference=shapes.reference,
        model_type=shapes.model_type,
        architecture=shapes.architecture,
        parameters=shapes.parameters,
        parts=shapes.parts(),
        vectors=len(shapes.sites),
        weights=weights,
        caches=[Cache(n, rows, size) for n in contexts if (size := rows * cache_bytes(shapes.architecture, n))],
        needs=needs(shapes, contexts, rows),
        adapters=costs,
        training=training_costs(shapes, weights, costs, kept),
        training_rows=training[0],
        training_length=training[1],
        learning=on_device,
        learners=learners(on_device, verdicts),
        fleets=[fleet(count, weights, costs, shapes.constants) for count in TASKS],
        claims=claims(shapes, weights, costs),
        verdicts=list(verdicts),
    )


def ia3_of(shapes: Shapes) -> AdapterCost:
    """The computed cost of IA³, without the few bytes of a file header."""
    parameters, entries = ia3_parameters(shapes.sites), ia3_entries(shapes.sites)
    return ia3_cost(parameters, entries, FLOAT32_BYTES * entries)


def prefix_cost(shapes: Shapes) -> AdapterCost:
    """Prefix tuning (Li and Liang 2021): PREFIX positions' keys and values in each layer, which take room in the cache."""
    shape = shapes.architecture
    count = 2 * PREFIX * shape.kv_heads * shape.head_size * (shape.layers + (shape.encoder_layers or 0))
    return AdapterCost(
        f"prefix of {PREFIX}", count, FLOAT32_BYTES * count, FLOAT32_BYTES * count, STATE_BYTES * count, 2 * count
    )


def training_costs(
    shapes: Shapes, weights: Sequence[Weights], costs: Sequence[AdapterCost], kept: Mapping[str, int]
) -> list[Training]:
    """Full fine-tuning in float32; LoRA and IA³ on every form of the weights."""
    disk = {one.form: one.disk_bytes for one in weights}
    ia3, lora = costs[0], next(cost for cost in costs if cost.method == LORA)
    full = Training(
        "float32", "full fine-tuning", shapes.parameters, disk["float32"], 12 * shapes.parameters, kept["full"]
    )
    return [
        full,
        *(
            Training(form, cost.method, cost.parameters, size, cost.training_state_bytes, kept[name])
            for form, size in disk.items()
            for name, cost in (("lora", lora), ("ia3", ia3))
        ),
    ]


def fleet(count: int, weights: Sequence[Weights], costs: Sequence[AdapterCost], constants: int | None) -> Fleet:
    disk = {one.form: one.disk_bytes for one in weights}
    ia3, lora = costs[0], next(cost for cost in costs if cost.method == LORA)
    base = disk[USUAL.label]
    return Fleet(
        tasks=count,
        lora_kept_bytes=base + count * lora.disk_bytes,
        lora_merged_bfloat16_bytes=count * disk["bfloat16"],
        lora_merged_int4_bytes=count * base,
        ia3_side_bytes=base + count * ia3.disk_bytes,
        ia3_merged_bytes=None if constants is None else count * (base + FLOAT32_BYTES * constants),
    )


def claims(shapes: Shapes, weights: Sequence[Weights], costs: Sequence[AdapterCost]) -> list[Claim]:
    """The two claims repeated most often, compared with this model."""
    return [_three_per_layer(shapes, costs[0]), *_four_times(weights, costs)]


def _three_per_layer(shapes: Shapes, ia3: AdapterCost) -> Claim:
    shape = shapes.architecture
    layers = shape.layers + (shape.encoder_layers or 0)
    claimed = 3 * layers * shape.hidden_size
    inner = sorted({site.parameters for site in shapes.sites if site.role == "feed_forward"})
    keys = shape.kv_heads * shape.head_size
    reasons = []
    if keys != shape.hidden_size:
        reasons.append(f"keys and values have {keys:,} entries, not {shape.hidden_size:,}")
    if not inner:  # every feed-forward is a mixture
        reasons.append("experts have no vectors")
    elif inner != [shape.hidden_size]:
        reasons.append(f"the feed-forward's inner activation has {' or '.join(f'{n:,}' for n in inner)}")
    if shape.encoder_layers is not None:
        reasons.append("a decoder layer attends twice, to itself and to the encoder")
    return Claim(
        "IA³ trains 3 x layers x d_model parameters",
        f"{claimed:,}",
        f"{ia3.parameters:,}",
        claimed == ia3.parameters,
        "; ".join(reasons),
    )


def _four_times(weights: Sequence[Weights], costs: Sequence[AdapterCost]) -> list[Claim]:
    disk = {one.form: one.disk_bytes for one in weights}
    ia3, lora = costs[0], next(cost for cost in costs if cost.method == LORA)
    ours = disk[USUAL.label] + ia3.disk_bytes
    bits = next(one for one in weights if one.form == USUAL.label).bits_per_number
    found = []
    for full in ("float32", "bfloat16"):
        ratio = (disk[full] + lora.disk_bytes) / ours
        found.append(
            Claim(
                f"{CLAIM} ({full})",
                "4",
                f"{ratio:.2f}",
                ratio >= ABOUT_FOUR,
                f"scales, zero points and what stays in float make it {bits:.2f} bits per number",
            )
        )
    return found
