"""Law 4: torch and ONNX Runtime are compared on real prompts, and a build that differs too much is not published.

Two comparisons. `exact`: the graph with accuracy_level 0 against torch in float32; the same function, so any difference
beyond rounding is a defect. `shipped`: the graph as the device runs it, whose int8 activations are an approximation; KL
divergence and top-1 agreement say how good. Each prompt is run as a prompt and then fed torch's own choices one at a
time, so the cache is compared too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from qia3.config import Parity
from qia3.errors import ParityError

Floats = NDArray[np.float32]
# logits [T, V] of the last position of the prompt and of each forced token after it
Forced = Callable[[Sequence[int], Sequence[int]], Floats]


@dataclass(frozen=True)
class Agreement:
    """`max_difference` over all logits, `kl` the mean KL(torch || graph) in nats, `top1` the share of positions with
    the same best token.
    """

    max_difference: float
    kl: float
    top1: float
    positions: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def compare(reference: Floats, candidate: Floats) -> Agreement:
    """Both [T, V]."""
    p, q = _log_softmax(reference), _log_softmax(candidate)
    kl = float((np.exp(p) * (p - q)).sum(-1).mean())
    top1 = float((reference.argmax(-1) == candidate.argmax(-1)).mean())
    return Agreement(float(np.abs(reference - candidate).max()), max(kl, 0.0), top1, len(reference))


def check(exact: Agreement, shipped: Agreement, limits: Parity, what: str) -> None:
    """Raises ParityError naming each figure past its limit."""
    bad = []
    if not exact.max_difference <= limits.max_difference:
        bad.append(
            f"the graph at accuracy_level 0 differs by {exact.max_difference:.2g} (limit {limits.max_difference:.2g})"
        )
    if not shipped.kl <= limits.max_kl:
        bad.append(f"the shipped graph's KL divergence is {shipped.kl:.3g} (limit {limits.max_kl:.3g})")
    if not shipped.top1 >= limits.min_top1:
        bad.append(f"the shipped graph's top-1 agreement is {shipped.top1:.1%} (limit {limits.min_top1:.1%})")
    if bad:
        raise ParityError(
            f"parity fails for {what}: {'; '.join(bad)}; nothing was published (limits: [parity] in the build file)"
        )


def _log_softmax(logits: Floats) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    result: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return result
