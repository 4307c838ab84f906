"""Which layers are most sensitive to rounding, and which form to give each within a budget of bits per weight: the
plain blocks, shorter ones, or 8 bits.

For a layer with weights W that are rounded to W + D, the divergence from the float model is, to second order, that of
the first-order step along D:

    KL(W, W + D) = 1/2 E (d/da log p(y | W + a D) at a = 0)^2        y drawn from the model itself

(the Fisher information along D). Scores at different positions of a sequence are uncorrelated, so they may be summed
before they are squared; each row of a batch has its own `a` in every layer, and one backward pass gives all of them.
The effects of layers add up if their errors are small: measured on SmolLM2-135M, one role at a time, the sum is 0.272
and all together give 0.256 (benchmarks/LOG.md). Sequences are as long as for calibration: in short ones attention
averages over few positions, and errors of the values look worse than they are, by 40 % at 32 positions.

A squared score has a standard deviation larger than itself, and picking the best of many noisy figures favours those
that are too good by chance. So y is drawn DRAWS times per sequence, at the cost of a backward pass each, and only the
plain form is measured like that. For shorter blocks, the remaining share of the error is taken from the weights: the
ratio of their squared errors in both forms, rounded to nearest, which is much the same for all layers (0.66 from 64 to
32, within about 0.01, on SmolLM2-135M). 8 bits leave 1/290, which is ignored.

A head that is tied to the embedding moves it, too. An encoder-decoder gets the halves that it is calibrated on, and its
positions are the decoder's: the effect of rounding the encoder is seen through the answers only. Each group of layers
gets one form, so that the total loss within the budget is smallest (a knapsack with one item per group; Kellerer,
Pferschy and Pisinger 2004, chapter 11).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from qia3.base.calibrate import called_with
from qia3.base.family import embeddings, weight_of
from qia3.base.quantise import Form, Grid, embedding_scale, float_weight
from qia3.base.weights import GridWeight
from qia3.errors import BaseModelError
from qia3.grids import int4, int8

AT_ONCE = 512  # positions, of whole sequences
DRAWS = 4
SAMPLED = 64  # rows of a layer
UNITS = 1 << 14  # resolution of the budget

Track = Callable[[list[Tensor], str], Iterable[Tensor]]
K = TypeVar("K")


class Moved(nn.Module):
    """A float layer, moved by `a` [rows, 1, 1] towards its rounded weight; each pass has a new `a`."""

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
        a = self.a if x.dim() > 2 else self.a[:, 0].repeat_interleave(len(x) // len(self.a), 0)  # OPT flattens its rows
        return (y + a * moved).to(y.dtype)  # the product with `a` and its gradient are float32


class MovedRows(nn.Module):
    """An embedding that is tied to a moved head: one table, one `a`."""

    def __init__(self, base: nn.Module, head: Moved, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.head = [head]  # not a submodule: the model has it already

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
    short: int,
    bits: float,
    windows: Tensor,
    track: Track = lambda parts, title: parts,
) -> dict[str, Form]:
    """The form of each group of linear layers (groups of names), so that all linear layers together take at most `bits`
    per weight.

    Takes a float model, the `grid` of its linear layers, and token ids [rows, length] to measure on. The forms are the
    grid's own, blocks of `short` if that is less, and 8 bits; layers without a group stay in the first form. Raises
    BaseModelError if 4 bits alone take more.
    """
    forms = [Form(4, grid.block_size), *([Form(4, short)] if short < grid.block_size else []), Form(8, grid.block_size)]
    size = {form: {name: nbytes(store, form, grid.symmetric) for name, store in rounded.items()} for form in forms}
    plain = size[forms[0]]
    weights = sum(store.inputs * store.outputs for store in rounded.values())
    if bits * weights < 8 * sum(plain.values()):
        told = (
            f"bits = {bits:g} is less than 4-bit codes take at block {grid.block_size}, "
            f"{8 * sum(plain.values()) / weights:.2f} per weight"
        )
        raise BaseModelError(f"{told}; raise bits, or set a larger block_size")
    nats = divergences(model, rounded, windows, track)
    shares = {form: {name: _share(model.get_submodule(name), grid, form) for name in rounded} for form in forms}
    options = {
        group: {
            form: (sum(nats[n] * shares[form][n] for n in members), sum(size[form][n] for n in members))
            for form in forms
        }
        for group, members in groups.items()
    }
    fixed = sum(plain.values()) - sum(plain[n] for members in groups.values() for n in members)
    return spend(options, bits * weights / 8 - fixed)


def nbytes(store: GridWeight, form: Form, symmetric: bool) -> int:
    """Bytes of the same weight in another form."""
    codes: Any = int8 if form.bits == 8 else int4
    return int(
        store.outputs
        * codes.row_bytes(store.inputs, codes.block_for(store.inputs, form.block_size, symmetric), symmetric)
    )


def _share(layer: nn.Module, grid: Grid, form: Form) -> float:
    """The share of the squared error on `grid` that is left in another form, estimated on some of the layer's rows."""
    plain = Form(4, grid.block_size)
    if form == plain or form.bits == 8:
        return float(form == plain)
    weight = float_weight(layer)
    rows = weight[:: max(1, len(weight) // SAMPLED)].detach().float()
    errors = []
    for one in (form, plain):
        stored = Grid(one.block_size, grid.symmetric).store("", rows, None)
        errors.append(float((stored.dense(torch.float32) - rows).square().sum()))
    return errors[0] / errors[1] if errors[1] else 1.0


def divergences(model: Any, rounded: Mapping[str, GridWeight], windows: Tensor, track: Track) -> dict[str, float]:
    """KL divergence in nats per predicted position from rounding each layer alone, on windows [rows, length] of ids."""
    generator = torch.Generator().manual_seed(0)
    with _moved(model, rounded) as layers:
        total, positions = torch.zeros(len(layers)), 0
        for ids in track(
            list(torch.split(windows, max(1, AT_ONCE // windows.shape[1]))), "finding the layers that 8 bits help most"
        ):
            for layer in layers.values():
                layer.a = torch.zeros(len(ids), 1, 1, requires_grad=True)
            logits = model(**called_with(model, ids), use_cache=False).logits.float().flatten(0, 1)
            positions += len(logits)
            drawn = torch.multinomial(logits.detach().softmax(-1), DRAWS, replacement=True, generator=generator)
            for y in drawn.T:
                loss = F.cross_entropy(logits, y, reduction="sum")
                scores = torch.autograd.grad(loss, [layer.a for layer in layers.values()], retain_graph=True)
                total += torch.stack([score.square().sum() for score in scores])
    return dict(zip(layers, (total / 2 / DRAWS / positions).tolist(), strict=True))


def spend(options: Mapping[str, Mapping[K, tuple[float, int]]], budget: float) -> dict[str, K]:
    """Chooses one option per group, given (nats, bytes) per option: the fewest nats in total within `budget` bytes.

    Costs above the group's smallest option are rounded up to 1/UNITS of what is left after the smallest options; these
    must fit. A greedy choice by nats per byte would leave the room of a head that just does not fit to layers that are
    worth less.
    """
    least = {group: min(size for _, size in forms.values()) for group, forms in options.items()}
    spare = budget - sum(least.values())
    unit = max(1, math.ceil(spare / UNITS))
    room = int(spare // unit)
    fewest, taken = (
        np.zeros(room + 1),
        dict[str, NDArray[np.int8]](),
    )  # nats of the groups so far, by units used
    for group, forms in options.items():
        before, fewest = fewest, np.full(room + 1, np.inf)
        taken[group] = np.zeros(room + 1, np.int8)
        for index, (nats, size) in enumerate(forms.values()):
            over = min(-(-(size - least[group]) // unit), room + 1)
            with_it = before[: room + 1 - over] + nats
            better = with_it < fewest[over:]
            fewest[over:][better], taken[group][over:][better] = with_it[better], index
    chosen: dict[str, K] = {}
    for group in reversed(list(options)):
        form, (_, size) = list(options[group].items())[taken[group][room]]
        chosen[group] = form
        room -= -(-(size - least[group]) // unit)
    return chosen


def _tied_rows(model: nn.Module, layers: Mapping[str, Moved]) -> dict[str, MovedRows]:
    """The embeddings that share the head's table, by name: one in a decoder, up to one per stack in an encoder-decoder."""
    tables = embeddings(model)
    head = next((layer for layer in layers.values() if any(weight_of(t) is layer.weight for t in tables)), None)
    if head is None:
        return {}
    tied = [table for table in tables if isinstance(table, nn.Embedding) and weight_of(table) is head.weight]
    scales = {id(table): scale for table in tied if (scale := embedding_scale(table)) is not None}
    return {
        name: MovedRows(module, head, scales[id(module)])
        for name, module in model.named_modules(remove_duplicate=False)  # T5's stacks share one
        if id(module) in scales
    }


@contextmanager
def _moved(model: nn.Module, rounded: Mapping[str, GridWeight]) -> Any:
    """The frozen model with a Moved in place of each layer; restored afterwards."""
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
