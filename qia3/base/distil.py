"""Trains the scales of a quantised base so that its answers come closer to the float model's (distillation).

Calibration rounds one layer after the other, and each for the errors of its own outputs. Afterwards codes q and zero
points z are fixed, and what is left to choose are the scales, one number per block:

    W[n, i] = (q[n, i] - z[n, b]) s[n, b]        s = s0 (1 + d), d = 0 at first
    minimise  KL(float model || quantised model) per position, over all d of all 4-bit layers at once

on windows that the float model wrote, with Adam on d: a rate is relative to each scale. The bytes of a base do not
change, only the values of its scales. The gradient of a scale is that of its block's weights, summed:

    dL/ds[n, b] = sum over i in b of dL/dW[n, i] (q[n, i] - z[n, b])

During training a GridWeight holds its dequantised weight in the type of the products, and that tensor collects dL/dW.
A table of embeddings that is tied to the head gets both gradients; one that is not, only that of its look-ups. 8-bit
layers, experts, norms and biases stay as they are. Some windows are set aside: if the divergence on them did not fall,
the scales stay what they were.

Source: PEQA (arXiv:2305.14152), which trains scales on a task; EfficientQAT's second phase (arXiv:2407.11062), which
trains them end to end on a text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qia3.base.modules import GridEmbedding
from qia3.base.processor import has_fast
from qia3.base.weights import AT_ONCE, GridWeight, Int4Weight

RATE = 3e-3  # of Adam, relative to a scale; falls to zero along a cosine
PASSES = 2  # over the windows, each in another order
WARM = 2  # steps of a rising rate
ASIDE = 4  # windows that are not trained on
LOGITS = 1 << 25  # entries of the logits that a part of a batch may have

Track = Callable[[list[Tensor], str], Iterable[Tensor]]


@dataclass(frozen=True)
class Tuned:
    """KL divergence from the float model, in nats per position, on windows that were not trained on."""

    before: float
    after: float


class Scales:
    """The scales of one 4-bit weight while they train: `change` [N, B] is d."""

    def __init__(self, store: Int4Weight, dtype: torch.dtype) -> None:
        self.store, self.dtype, self.first = store, dtype, store.scales.clone()
        self.change = torch.zeros_like(self.first).requires_grad_()
        self.put()

    @torch.no_grad()
    def put(self) -> None:
        """Dequantises the weight with the scales as they are now."""
        self.store.scales = self.first * (1 + self.change.detach())
        self.store.hold_dense(self.dtype)
        self.store.dense(self.dtype).requires_grad_()

    @torch.no_grad()
    def collect(self) -> None:
        """The gradient of `change` from that of the weight; none if the weight was not used."""
        found, self.change.grad = self.store.dense(self.dtype).grad, None
        if found is None:
            return
        grad, step = torch.empty_like(self.first), max(1, AT_ONCE // self.store.inputs)
        for part in (slice(start, start + step) for start in range(0, len(grad), step)):
            steps = self.store.steps(part)  # [rows, B, block]
            padded = F.pad(found[part].float(), (0, steps.shape[1] * steps.shape[2] - self.store.inputs))
            grad[part] = (padded.view_as(steps) * steps).sum(-1)
        self.change.grad = grad * self.first

    def finish(self, kept: bool) -> None:
        """Leaves the weight with the trained scales, or with those it had."""
        scales = self.store.scales if kept else self.first
        self.store.hold_dense(None)
        self.store.scales = scales.detach()


def distil(model: Any, teacher: Any, windows: Tensor, rows: int, track: Track = lambda parts, title: parts) -> Tuned:
    """Trains the scales of `model`, a decoder on the int4 grid, towards the float `teacher`, in place.

    `windows` [n, length] of token ids, in batches of `rows`; the last ASIDE are only measured on.
    """
    windows = windows.clone()  # they may be tensors of inference mode, which autograd does not take
    aside, batches = windows[-ASIDE:], _batches(windows[:-ASIDE], rows)
    with _training(model) as trained:
        before = divergence(model, teacher, aside)
        adam = torch.optim.Adam([scales.change for scales in trained], betas=(0.9, 0.99))
        for step, batch in enumerate(track(batches, "training scales")):
            adam.param_groups[0]["lr"] = (
                RATE * min(1, (step + 1) / WARM) * (1 + math.cos(math.pi * step / len(batches))) / 2
            )
            for part in _parts(batch, model):
                torch.autograd.backward(_divergence(model, teacher, part) / batch.numel())
            for scales in trained:
                scales.collect()
            adam.step()
            for scales in trained:
                scales.put()
        after = divergence(model, teacher, aside)
        for scales in trained:
            scales.finish(kept=after < before)
    return Tuned(before, min(before, after))


def _batches(windows: Tensor, rows: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    order = torch.cat([torch.randperm(len(windows), generator=generator) for _ in range(PASSES)])
    return list(torch.split(windows[order], rows))


@torch.no_grad()
def divergence(model: Any, teacher: Any, windows: Tensor) -> float:
    """KL divergence of `model` from `teacher`, in nats per position of windows [rows, length]."""
    return sum(float(_divergence(model, teacher, part)) for part in _parts(windows, model)) / windows.numel()


def _divergence(model: Any, teacher: Any, ids: Tensor) -> Tensor:
    """The sum over all positions."""
    with torch.no_grad(), _fast():
        expected = teacher(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    found = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    return F.kl_div(found, expected, reduction="sum", log_target=True)


def _parts(windows: Tensor, model: Any) -> tuple[Tensor, ...]:
    entries = windows.shape[1] * model.get_output_embeddings().out_features
    return torch.split(windows, max(1, LOGITS // entries))


def _fast() -> AbstractContextManager[Any]:
    """Products in bfloat16 where the processor has them."""
    return torch.autocast("cpu", torch.bfloat16) if has_fast(torch.bfloat16) else nullcontext()


@contextmanager
def _training(model: nn.Module) -> Iterator[list[Scales]]:
    """Every 4-bit weight of the model, ready to train; whatever happens, the model is left frozen and holds no dense
    weights.
    """
    stores = [module for module in model.modules() if isinstance(module, GridWeight)]
    dtype = torch.bfloat16 if has_fast(torch.bfloat16) else torch.float32
    before = [(store, store.compute) for store in stores]
    trained = [Scales(store, dtype) for store in stores if isinstance(store, Int4Weight)]
    tables = [module for module in model.modules() if isinstance(module, GridEmbedding)]
    hooks = [table.register_forward_hook(_looked_up) for table in tables]
    for store in stores:
        store.compute = dtype
    try:
        yield trained
    except BaseException:
        for scales in trained:
            scales.finish(kept=False)
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for store, compute in before:
            store.compute = compute


def _looked_up(table: GridEmbedding, args: tuple[Tensor], out: Tensor) -> Tensor:
    """The rows as they are, with a gradient for the table's weight."""
    dense = table.store.dense(table.store.compute or out.dtype)
    if not dense.requires_grad or not torch.is_grad_enabled():
        return out
    rows = F.embedding(args[0], dense).to(out.dtype) * (1 if table.scale is None else table.scale)
    return out + (rows - rows.detach())
