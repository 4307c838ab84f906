r"""AdamW on the vectors' offsets from one, as `qia3 train` has it from torch and transformers (numpy alone).

With g the gradient of a step, scaled down so that the norm over all vectors is at most 1 (torch's clip_grad_norm_):

    m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2        b1 = 0.9, b2 = 0.999
    d <- d - r (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + 1e-8)       at step t = 1, 2, ...; no decay

(Kingma and Ba 2015, arXiv:1412.6980; with decay it is Loshchilov and Hutter 2019, arXiv:1711.05101). The rate r rises in
a straight line from 0 over `warmup` steps, and falls in one to 0 at the last step, as transformers' linear schedule does.

d is float32; what a vector shows to the model is l = 1 + bfloat16(d) (qia3.ia3.vectors says why).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Offsets = dict[str, Floats]
FIRST, SECOND, EPSILON, LONGEST, TINY = 0.9, 0.999, 1e-8, 1.0, 1e-6


@dataclass
class AdamW:
    """`offsets` float32 [parameters] by name, changed in place; `first` and `second` are their moments."""

    offsets: Offsets
    first: Offsets
    second: Offsets
    step: int = 0

    @classmethod
    def of(cls, offsets: Offsets) -> AdamW:
        """At the start of a run."""
        first, second = ({n: np.zeros_like(d) for n, d in offsets.items()} for _ in range(2))
        return cls(offsets, first, second)

    def update(self, gradients: Mapping[str, Floats], rate: float) -> None:
        """One step with gradients [parameters] by name."""
        self.step += 1
        length = np.sqrt(sum(float(np.square(g, dtype=np.float64).sum()) for g in gradients.values()))
        scale = np.float32(min(1.0, LONGEST / (length + TINY)))
        size, root = rate / (1 - FIRST**self.step), np.float32(np.sqrt(1 - SECOND**self.step))
        for name, offset in self.offsets.items():
            g, m, v = gradients[name] * scale, self.first[name], self.second[name]
            m += np.float32(1 - FIRST) * (g - m)
            v *= np.float32(SECOND)
            v += np.float32(1 - SECOND) * g * g
            offset -= np.float32(size) * m / (np.sqrt(v) / root + np.float32(EPSILON))


def rate_at(step: int, steps: int, warmup: int, highest: float) -> float:
    """The learning rate of step `step`, counted from 0, of `steps`."""
    if step < warmup:
        return highest * step / warmup
    return highest * max(0.0, (steps - step) / max(1, steps - warmup))


def bfloat16(x: Floats) -> Floats:
    """To the nearest of its numbers, ties to even, in float32."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)
