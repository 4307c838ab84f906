"""Law 4: torch and ONNX Runtime are compared on real prompts, and a graph that differs from the model is not published.

There are two comparisons. `exact`: the graph with accuracy_level 0 against torch in float32, the same function, so any
difference beyond rounding is a bug, and the build is refused. `shipped`: the graph as the device runs it, whose int8
activations are an approximation; KL divergence and top-1 agreement say how good it is, which is a measurement. Beyond
the build file's limits there is a warning. It is refused if it can no longer be called an approximation (BROKEN). Each
prompt is run as a prompt and then fed torch's own choices one at a time, so the cache is compared, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from qia3.bundle.records import INT8_ACTIVATIONS, INT8_CACHE, INT8_PRODUCTS, INT8_PROMPTS
from qia3.config import Parity
from qia3.errors import ParityError

Floats = NDArray[np.float32]
# KL divergence over `known`, past which a graph is broken. Measured with int8 activations: SmolLM2-135M 0.0001 to
# 0.0015,
# tiny random models of five families 0.0001 to 0.0003, random llamas with uneven channels 0.009 to 0.032. With every
# scale
# doubled, or in another order, or every zero point off by one: SmolLM2 2.4 to 12, the tiny ones 0.3 to 6 (but a GPT-2's
# zero points 0.013). A fault in one layer is anything from 0.0004 (in the middle) to 0.6 (the first or the last), so
# that
# it may not show here; the exact graph, on the same bytes, has it or not
BROKEN = 0.05
UNSEEN = 1e-6  # nats, for a model that knows nothing
REMEDIES = {
    INT8_ACTIVATIONS: (
        'target = "ort-exact" in [export] computes without int8 activations (slower) and needs no new training; '
        "smaller blocks (block_size in [base]) are more accurate but need new training"
    ),
    INT8_PRODUCTS: (
        'without prompts = "int8", or with a target whose products are in 4 bits, [export] makes no int8 products, '
        "which needs no new training"
    ),
    INT8_PROMPTS: (
        'without prompts = "int8" in [export] prompts run through 4-bit products (slower), which needs no new training'
    ),
    INT8_CACHE: ('without cache = "int8" in [export] the cache is in float32 (larger), which needs no new training'),
}
ROUNDED = "nothing is rounded in this graph that is not in the exact one: allow more in [parity]"
# logits [T, V] of the last position of the prompt and of each forced token after it
Forced = Callable[[Sequence[int], Sequence[int]], Floats]


@dataclass(frozen=True)
class Agreement:
    """`max_difference` over all logits, `kl` the mean KL(torch || graph) in nats, `top1` the share of positions with
    the same most likely token. `known`: the mean KL(torch || uniform), the loss of a graph that knows nothing.
    """

    max_difference: float
    kl: float
    top1: float
    positions: int
    known: float

    def to_dict(self) -> dict[str, float]:
        """The figures for the manifest."""
        return {key: value for key, value in asdict(self).items() if key != "known"}


def compare(reference: Floats, candidate: Floats) -> Agreement:
    """Compares two sets of logits [T, V]."""
    p, q = _log_softmax(reference), _log_softmax(candidate)
    kl = float((np.exp(p) * (p - q)).sum(-1).mean())
    top1 = float((reference.argmax(-1) == candidate.argmax(-1)).mean())
    known = float((np.exp(p) * p).sum(-1).mean() + np.log(p.shape[-1]))
    return Agreement(float(np.abs(reference - candidate).max()), max(kl, 0.0), top1, len(reference), known)


def remedy(approximations: Sequence[str]) -> str:
    """What to change in the build file if these cost too much."""
    return "; ".join(REMEDIES[name] for name in approximations) or ROUNDED


def check(
    exact: Agreement, shipped: Agreement, limits: Parity, what: str, kept: str, approximations: Sequence[str]
) -> list[str]:
    """Warnings about how `shipped` differs, beyond [parity]'s limits.

    `what` names what was compared, `kept` where the training is kept, and `approximations` what `shipped` rounds.
    Raises ParityError if the graph is not the model.
    """
    if not exact.max_difference <= limits.max_difference:
        raise ParityError(
            f"parity fails for {what}: the graph at accuracy_level 0 differs from torch by {exact.max_difference:.2g} "
            f"(max_difference in [parity] allows {limits.max_difference:.2g}), but should compute the same: "
            "this is a bug of the export; "
            f"nothing was published, the training is kept in {kept}, and `qia3 export` continues from there"
        )
    if not shipped.kl <= max(BROKEN * shipped.known, UNSEEN):
        raise ParityError(
            f"parity fails for {what}: as shipped, the graph is no longer the model: KL divergence "
            f"{shipped.kl:.3g} nats, where "
            f"a uniform guess has {shipped.known:.3g} (the limit is {BROKEN:.0%} of that), same top token "
            f"{shipped.top1:.1%}; "
            f"nothing was published, the training is kept in {kept}, and `qia3 export` continues from there: "
            f"{remedy(approximations)}"
        )
    return limits.remarks(shipped.kl, shipped.top1)


def _log_softmax(logits: Floats) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    result: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return result
