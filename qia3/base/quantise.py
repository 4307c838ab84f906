"""Turns a float transformers model into a frozen 4-bit one, layer by layer: every float layer is released as its 4-bit form appears.

Linear layers (transformers' Conv1D among them) become Int4Linear, the token embedding Int4Embedding; a head tied to the embedding points
at the same bytes. Norms, biases and learned positions stay float32. An embedding's rows are looked up by GatherBlockQuantized, whose rows
are not padded, so its block is the largest one, up to the one asked for, that divides the hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qia3.base.modules import Int4Embedding, Int4Linear, Int4Weight
from qia3.errors import BaseModelError
from qia3.grids.int4 import BLOCK_SIZES

Track = Callable[[list[str]], Iterable[str]]


def quantise_model(model: nn.Module, block_size: int, symmetric: bool, track: Track = lambda names: names) -> None:
    """Replaces the layers of `model` in place. `track` wraps the list of layer names (a progress bar)."""
    embedding, head = _get(model, "get_input_embeddings"), _get(model, "get_output_embeddings")
    tied = embedding is not None and head is not None and head.weight is embedding.weight
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and not (tied and m is head)]
    for name in track(names):
        layer = model.get_submodule(name)
        _replace(model, layer, Int4Linear(_store(name, float_weight(layer), block_size, symmetric), _bias(layer)))
    if isinstance(embedding, nn.Embedding):
        _quantise_embedding(model, embedding, head if tied else None, block_size, symmetric)
    for tensor in (*model.parameters(), *model.buffers()):  # not model.float(): transformers refuses it for a model read from GGUF
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    model.requires_grad_(False)


def float_weight(layer: nn.Module) -> Tensor:
    """[outputs, inputs] of a linear layer; Conv1D keeps its transpose."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(layer, Conv1D) else weight


def _quantise_embedding(model: nn.Module, embedding: nn.Embedding, tied_head: nn.Module | None, block_size: int, symmetric: bool) -> None:
    divisors = [b for b in BLOCK_SIZES if embedding.embedding_dim % b == 0 and b <= block_size]
    scale = _embedding_scale(embedding)
    if not divisors or scale is None:
        if tied_head is not None:
            _replace(model, tied_head, Int4Linear(_store("head", float_weight(tied_head), block_size, symmetric), _bias(tied_head)))
        return
    store = _store("embedding", embedding.weight, divisors[-1], symmetric)
    _replace(model, embedding, Int4Embedding(store, torch.float32, None if scale == 1 else scale))
    if tied_head is not None:
        _replace(model, tied_head, Int4Linear(store, _bias(tied_head)))


@torch.no_grad()
def _embedding_scale(embedding: nn.Embedding) -> float | None:
    """The constant by which the module multiplies its rows (Gemma), or None when it does something else to them."""
    ids = torch.arange(min(4, embedding.num_embeddings), device=embedding.weight.device)
    rows, seen = embedding.weight[ids].float(), embedding(ids).float()
    scale = float((rows * seen).sum() / (rows * rows).sum().clamp_min(1e-30))
    return (1.0 if abs(scale - 1) < 1e-6 else scale) if torch.allclose(rows * scale, seen, rtol=1e-2, atol=1e-6) else None


def _store(name: str, weight: Tensor, block_size: int, symmetric: bool) -> Int4Weight:
    try:
        return Int4Weight.from_float(weight, block_size, symmetric)
    except ValueError as error:
        raise BaseModelError(f"cannot quantise {name}: {error}") from error


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` wherever `old` stands."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


def _bias(layer: nn.Module) -> Tensor | None:
    bias = getattr(layer, "bias", None)
    return bias if isinstance(bias, Tensor) else None


def _get(model: nn.Module, method: str) -> nn.Module | None:
    found = getattr(model, method, lambda: None)()
    return found if isinstance(found, nn.Module) else None
