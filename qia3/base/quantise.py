"""Turns a float transformers model into a frozen 4-bit one, layer by layer; each float layer is freed once its 4-bit
form exists.

Linear layers (including transformers' Conv1D) become GridLinear, the token embedding becomes GridEmbedding; a head tied
to the embedding uses the same bytes. Norms, biases and learned positions stay float32. GatherBlockQuantized looks up an
embedding's rows and does not allow padding, so its block is the largest, up to the one asked for, that divides the
hidden size.

With `windows` of token ids every 4-bit layer is rounded for the inputs it gets (calibrate.py, grids/calibrated.py);
otherwise for its weights alone. Some layers may have a form of their own: shorter blocks, or 8-bit codes. The latter
are rounded to nearest: they lose too little to be worth calibrating.

On NF4 the embedding and the head stay in float, as in bitsandbytes, which is what an adapter trained there expects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qia3.base.calibrate import Moments
from qia3.base.experts import float_experts, put_on_grid
from qia3.base.family import embeddings, get_module, stays_float, weight_of
from qia3.base.int8 import Int8Weight
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.nf4 import Nf4Weight
from qia3.base.weights import GridWeight, Int4Weight
from qia3.errors import BaseModelError
from qia3.grids import int8
from qia3.grids.blocks import BLOCK_SIZES
from qia3.grids.calibrated import Seen
from qia3.grids.int4 import block_for

Track = Callable[[list[str]], Iterable[str]]
GridName = Literal["int4", "nf4"]


@dataclass(frozen=True)
class Form:
    """A layer's bits per code, 4 or 8, and the maximum number of inputs that share a scale."""

    bits: int
    block_size: int


@dataclass(frozen=True)
class Grid:
    """The grid that is asked for. On int4 a layer gets the block size, up to its form's, with the fewest bytes.

    `own` are the layers whose form is not 4 bits in blocks of `block_size`. At 8 bits they are rounded to nearest,
    without calibration.
    """

    block_size: int
    symmetric: bool
    own: Mapping[str, Form] = field(default_factory=dict)
    name: GridName = "int4"

    def form(self, name: str) -> Form:
        """A layer's form."""
        return self.own.get(name, Form(4, self.block_size))

    def store(self, name: str, weight: Tensor, seen: Seen | None, at_most: int | None = None) -> GridWeight:
        """Quantises a float weight [N, K], in blocks of up to `at_most` (default: its form's). Raises BaseModelError."""
        form = self.form(name)
        at_most = at_most or form.block_size
        try:
            if self.name == "nf4":
                return Nf4Weight.from_float(weight, at_most)
            if form.bits == 8:
                return Int8Weight.from_float(
                    weight, int8.block_for(weight.shape[1], at_most, self.symmetric), self.symmetric
                )
            return Int4Weight.from_float(
                weight, block_for(weight.shape[1], at_most, self.symmetric), self.symmetric, seen
            )
        except ValueError as error:
            raise BaseModelError(f"cannot quantise {name}: {error}") from error


@dataclass(frozen=True)
class Chosen:
    """Layers with a form of their own, by name; and as a build file lists them: roles at 8 bits, and roles by block
    size.
    """

    own: Mapping[str, Form] = field(default_factory=dict)
    eight_bit: tuple[str, ...] = ()
    blocks: Mapping[str, list[str]] = field(default_factory=dict)


class Mix(Protocol):
    """A choice of layers with forms of their own (qia3.ia3.mix)."""

    @property
    def asked(self) -> tuple[str, ...]:
        """What was asked for; empty if all layers have the same form."""

    def find(self, model: nn.Module, grid: Grid, windows: Tensor | None) -> Chosen:
        """Chooses among the layers of a float model that is about to be put on `grid`, calibrated on `windows`."""


class Uniform:
    """The same form for all layers."""

    asked: tuple[str, ...] = ()

    def find(self, model: nn.Module, grid: Grid, windows: Tensor | None) -> Chosen:
        return Chosen()


def quantise_model(
    model: nn.Module, grid: Grid, track: Track = lambda names: names, windows: Tensor | None = None
) -> None:
    """Replaces the layers of `model` in place. A head that is tied to the embedding counts for both.

    `track` wraps the list of layer names (a progress bar); windows [rows, length] of token ids.
    """
    if grid.name == "int4":
        put_on_grid(model, grid.block_size, grid.symmetric)
    elif float_experts(model):
        raise BaseModelError('mixtures of experts are only supported on the int4 grid: set grid = "int4" under [base]')
    moments = None if windows is None else Moments(model, windows)
    ends = grid.name == "int4"  # whether embedding and head are quantised, too
    head, tables = get_module(model, "get_output_embeddings"), _tables(model)
    tied = next((table for table in tables if head is not None and weight_of(head) is weight_of(table[0])), None)
    kept = head if tied or not ends else None
    floats = stays_float(model) - grid.own.keys()
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    names = [n for n, m in linears if m is not kept and n not in floats]
    for name in track(names):
        layer = model.get_submodule(name)
        seen = (
            None
            if moments is None or grid.form(name).bits == 8
            else moments.of_head(layer)
            if layer is head
            else moments.of(name)
        )
        _replace(model, layer, GridLinear(grid.store(name, float_weight(layer), seen), _bias(layer)))
    for table in tables if ends else ():
        _quantise_embedding(model, table, head if table is tied else None, grid, moments)
    for tensor in (
        *model.parameters(),
        *model.buffers(),
    ):  # not model.float(): transformers refuses it for a model read from GGUF
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    model.requires_grad_(False)


def float_weight(layer: nn.Module) -> Tensor:
    """[outputs, inputs] of a linear layer; Conv1D keeps its transpose."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(layer, Conv1D) else weight


def _tables(model: nn.Module) -> list[list[nn.Embedding]]:
    """The float token tables, grouped by shared tensor (an encoder-decoder has one per stack)."""
    found: dict[int, list[nn.Embedding]] = {}
    for table in embeddings(model):
        if isinstance(
            table, nn.Embedding
        ):  # a table that has codes already is left alone, and so is a head that shares them
            found.setdefault(id(weight_of(table)), []).append(table)
    return list(found.values())


def _quantise_embedding(
    model: nn.Module, table: list[nn.Embedding], tied_head: nn.Module | None, grid: Grid, moments: Moments | None
) -> None:
    embedding, scales = table[0], [embedding_scale(module) for module in table]
    name = "embedding" if tied_head is None else next(n for n, m in model.named_modules() if m is tied_head)
    form = grid.form(name)
    at_most = max(form.block_size, int8.LEAST_BLOCK) if form.bits == 8 else form.block_size
    divisors = [b for b in BLOCK_SIZES if embedding.embedding_dim % b == 0 and b <= at_most]
    seen = None if moments is None or tied_head is None or form.bits == 8 else moments.of_head(tied_head)
    if not divisors or None in scales:
        if tied_head is not None:
            _replace(model, tied_head, GridLinear(grid.store(name, float_weight(tied_head), seen), _bias(tied_head)))
        return
    store = grid.store(name, embedding.weight, seen, divisors[-1])
    for module, scale in zip(table, scales, strict=True):
        _replace(model, module, GridEmbedding(store, torch.float32, None if scale == 1 else scale))
    if tied_head is not None:
        _replace(model, tied_head, GridLinear(store, _bias(tied_head)))


@torch.no_grad()
def embedding_scale(embedding: nn.Embedding) -> float | None:
    """The constant by which the module multiplies its rows (Gemma), or None if it does something else with them."""
    ids = torch.arange(min(4, embedding.num_embeddings), device=embedding.weight.device)
    rows, seen = embedding.weight[ids].float(), embedding(ids).float()
    scale = float((rows * seen).sum() / (rows * rows).sum().clamp_min(1e-30))
    return (
        (1.0 if abs(scale - 1) < 1e-6 else scale) if torch.allclose(rows * scale, seen, rtol=1e-2, atol=1e-6) else None
    )


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replaces every occurrence of `old` by `new`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


def _bias(layer: nn.Module) -> Tensor | None:
    bias = getattr(layer, "bias", None)
    return bias if isinstance(bias, Tensor) else None
