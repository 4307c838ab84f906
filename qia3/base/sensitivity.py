"""Which layers' rounding costs most, and which of them to keep at 8 bits for so many bits a weight.

Of a layer with weights W that are rounded to W + D, the divergence from the float model is, to second order, that of the first step along D:

    KL(W, W + D) = 1/2 E (d/da log p(y | W + a D) at a = 0)^2        y drawn from the model itself

(the Fisher information along D). Positions of a sequence do not correlate, so a sequence's scores may be summed before they are squared; each
row of a batch has its own `a` in every layer, and one backward pass gives all of them. Parts add up where their errors are small: measured on
SmolLM2-135M, one role at a time, 0.272 for all of them and 0.256 together (benchmarks/LOG.md). Sequences are as long as what is calibrated on:
in short ones attention averages over few positions, and errors of the values look worse than they are, by four tenths at 32 positions.

What is left of D at 8 bits is a 290th, and taken for nothing. A head that is tied to the embedding moves it, too. Bits are spent on the groups
of layers that together take away most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from qia3.base.quantise import Grid, embedding_scale, get_module
from qia3.base.weights import GridWeight
from qia3.errors import BaseModelError
from qia3.grids import int8

AT_ONCE = 512  # positions, of whole sequences
UNITS = 1 << 14  # that a budget is counted in

Track = Callable[[list[Tensor], str], Iterable[Tensor]]


class Moved(nn.Module):
    """A float layer, moved by `a` [rows, 1, 1] towards its rounded weight; `a` is new in each pass."""

    def __init__(self, base: nn.Module, rounded: GridWeight) -> None:
        super().__init__()
        self.base, self.rounded, self.a = base, rounded, torch.zeros(1)

    @property
    def weight(self) -> Tensor:
        assert isinstance(self.base.weight, Tensor)
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        # x [rows, ..., K] -> [rows, ..., N]
        y: Tensor = self.base(x)
        with torch.no_grad():
            bias = getattr(self.base, "bias", None)
            moved = F.linear(x, self.rounded.dense(x.dtype), bias) - y
        a = self.a if x.dim() > 2 else self.a[:, 0].repeat_interleave(len(x) // len(self.a), 0)  # OPT lays its rows end to end
        return (y + a * moved).to(y.dtype)  # the product with `a` and its gradient are float32


class MovedRows(nn.Module):
    """The embedding that is tied to a moved head: one table, one `a`."""

    def __init__(self, base: nn.Module, head: Moved, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.head = [head]  # no submodule: it is the model's already

    def forward(self, ids: Tensor) -> Tensor:
        # ids [rows, L] -> [rows, L, H]
        y: Tensor = self.base(ids)
        moved = self.head[0].rounded.rows(ids, y.dtype) * self.scale - y
        return (y + self.head[0].a * moved).to(y.dtype)


def choose(
    model: nn.Module,
    groups: Mapping[str, Sequence[str]],
    rounded: Mapping[str, GridWeight],
    grid: Grid,
    bits: float,
    windows: Tensor,
    track: Track = lambda parts, title: parts,
) -> list[str]:
    """The groups of linear layers (names by the group's) to keep at 8 bits, so that all linear layers take at most `bits` a weight.

    A float model, the 4-bit form of each of its linear layers, token ids [rows, length] to measure on. Raises BaseModelError where 4 bits alone
    take more.
    """
    four = {name: store.grid.nbytes for name, store in rounded.items()}
    costs = {name: eight_bytes(store, grid) - four[name] for name, store in rounded.items()}
    weights = sum(store.inputs * store.outputs for store in rounded.values())
    spare = bits * weights / 8 - sum(four.values())
    if spare < 0:
        least = 8 * sum(four.values()) / weights
        told = f"bits = {bits:g} is less than 4-bit codes take at block {grid.block_size}, {least:.2f} a weight"
        raise BaseModelError(f"{told}; give more, or a larger block_size")
    nats = divergences(model, rounded, windows, track)
    gains = {group: (sum(nats[n] for n in members), sum(costs[n] for n in members)) for group, members in groups.items()}
    return spend(gains, spare)


def eight_bytes(store: GridWeight, grid: Grid) -> int:
    """Of the same weight at 8 bits."""
    block = int8.block_for(store.inputs, grid.block_size, grid.symmetric)
    return store.outputs * int8.row_bytes(store.inputs, block, grid.symmetric)


def divergences(model: Any, rounded: Mapping[str, GridWeight], windows: Tensor, track: Track) -> dict[str, float]:
    """Nats a position that each layer's rounding costs alone, on windows [rows, length] of token ids."""
    generator = torch.Generator().manual_seed(0)
    with _moved(model, rounded) as layers:
        total = torch.zeros(len(layers))
        for ids in track(list(torch.split(windows, max(1, AT_ONCE // windows.shape[1]))), "finding the layers that 8 bits help most"):
            for layer in layers.values():
                layer.a = torch.zeros(len(ids), 1, 1, requires_grad=True)
            logits = model(input_ids=ids, use_cache=False).logits.float().flatten(0, 1)
            drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
            scores = torch.autograd.grad(F.cross_entropy(logits, drawn, reduction="sum"), [layer.a for layer in layers.values()])
            total += torch.stack([score.square().sum() for score in scores])
    return dict(zip(layers, (total / 2 / windows.numel()).tolist(), strict=True))


def spend(gains: Mapping[str, tuple[float, int]], spare: float) -> list[str]:
    """From (nats, bytes) of each group: those that `spare` bytes buy with the most nats (0/1 knapsack, bytes rounded up to 1/UNITS of them).

    By nats a byte alone, a head that just does not fit any more would leave its room to layers that are worth less.
    """
    unit = max(1, math.ceil(spare / UNITS))
    room = int(spare // unit)
    best, taken = np.zeros(room + 1), dict[str, NDArray[np.bool_]]()
    for name, (nats, cost) in gains.items():
        size = min(-(-cost // unit), room + 1)
        taken[name] = np.zeros(room + 1, bool)
        with_it = best[: room + 1 - size] + nats
        taken[name][size:] = with_it > best[size:]
        best[size:] = np.maximum(with_it, best[size:])
    found: list[str] = []
    for name in reversed(list(gains)):
        if taken[name][room]:
            found.append(name)
            room -= -(-gains[name][1] // unit)
    return found


def _tied_rows(model: nn.Module, layers: Mapping[str, Moved]) -> dict[str, MovedRows]:
    """The embedding by its name, where its table is the head's."""
    embedding = get_module(model, "get_input_embeddings")
    head = next((layer for layer in layers.values() if embedding is not None and layer.weight is embedding.weight), None)
    scale = embedding_scale(embedding) if head is not None and isinstance(embedding, nn.Embedding) else None
    if head is None or embedding is None or scale is None:
        return {}
    return {next(n for n, m in model.named_modules() if m is embedding): MovedRows(embedding, head, scale)}


@contextmanager
def _moved(model: nn.Module, rounded: Mapping[str, GridWeight]) -> Any:
    """The model with a Moved in the place of each layer, frozen, and as it was afterwards."""
    layers = {name: Moved(model.get_submodule(name), store) for name, store in rounded.items()}
    modules: dict[str, nn.Module] = {**layers, **_tied_rows(model, layers)}
    before = {name: model.get_submodule(name) for name in modules}
    trained = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    for name, module in modules.items():
        model.set_submodule(name, module)
    try:
        yield layers
    finally:
        for name, module in before.items():
            model.set_submodule(name, module)
        for parameter in trained:
            parameter.requires_grad_(True)
