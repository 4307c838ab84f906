"""Which keys an attention of an encoder-decoder sees, and whether the graphs' operators compute it.

    encoder    softmax(cap(scale q k^T) + bias + padding) v      keys of the encoder's tokens, up to a distance or all
    own        softmax(cap(scale q k^T) + bias, causal) v        keys of the decoder's tokens
    cross      softmax(cap(scale q k^T) + padding) v             queries of the decoder's, keys of the encoder's tokens

A watched pass (watch.py) has more tokens in the encoder than in the decoder, so the numbers of queries and keys tell
the three kinds apart, and the result of each is recomputed by its formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qia3.bundle.ports import MULTIPLE
from qia3.errors import BaseModelError
from qia3.graph.attention import agrees, operator_answer, visible
from qia3.graph.distance import Distances, distances
from qia3.graph.watch import FEWER, TOKENS, Call, Watched

Kind = Literal["encoder", "own", "cross"]
KINDS: dict[tuple[int, int], Kind] = {(TOKENS, TOKENS): "encoder", (FEWER, FEWER): "own", (FEWER, TOKENS): "cross"}


@dataclass(frozen=True)
class Attention:
    """One attention module: its place among those of its kind, its heads, and whether its scores have a bias."""

    kind: Kind
    index: int
    heads: int
    kv_heads: int
    size: int
    biased: bool
    window: int | None = None  # tokens that an encoder's query sees on each side; None: all
    distances: Distances | None = field(default=None, compare=False)  # for a module that computes attention itself


def attentions(model: PreTrainedModel, seen: Watched) -> dict[nn.Module, Attention]:
    """Every attention module of the model. Raises BaseModelError with every reason found and its modules."""
    found: dict[nn.Module, Attention] = {}
    reasons: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for call in seen.calls:
        kind = KINDS.get((call.q.shape[2], call.k.shape[2]))
        reason = "attention that runs several times per pass" if call.module in found else reason_against(call, kind)
        if reason or kind is None:
            reasons.setdefault(str(reason), []).append(call.name)
            continue
        (_, heads, _, size), kv = call.q.shape, call.k.shape[1]
        window = window_of(call) if kind == "encoder" else None
        found[call.module] = Attention(
            kind, counts.get(kind, 0), heads, kv, size, _bias(call) is not None, window, call.extra.get("distances")
        )
        counts[kind] = counts.get(kind, 0) + 1
    whole = counts.get("own") and counts.get("own") == counts.get("cross") and counts.get("encoder")
    if not reasons and model.config.is_encoder_decoder and not whole:
        reasons["a decoder whose layers do not each attend to its own tokens and to the encoder's"] = ["its stacks"]
    if reasons:
        told = "; ".join(f"{reason} in {_places(where)}" for reason, where in reasons.items())
        raise BaseModelError(f"{type(model).__name__} cannot be shipped: its graphs do not support {told}")
    return found


def reaching(model: PreTrainedModel, found: dict[nn.Module, Attention], positions: int) -> dict[nn.Module, Attention]:
    """The same with distance terms computed for up to `positions`. Raises BaseModelError."""
    short = {module: place.distances for module, place in found.items() if place.distances is not None}
    far = distances(model, short, positions)
    return {module: replace(place, distances=far.get(module)) for module, place in found.items()}


def reason_against(call: Call, kind: Kind | None) -> str | None:
    """What this call has that the graph does not support; None if the two agree."""
    size, queries, keys = call.q.shape[-1], call.q.shape[2], call.k.shape[2]
    if kind is None:
        return f"{queries} queries that see {keys} keys (attention to the tokens of both stacks at once)"
    if call.v.shape[-1] != size or call.k.shape[-1] != size:
        return f"keys of {call.k.shape[-1]} and values of {call.v.shape[-1]} entries per head"
    if kind == "own" and size % MULTIPLE:
        return f"heads of {size} entries, where the decoder's operator needs multiples of {MULTIPLE},"
    bias = _bias(call)
    if kind == "cross" and bias is not None:
        return "biases on the scores of the encoder's tokens"
    if call.extra.get("s_aux") is not None:
        return "attention sinks (a learned score that takes part in the softmax)"
    if kind == "own":
        shown = visible(queries, call.extra.get("sliding_window"))
    else:
        shown = near(queries, keys, window_of(call) if kind == "encoder" else None)
    if agrees(call, operator_answer(call, shown.to(call.q.device), bias)):
        return None
    return "scores computed by another formula, or another attention pattern"


def window_of(call: Call) -> int | None:
    """The window of an encoder's layer, if it has one. The value it passes on may be one more, for FlashAttention
    (ModernBERT); its mask uses the configuration's.
    """
    handed = call.extra.get("sliding_window")
    return None if not handed else int(getattr(getattr(call.module, "config", None), "sliding_window", None) or handed)


def near(queries: int, keys: int, window: int | None) -> Tensor:
    """[S, T], true where an encoder's query sees a key: up to a distance of `window`, inclusive, as in transformers."""
    distance = torch.arange(queries)[:, None] - torch.arange(keys)[None]
    return distance.abs() <= (window or queries + keys)


def _bias(call: Call) -> Tensor | None:
    """What the model adds to the scores, or None if it is zero."""
    bias = call.extra.get("position_bias")
    return bias if isinstance(bias, Tensor) and bool(bias.any()) else None


def _places(where: Sequence[str]) -> str:
    return ", ".join(where[:3]) + (f" and {len(where) - 3} more" if len(where) > 3 else "")
