r"""Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) on vectors near one, as T-Few uses it: with `scale_parameter`,
a given learning rate, no first moment and no decay.

    v_t = b_t v_{t-1} + (1 - b_t) (g_t² + 1e-30)        b_t = 1 - t^-0.8
    u_t = g_t / sqrt(v_t)                               then u_t /= max(1, RMS(u_t))
    l_t = l_{t-1} - lr max(1e-3, RMS(l_{t-1})) u_t      RMS(x) = sqrt(mean x²)

The scale in the last line is the size of what is adapted: the vector l itself, which is near one. The optimiser here
holds the offset delta = l - 1 in float32 (qia3.ia3.vectors), which starts at zero: stock Adafactor would scale by
max(1e-3, RMS(0)) and move a thousand times too slowly. So the RMS is that of 1 + delta, and the step is added to delta,
where it does not vanish as it would next to a bfloat16 one.

The paper keeps v as row and column means of a matrix. A vector has no second axis, so v is kept in full: 4 bytes per
entry, half of what Adam keeps. (T-Few's vectors are matrices with one column, for which row and column means give the
same v.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

DECAY, SMALLEST_SCALE, LARGEST_UPDATE, TINY = -0.8, 1e-3, 1.0, 1e-30


class Adafactor(torch.optim.Optimizer):
    """Optimises offsets from one, float32 [d] each."""

    def __init__(self, offsets: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(offsets, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update of every offset that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for offset in group["params"]:
                if offset.grad is not None:
                    self._update(offset, offset.grad, group["lr"])
        return loss

    def _update(self, offset: nn.Parameter, gradient: Tensor, rate: float) -> None:
        state = self.state[offset]
        if not state:
            state["step"], state["square"] = 0, torch.zeros_like(offset)
        state["step"] += 1
        keep = 1 - state["step"] ** DECAY
        state["square"].mul_(keep).add_(gradient**2 + TINY, alpha=1 - keep)
        update = gradient * state["square"].rsqrt()
        update /= (_rms(update) / LARGEST_UPDATE).clamp_min(1)
        offset.sub_(rate * _rms(1 + offset).clamp_min(SMALLEST_SCALE) * update)


def _rms(x: Tensor) -> Tensor:
    """Root of the mean square."""
    return x.square().mean().sqrt()
