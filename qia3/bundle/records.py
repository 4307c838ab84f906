"""What a build measured about a bundle: training, accuracy, agreement with torch, time and memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated

from qia3.bundle.checked import Part, Rule
from qia3.bundle.task import TAGS

MOST = 2**53  # whole numbers up to here are the same in JavaScript
# what a shipped graph rounds
INT8_ACTIVATIONS, INT8_PRODUCTS, INT8_PROMPTS = "int8 activations", "int8 products", "int8 products for prompts"
INT8_CACHE, FLOATS = "the int8 cache", "the order of float operations"
Count = Annotated[int, Rule(lambda n: 0 <= n <= MOST, f"a whole number from 0 to {MOST:,}")]
Size = Annotated[int, Rule(lambda n: 1 <= n <= MOST, f"a whole number from 1 to {MOST:,}")]
Amount = Annotated[float, Rule(lambda x: 0 <= x <= 1e15, "a number from 0 to 1e15")]
Share = Annotated[float, Rule(lambda x: 0 <= x <= 1, "a number from 0 to 1")]


@dataclass(frozen=True)
class Record(Part):
    """How a training run went and what it cost.

    `state_bytes`: float32 master copy, gradients and optimiser moments of the vectors.

    `final_loss` is the mean over the last steps. With validation, the vectors are those of `best_step`, whose loss is
    `validation_loss`.
    """

    parameters: Count
    steps: Count
    seconds: Amount
    final_loss: float
    examples: Count
    compute: str
    state_bytes: Mapping[str, Count]
    packed: bool
    best_step: Count | None
    validation_loss: float | None


@dataclass(frozen=True)
class Agreement(Part):
    """Two sets of logits compared: `max_difference` over all of them, `kl` the mean KL divergence in nats, `top1` the
    fraction of positions with the same most likely token.
    """

    max_difference: Amount
    kl: Amount
    top1: Share
    positions: Size


@dataclass(frozen=True)
class Parity(Part):
    """torch compared with the graph at accuracy_level 0 and with the graph as shipped; with an int8 cache, also with
    the same graph and a float32 cache; with int8 prompts, also with the same graph and prompts run like steps; with
    int8 products in place of 4-bit ones, also with the graph that has those.
    """

    exact: Agreement
    shipped: Agreement
    float_cache: Agreement | None = None
    prompts_like_steps: Agreement | None = None
    four_bit_products: Agreement | None = None

    def approximations(self, accuracy_level: int) -> list[str]:
        """What the shipped graph, at this level, rounds and the exact one does not."""
        return approximations(accuracy_level, [one.name for one in fields(self) if getattr(self, one.name) is not None])


def approximations(accuracy_level: int, compared: Collection[str]) -> list[str]:
    """Parity.approximations, by which of Parity's comparisons were made."""
    found = {
        INT8_ACTIVATIONS: accuracy_level == 4 and "four_bit_products" not in compared,
        INT8_PRODUCTS: "four_bit_products" in compared,
        INT8_PROMPTS: "prompts_like_steps" in compared,
        INT8_CACHE: "float_cache" in compared,
    }
    return [name for name, rounds in found.items() if rounds]


def change(approximations: Sequence[str]) -> str:
    """Subject and verb of a sentence about their effect; without any it is the order of float operations."""
    *others, last = approximations or [FLOATS]
    verb = "changes" if not others and last in (INT8_CACHE, FLOATS) else "change"
    return f"{', '.join(others)}{' and ' if others else ''}{last} {verb}"


@dataclass(frozen=True)
class Drift(Part):
    """What recoding an NF4 base changed: root mean square of the difference over that of the weights, and `logits`
    before against after, by adapter ("none": the base alone).
    """

    format: str
    block_size: Size
    layers: Count
    relative_rms: Amount
    worst_relative_rms: Amount
    worst_layer: str
    logits: Mapping[str, Agreement]


@dataclass(frozen=True)
class Rounding(Part):
    """What rounding zero points to whole numbers changed in codes that came with other offsets (MLX): `layers` keep
    their codes, and `anew` of them have blocks with other codes.
    """

    layers: Count
    anew: Count
    relative_rms: Amount
    worst_relative_rms: Amount
    worst_layer: str


@dataclass(frozen=True)
class Label(Part):
    """Number of examples of one label, and how many were right."""

    n: Count
    right: Count


@dataclass(frozen=True, kw_only=True)
class Score(Part):
    """`f1` (0 to 1; per entity if words are labelled) and `chrf` (0 to 100) are None for classification, `labels` is
    None if the task has no fixed choices. `left_out`: examples that could not be asked, with the lines of the first
    few.
    """

    adapter: str
    task: str
    kind: str
    n: Count
    accuracy: Share
    f1: Share | None = None
    chrf: Amount | None = None
    labels: Mapping[str, Label] | None = None
    seconds: Amount
    examples_per_second: Amount
    left_out: Count | None = None
    left_out_lines: tuple[Count, ...] | None = None

    @property
    def words(self) -> int | None:
        """How many words were labelled; None where whole texts are."""
        return sum(label.n for label in (self.labels or {}).values()) if self.kind == TAGS else None


@dataclass(frozen=True)
class HeldOut(Part):
    """Scores on `n` held-out examples, without the adapter and with it; a merged bundle has no scores without."""

    n: Count
    after: Score
    before: Score | None = None


@dataclass(frozen=True)
class Measured(Part):
    """Measured in a fresh process. Memory is None if the system does not report it, decoding is None for an encoder
    alone.
    """

    load_seconds: Amount
    peak_anonymous_bytes: Count | None
    peak_file_bytes: Count | None
    peak_resident_bytes: Count | None
    prompt_tokens_per_second: Amount
    decode_tokens_per_second: Amount | None
    prompt_tokens: Count
    new_tokens: Count
    threads: Count
    machine: str
