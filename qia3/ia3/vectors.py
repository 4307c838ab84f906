"""IA³ vectors on a frozen base: l = 1 + delta, one entry per scaled activation (Liu et al. 2022, section 3.3).

bfloat16 has a step of 1/128 above 1 and 1/256 below it, so a vector stored as bfloat16 numbers near one cannot follow
updates of a few thousandths. The offset from one has no such problem: near zero, bfloat16 resolves 1 part in 256 of the
offset itself. So `Scaled` uses l = 1 + bfloat16(delta) in the forward pass, and gives the optimiser a float32 master
copy of delta; the rounding passes gradients through unchanged. What is saved is the l of the forward pass in float32,
which holds 1 + delta exactly unless delta is below 2^-16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qia3.base.modules import GridLinear, Wrapper
from qia3.bundle.sites import Site, Vectors, check_vectors
from qia3.errors import AdapterError


class Scaled(Wrapper):
    """A linear layer whose output (or input) is multiplied, entry by entry, by l. `delta` is float32 [site.parameters].

    `chosen` returns a vector per row of a batch, [R, 1, size], instead of the layer's own (qia3.ia3.lanes).
    """

    rows: Tensor | None
    chosen: Callable[[], Tensor] | None = None

    def __init__(self, base: nn.Module, site: Site) -> None:
        super().__init__()
        self.base, self.site = base, site
        self.delta = nn.Parameter(torch.zeros(site.parameters))
        self.register_buffer("rows", None if site.rows is None else torch.tensor(site.rows), persistent=False)
        self.precision = torch.bfloat16

    @property
    def weight(self) -> Tensor:
        """The base's weight, for code that expects a linear layer's weight."""
        assert isinstance(self.base.weight, Tensor)
        return self.base.weight

    def vector(self) -> Tensor:
        """l as the forward pass sees it: float32 [size], ones outside the rows that train."""
        trained = 1 + self.delta.to(self.precision).float()
        if self.rows is None:
            return trained
        return torch.ones(self.site.size, device=trained.device).index_put((self.rows,), trained)

    def forward(self, x: Tensor) -> Tensor:
        # x [..., K] -> [..., N]
        if self.chosen is None:
            return self._scaled(x, self.vector())
        vector = self.chosen()  # [R, 1, N], some models flatten rows: [R L, K] -> [R L, N]
        if x.dim() > 2:
            return self._scaled(x, vector)
        return self._scaled(x.view(len(vector), -1, x.shape[-1]), vector).flatten(0, 1)

    def _scaled(self, x: Tensor, vector: Tensor) -> Tensor:
        if self.site.placement == "input":
            out: Tensor = self.base(x * vector.to(x.dtype))
            return out
        if isinstance(self.base, GridLinear):
            scaled: Tensor = _Times.apply(self.base.computed(x), vector.to(x.dtype))  # type: ignore[no-untyped-call]
            return scaled
        y: Tensor = self.base(x)
        return y * vector.to(y.dtype)


class Multiplied(Wrapper):
    """A layer on a grid whose input is multiplied by a vector that is no longer trained: it remains in a merged encoder
    if the vector cannot be folded.
    """

    multiplier: Tensor

    def __init__(self, base: nn.Module, multiplier: Tensor) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("multiplier", multiplier)

    @property
    def weight(self) -> Tensor:
        assert isinstance(self.base.weight, Tensor)
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x * self.multiplier.to(x.dtype))
        return out


class _Times(torch.autograd.Function):
    """y l in the type of l, keeping y [..., N] for the backward pass in its own type: half the size if products are
    bfloat16.

    torch's own product would keep the widened y. The gradients are bit-identical.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, vector: Tensor) -> Tensor:
        ctx.save_for_backward(y, vector)
        return y.to(vector.dtype) * vector

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        y, vector = ctx.saved_tensors
        of_y = (grad * vector).to(y.dtype) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return of_y, None
        of_entry = grad * y.to(grad.dtype)
        return of_y, of_entry.sum_to_size(vector.shape) if vector.dim() == 3 else of_entry.flatten(0, -2).sum(0)


def attach(model: nn.Module, sites: Iterable[Site]) -> dict[str, Scaled]:
    """Wraps the layers of `sites` in place; returns the wrappers by vector name, with vectors of ones."""
    scaled = {}
    for site in sites:
        scaled[site.name] = Scaled(model.get_submodule(site.module), site)
        model.set_submodule(site.module, scaled[site.name])
    return scaled


def detach(model: nn.Module, scaled: Mapping[str, Scaled]) -> None:
    """Removes the wrappers again."""
    for layer in scaled.values():
        model.set_submodule(layer.site.module, layer.base)


def get_vectors(scaled: Mapping[str, Scaled]) -> Vectors:
    """Copies of all vectors, float32 [size], by name."""
    return {name: layer.vector().detach().cpu().numpy().copy() for name, layer in scaled.items()}


@torch.no_grad()
def set_vectors(scaled: Mapping[str, Scaled], vectors: Mapping[str, NDArray[np.float32]] | None) -> None:
    """Loads vectors as they are, in float32; None sets ones in bfloat16, ready to train.

    Raises AdapterError listing every bad tensor.
    """
    if vectors is not None:
        check_vectors([layer.site for layer in scaled.values()], vectors)
    for name, layer in scaled.items():
        layer.precision = torch.bfloat16 if vectors is None else torch.float32
        layer.delta.zero_()
        if vectors is not None and name in vectors:
            offset = torch.from_numpy(vectors[name]).to(layer.delta.device) - 1
            layer.delta.copy_(offset if layer.rows is None else offset[layer.rows])


def start_vectors(scaled: Mapping[str, Scaled], vectors: Mapping[str, NDArray[np.float32]] | None) -> int:
    """Prepares the layers for training, in bfloat16, from `vectors` or from ones.

    Returns the number of trainable parameters. Raises AdapterError if a vector does not fit.
    """
    set_vectors(scaled, vectors)
    for layer in scaled.values():
        layer.precision = torch.bfloat16
        layer.delta.requires_grad_(True)
        layer.delta.grad = None
    return sum(layer.delta.numel() for layer in scaled.values())


def make_constant(model: nn.Module, scaled: Mapping[str, Scaled]) -> set[str]:
    """Turns vectors after an activation function and before a layer on a grid into constants; returns their names."""
    stuck = {name for name, s in scaled.items() if isinstance(s.base, GridLinear) and s.site.placement == "input"}
    for name in stuck:
        layer = scaled[name]
        model.set_submodule(layer.site.module, Multiplied(layer.base, layer.vector().detach().clone()))
    return stuck


def fold(scaled: Mapping[str, Scaled]) -> None:
    """Multiplies each vector into its layer's scales (and bias) and sets it to one; in a float layer (T5's `wo`) into
    its rows, or its columns if the vector scales its input.

    If one vector cannot be folded, nothing is folded. Raises AdapterError.
    """
    stuck = [n for n, s in scaled.items() if not isinstance(s.base, nn.Linear) and not _on_rows(s)]
    if stuck:
        raise AdapterError(
            f"{len(stuck)} vectors cannot be folded into 4-bit weights, because there is an activation "
            "function between them and the rows "
            f"they would scale; keep them unmerged (mode 'side'): {', '.join(stuck)}"
        )
    uneven = [n for n, s in scaled.items() if isinstance(s.base, GridLinear) and not s.base.store.folds]
    if uneven:
        raise AdapterError(
            f"{len(uneven)} vectors cannot be folded: in these layers a block spans two rows, which share a scale; "
            f"keep them unmerged (mode 'side'), or ship on another grid: {', '.join(uneven)}"
        )
    for layer in scaled.values():
        if isinstance(layer.base, GridLinear):
            layer.base.fold(layer.vector().detach())
        elif isinstance(layer.base, nn.Linear):
            _fold_float(layer.base, layer.vector().detach(), layer.site)
    set_vectors(scaled, None)


def _on_rows(layer: Scaled) -> bool:
    return isinstance(layer.base, GridLinear) and layer.site.placement == "output"


@torch.no_grad()
def _fold_float(base: nn.Linear, vector: Tensor, site: Site) -> None:
    """W[n, k] <- l[n] W[n, k], b[n] <- l[n] b[n]; or W[n, k] <- W[n, k] l[k]."""
    on_rows = site.placement == "output"
    base.weight = nn.Parameter(base.weight * (vector[:, None] if on_rows else vector), requires_grad=False)
    if on_rows and base.bias is not None:
        base.bias = nn.Parameter(base.bias * vector, requires_grad=False)
