"""Rotary embeddings: inside GroupQueryAttention if that is the same function, otherwise the model's own before it.

GroupQueryAttention rotates the two halves of the first d entries of each head: (a, b) -> (a cos - b sin, b cos + a
sin), with cos and sin tables [positions, d/2] as inputs. transformers' models call `apply_rotary_pos_emb(q, k, cos,
sin)` in their own file with tables from their own `rotary_emb`. Two watched passes (watch.py) give each layer's queries
and keys with and without rotation. If the rotated ones are what the operator would compute from the plain ones, the
operator rotates that layer; if the two are equal, the layer is not rotated (SmolLM3 skips every fourth). If any layer
does something else (a norm after the rotation, interleaved pairs, Gemma 3's two tables), the model's own rotation is
exported for all layers.

Either way, cosines and sines are computed once, here, by the model's own module, for all positions of the graph, and
looked up. A module whose tables change with the length of the text (`dynamic`, and `longrope` beyond its original
length) cannot be looked up; it is refused with the length up to which it can.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qia3.errors import BaseModelError
from qia3.graph.watch import Call, Watched, rotary_modules, rotation_files, watch, without_rotation

FEW = 8  # first positions, whose tables are compared between short and long texts


@dataclass(frozen=True)
class Rotation:
    """The rotation for GroupQueryAttention: tables [positions, d/2] float32, and the layers to rotate."""

    cos: Tensor
    sin: Tensor
    layers: frozenset[int]


class Tables(nn.Module):
    """A rotary module's results for all positions, as look-up tables. `kinds` are its layer types, usually just None."""

    def __init__(self, kinds: Sequence[str | None], tables: Sequence[tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.kinds = list(kinds)
        self.parts = [len(t) for t in tables]
        for i, results in enumerate(tables):
            for j, table in enumerate(results):
                self.register_buffer(f"rotary_{i}_{j}", table[0], persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, ...]:
        # position_ids [B, S] -> [B, S, d] each
        i = self.kinds.index(layer_type)
        return tuple(getattr(self, f"rotary_{i}_{j}")[position_ids] for j in range(self.parts[i]))


def lookups(model: PreTrainedModel, seen: Watched, positions: int) -> dict[str, Tables]:
    """The replacement of each rotary module in the graph, by name.

    Raises BaseModelError if its tables depend on the length of the text within `positions`.
    """
    found = {}
    for name, module in rotary_modules(model).items():
        called = seen.tables.get(name, [])
        if not called or any(
            not {"x", "position_ids"} <= set(c) <= {"x", "position_ids", "layer_type"} for c in called
        ):
            continue
        if any(not isinstance(c["position_ids"], Tensor) or c["position_ids"].dim() != 2 for c in called):
            continue
        kinds = list({c.get("layer_type"): None for c in called})
        tables = [_table(module, called[0]["x"], positions, kind) for kind in kinds]
        if any(isinstance(t, Tensor) and t.is_complex() for t in tables):
            raise BaseModelError(
                f"{type(model).__name__} cannot be shipped: it rotates with complex numbers, for which ONNX "
                "has no operators"
            )
        if any(not isinstance(t, tuple) or any(p.is_complex() or p.dim() != 3 for p in t) for t in tables):
            continue
        for kind, table in zip(kinds, tables, strict=True):
            _same_at_all_lengths(model, module, called[0]["x"], kind, table, positions)
        found[name] = Tables(kinds, tables)
    return found


def in_operator(model: PreTrainedModel, seen: Watched, tables: dict[str, Tables]) -> Rotation | None:
    """The rotation in GroupQueryAttention's form, or None if some layer does something else."""
    if len(tables) != 1 or len(rotary_modules(model)) != 1 or not rotation_files(model):
        return None
    (only,) = tables.values()
    if len(only.kinds) != 1 or only.parts != [2]:
        return None
    cos, sin = (t.float().chunk(2, dim=-1)[0].contiguous() for t in only.buffers())
    if cos.shape[-1] % 8:  # the operator needs a multiple of 8 pairs
        return None
    with without_rotation(model):
        plain = watch(model, [c.answer for c in seen.calls])
    if len(plain.calls) != len(seen.calls):  # a rotation function with other arguments
        return None
    layers = set()
    for after, before in zip(seen.calls, plain.calls, strict=True):
        if _close(after, before.q, before.k):
            continue
        if after.layer is None or not _close(after, rotated(before.q, cos, sin), rotated(before.k, cos, sin)):
            return None
        layers.add(after.layer)
    return Rotation(cos, sin, frozenset(layers)) if layers else None


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The operator's rotation of x [B, H, S, size] at positions 0, 1, ..., with tables [positions, d/2]."""
    half, length = cos.shape[-1], x.shape[2]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cos[:length], sin[:length]
    return torch.cat((a * c - b * s, b * c + a * s, rest), dim=-1)


def _close(call: Call, q: Tensor, k: Tensor) -> bool:
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()))
        for a, b in ((call.q, q), (call.k, k))
    )


@torch.no_grad()
def _table(module: nn.Module, x: Tensor, length: int, kind: str | None) -> Any:
    """The module's results for positions 0 ... length - 1, [1, length, d] each, computed by a copy, since some keep a
    state.
    """
    extra = {} if kind is None else {"layer_type": kind}
    return copy.deepcopy(module)(x[:1, :1].float(), torch.arange(length, device=x.device)[None], **extra)


def _same_at_all_lengths(
    model: PreTrainedModel, module: nn.Module, x: Tensor, kind: str | None, table: tuple[Tensor, ...], positions: int
) -> None:
    """Raises BaseModelError with the length from which the first positions' tables change."""
    few = min(FEW, positions)

    def same(length: int) -> bool:
        return all(
            torch.allclose(a[:, :few], b[:, :few], rtol=0, atol=1e-5)
            for a, b in zip(_table(module, x, length, kind), short, strict=True)
        )

    short = _table(module, x, few, kind)
    if same(positions):
        return
    low, high = few, positions  # same at low, not at high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if same(middle) else (low, middle)
    name = getattr(module, "rope_type", "")
    name = name.get(kind, "") if isinstance(name, dict) else name
    raise BaseModelError(
        f"{type(model).__name__} uses other rotary factors in texts of more than {low} tokens"
        f"{f' (rope_type {name})' if name else ''}, but a graph has one set: "
        f"set context_length = {low} in [export] (it is {positions})"
    )
