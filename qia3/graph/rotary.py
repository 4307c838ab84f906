"""Rotary embeddings inside GroupQueryAttention, where that is the same function.

GroupQueryAttention rotates the two halves of each head: (a, b) -> (a cos - b sin, b cos + a sin), with cos and sin
tables [positions, d/2] as inputs. transformers' models call `apply_rotary_pos_emb(q, k, cos, sin)` of their own file
with tables from their own `rotary_emb`. If a numeric check shows that the two agree, the tables come from the model's
module (so every scaling rule it knows is in them) and the model's function becomes the identity for the export. If not
(Gemma 3's two tables, interleaved pairs), the model's own rotation is exported as it is, in front of the attention
operator.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

FUNCTION = "apply_rotary_pos_emb"


def rotary_tables(model: PreTrainedModel, positions: int) -> tuple[Tensor, Tensor] | None:
    """cos and sin [positions, d/2] float32 if the model's rotation is GroupQueryAttention's, else None."""
    files = _files(model)
    rotary = [m for n, m in model.named_modules() if n.endswith("rotary_emb")]
    if len(rotary) != 1 or not files:
        return None
    try:
        with torch.no_grad():
            cos, sin = rotary[0](torch.zeros(1, 1, 1), torch.arange(positions)[None])
            fits = cos.shape[-1] % 16 == 0  # the operator rotates multiples of 8 pairs
            return _halves(cos[0].float(), sin[0].float()) if fits and _agrees(files, cos, sin) else None
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError):  # a rotary module of another kind
        return None


@contextmanager
def without_rotation(model: PreTrainedModel) -> Iterator[None]:
    """Makes the model's rotation the identity, then puts it back."""
    files = _files(model)
    originals = [getattr(file, FUNCTION) for file in files]
    try:
        for file in files:
            setattr(file, FUNCTION, _identity)
        yield
    finally:
        for file, original in zip(files, originals, strict=True):
            setattr(file, FUNCTION, original)


def _identity(q: Tensor, k: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return q, k


def _files(model: PreTrainedModel) -> list[ModuleType]:
    """The files of the model's classes that define the rotation."""
    names = {type(m).__module__ for m in model.modules()}
    return [sys.modules[n] for n in sorted(names) if hasattr(sys.modules[n], FUNCTION)]


def _halves(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    half = cos.shape[-1] // 2
    return cos[:, :half].contiguous(), sin[:, :half].contiguous()


def _agrees(files: list[ModuleType], cos: Tensor, sin: Tensor) -> bool:
    """Compares the model's function with the operator's on random queries."""
    length, size = min(7, cos.shape[1]), cos.shape[-1]
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 3, length, size, generator=generator), torch.randn(1, 2, length, size, generator=generator)
    c, s = _halves(cos[0, :length].float(), sin[0, :length].float())
    a, b = q.chunk(2, dim=-1)
    expected = torch.cat((a * c - b * s, b * c + a * s), dim=-1)
    results = [getattr(file, FUNCTION)(q, k, cos[:, :length].float(), sin[:, :length].float())[0] for file in files]
    return all(torch.allclose(r, expected, atol=1e-5) for r in results)
