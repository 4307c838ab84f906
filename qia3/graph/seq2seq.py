"""An encoder and its decoder as they are exported: the real transformers model with its leaves lowered (decoder.py),
and three forms of attention (stacks.py). Inputs and outputs: bundle/ports.py.

    encoder    MultiHeadAttention with a bias and a padding mask. As fast as plain operators up to 128 tokens, 0.8 of
               their time at 256 and 512 (benchmarks/encoder_attention.py), with no intermediate transposes
    own        GroupQueryAttention with a bias, which writes its cache in place. The bias must have as many entries
               as there are valid positions, not as many as the buffer holds: a graph that is fed a buffer with
               spare room must be given `past_length`
    cross      MultiHeadAttention twice. Keys and values of the encoder's states are those of the past and those of the
               states that the past lacks, states[:, past:], which are all of them at first and none afterwards

Nothing is concatenated before attention, so a step copies no keys. Attention to no keys gives zeros, so

    cross = MultiHeadAttention(q, past) + MultiHeadAttention(q, new)

where one of the two is empty. A past that covers only some of the states is refused: its mask, which is for all tokens
or none, does not fit. Queries of several rows that share one row of keys are treated as queries of that row, [1, rows
S, D], since every token sees all keys. If scores are capped or heads share keys (T5Gemma), the products are plain
operators that broadcast:

    scores = [q K_past^T | q K_new^T]      p = softmax(scores + padding)      p[past] V_past + p[new] V_new

MatMulNBits over no rows, and MatMul over no rows, columns or inner entries (zeros), behave correctly in ONNX Runtime
1.32. `present.I.encoder.*` are only the new keys and values, so a step returns empty ones; both stock loaders keep what
the first call returned. (Computing them in full without fetching them was tried: `only_execute_path_to_fetches` runs
the Concat anyway.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic, symbolic_multi_out
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from qia3.graph.decoder import put, swapped
from qia3.graph.distance import in_graph
from qia3.graph.leaves import Inputs
from qia3.graph.relative import tabulated
from qia3.graph.rotary import lookups
from qia3.graph.stacks import Attention, attentions
from qia3.graph.watch import watch
from qia3.ia3.roles import attention
from qia3.ia3.vectors import Scaled

ATTENTION = "qia3_encoder_decoder"
HIDDEN = -1e9  # added to the scores of padding
ALL = 2**31  # more tokens than any text has


@dataclass
class Shared(Inputs):
    """What one trace passes to its leaves and its attention: in addition, the earlier tokens, whose number is `before`
    (a 0-d Tensor) and with the new ones `total`, and the padding among the encoder's tokens.
    """

    before: Tensor | None = None
    padding: Tensor | None = None
    seen: tuple[Tensor, Tensor] | None = None  # the masks of the encoder's tokens: those of the past, and the new ones
    by_keys: Tensor | None = None  # the shape of queries by rows of keys, and by rows of tokens
    by_tokens: Tensor | None = None
    positions: int = 0  # context length of the graphs

    def span(self) -> tuple[Tensor, Tensor, int | torch.SymInt]:
        """Number of earlier tokens, and of all tokens as a Tensor and as a length."""
        assert self.before is not None
        assert self.total is not None
        return self.before, self.total.to(torch.long), self.total_length


class Past:
    """A cache that only tells a model the positions of its tokens; attention handles keys and values itself."""

    is_compileable = False

    def __init__(self, before: Tensor) -> None:
        self.before = before
        self.self_attention_cache = self.cross_attention_cache = self
        self.is_updated: dict[int, bool] = {}

    def get_seq_length(self, layer_idx: int = 0) -> Tensor:
        return self.before

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return keys, values


class Reader(nn.Module):
    """An encoder, in an encoder-decoder or alone, and the sizes of its vectors."""

    def __init__(self, model: PreTrainedModel, state: Shared, sizes: dict[str, int]) -> None:
        super().__init__()
        self.model, self.state, self.sizes = model, state, sizes

    def states(self, input_ids: Tensor, attention_mask: Tensor, vectors: list[Tensor], **extra: Tensor) -> Tensor:
        """[B, S, hidden]. `extra`: the model's other inputs."""
        state = self.state
        state.vectors = dict(zip(self.sizes, vectors, strict=True))
        state.batch, state.padding = input_ids.shape[0], attention_mask
        state.before, state.total_length = torch.tensor(0), input_ids.shape[1]
        state.total = torch.scalar_tensor(torch.ops.aten.sym_size.int(input_ids, 1), dtype=torch.int32)
        stack = self.model.get_encoder() if self.model.config.is_encoder_decoder else self.model
        states: Tensor = stack(input_ids=input_ids, attention_mask=attention_mask, **extra)[0]
        return states


class Encoder(Reader):
    """forward(input_ids, attention_mask, vectors) -> last_hidden_state; for export only."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, vectors: list[Tensor]) -> Tensor:
        return self.states(input_ids, attention_mask, vectors)


class CrossDecoder(nn.Module):
    """forward(input_ids, encoder mask, new encoder states, past_length, past, vectors) -> (logits, *present).

    `past` has four tensors per layer: own keys and values, the encoder's keys and values.
    """

    def __init__(self, model: PreTrainedModel, state: Shared, sizes: dict[str, int], layers: list[Attention]) -> None:
        super().__init__()
        self.model, self.state, self.sizes, self.layers = model, state, sizes, layers

    def forward(
        self,
        input_ids: Tensor,
        encoder_mask: Tensor,
        states: Tensor,
        past_length: Tensor,
        past: list[Tensor],
        vectors: list[Tensor],
    ) -> tuple[Tensor, ...]:
        state = self.state
        state.vectors = dict(zip(self.sizes, vectors, strict=True))
        state.past, state.present = past, {}
        state.batch, length = input_ids.shape[0], input_ids.shape[1]
        room = torch.scalar_tensor(torch.ops.aten.sym_size.int(past[0], 2), dtype=torch.long)
        state.before = torch.where(past_length < 0, room, past_length)
        total = state.before + torch.scalar_tensor(torch.ops.aten.sym_size.int(input_ids, 1), dtype=torch.long)
        state.total, state.total_length = total.to(torch.int32), past[0].shape[2] + length
        state.seqlens = (state.total - 1).expand(state.batch)
        state.padding = ((1 - encoder_mask).to(torch.float32) * HIDDEN)[:, None, None]  # [B, 1, 1, E]
        state.seen = _halves(encoder_mask, past[2])
        state.by_keys, state.by_tokens = _shape(encoder_mask, 1, -1, 0), _shape(input_ids, 2, 0)
        out = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=None,
            decoder_input_ids=input_ids,
            past_key_values=Past(state.before),
            use_cache=False,
        )
        return (out.logits, *(t for i in sorted(state.present) for t in state.present[i]))


def encoder_attention(
    state: Shared, place: Attention, q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Any, extra: dict[str, Any]
) -> Tensor:
    """The encoder's attention: [B, E, H, d]. q [B, H, E, d], k and v [B, kv heads, E, d]."""
    groups, window = place.heads // place.kv_heads, place.window
    k, v = (t.repeat_interleave(groups, 1) if groups > 1 else t for t in (k, v))
    assert state.padding is not None
    if extra.get("softcap") or (window and window < state.positions):
        shown = (1 - state.padding).to(q.dtype)[:, None, None] * HIDDEN
        if window and window < state.positions:
            places = torch.arange(q.shape[2])
            shown = shown + ((places[:, None] - places[None]).abs() > window).to(q.dtype) * HIDDEN
        scores = capped(q @ k.transpose(2, 3) * scale, extra)
        scores = scores + bias if place.biased else scores
        return ((scores + shown).softmax(-1) @ v).transpose(1, 2)
    flat = [t.transpose(1, 2).flatten(2) for t in (q, k, v)]
    out: Tensor = symbolic(
        "com.microsoft::MultiHeadAttention",
        (*flat, None, state.padding.to(torch.int32), *([bias] if place.biased else [])),
        {"num_heads": place.heads, "scale": scale, "mask_filter_value": HIDDEN},
        dtype=q.dtype,
        shape=flat[0].shape,
        version=1,
    )
    return out.view(*out.shape[:2], place.heads, place.size)


def capped(scores: Tensor, extra: dict[str, Any]) -> Tensor:
    """cap tanh(scores / cap), if the model caps them (Gemma)."""
    cap = extra.get("softcap")
    return torch.tanh(scores / cap) * cap if cap else scores


def own_attention(
    state: Shared, place: Attention, q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Any, extra: dict[str, Any]
) -> Tensor:
    """The decoder's self-attention: [B, S, H d]; its keys and values go into `state.present`."""
    (batch, heads, length, size), kv = q.shape, place.kv_heads
    flat = [t.transpose(1, 2).reshape(batch, length, -1) for t in (q, k, v)]
    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv, "do_rotary": 0, "scale": scale}
    if extra.get("sliding_window"):
        attributes["local_window_size"] = int(extra["sliding_window"])
    if extra.get("softcap"):
        attributes["softcap"] = float(extra["softcap"])
    cache_shape = (batch, kv, state.total_length, size)
    out, key, value = symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (*flat, *state.past[4 * place.index :][:2], state.seqlens, state.total)
        + ((None, None, None, bias) if place.biased else ()),
        attributes,
        dtypes=(q.dtype,) * 3,
        shapes=((batch, length, heads * size), cache_shape, cache_shape),
        version=1,
    )
    state.present[place.index] = (key, value)
    return out


def cross_attention(
    state: Shared, place: Attention, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: dict[str, Any]
) -> Tensor:
    """Cross-attention: [B, S, H, d]; k and v [B, kv heads, new, d] go into `state.present`, after the layer's own."""
    (batch, heads, length, size), kv = q.shape, place.kv_heads
    past_k, past_v = state.past[4 * place.index + 2 :][:2]
    state.present[place.index] = (*state.present[place.index], k, v)  # type: ignore[assignment]
    if kv == heads and not extra.get("softcap"):
        flat = _reshaped(q.transpose(1, 2).reshape(batch, length, -1), state.by_keys)
        assert state.seen is not None
        known, new = (
            _attended(place, flat, *keys, mask, scale)
            for keys, mask in zip(((past_k, past_v), (k, v)), state.seen, strict=True)
        )
        return _reshaped(known + new, state.by_tokens).view(batch, length, heads, size)
    q = (q if scale == 1 else q * scale).reshape(batch, kv, heads // kv * length, size)
    scores = capped(torch.cat([q @ past_k.transpose(2, 3), q @ k.transpose(2, 3)], -1), extra)
    # by name: past and new ones together have the mask's length, which torch's shapes cannot express
    masked: Tensor = symbolic("Add", (scores, state.padding), {}, dtype=q.dtype, shape=scores.shape, version=14)
    seen = masked.softmax(-1)
    before = past_k.shape[2]
    out = seen[..., :before] @ past_v + seen[..., before:] @ v
    return out.reshape(batch, heads, length, size).transpose(1, 2)


def _attended(place: Attention, flat: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """flat [B, S, H d], k and v [B, H, T, d], mask int32 [B, T] -> [B, S, H d]; zeros where T is 0."""
    attributes: dict[str, Any] = {"num_heads": place.heads, "scale": scale, "mask_filter_value": HIDDEN}
    out: Tensor = symbolic(
        "com.microsoft::MultiHeadAttention",
        (flat, k, v, None, mask),
        attributes,
        dtype=flat.dtype,
        shape=flat.shape,
        version=1,
    )
    return out


def _halves(mask: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """int32 [B, past] and [B, new] of a mask of all the encoder's tokens: one has all of them, the other none."""
    rows, known = mask.shape[0], past.shape[2]
    end: Tensor = symbolic("Shape", (past,), {"start": 2, "end": 3}, dtype=torch.long, shape=(1,), version=21)
    end, axis = end * ALL, torch.tensor([1])
    whole = mask.to(torch.int32)
    parts = ((torch.tensor([0]), end, known), (end, torch.tensor([ALL]), mask.shape[1] - known))
    first, second = (
        symbolic("Slice", (whole, a, b, axis), {}, dtype=whole.dtype, shape=(rows, count), version=13)
        for a, b, count in parts
    )
    return first, second


def _shape(of: Tensor, end: int, *rest: int) -> Tensor:
    """The first dimensions of `of` and others, for Reshape: 0 keeps a dimension, -1 is the rest."""
    known: Tensor = symbolic("Shape", (of,), {"end": end}, dtype=torch.long, shape=(end,), version=21)
    return torch.cat([known, torch.tensor(rest)])


def _reshaped(x: Tensor, shape: Tensor | None) -> Tensor:
    """By name: in the trace there are as many rows of keys as of tokens."""
    out: Tensor = symbolic("Reshape", (x, shape), {}, dtype=x.dtype, shape=x.shape, version=21)
    return out


def attend(state: Shared, places: dict[nn.Module, Attention]) -> Any:
    """An attention function for transformers that emits the three forms."""

    def function(
        module: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any, scaling: float | None = None, **extra: Any
    ) -> tuple[Tensor, None]:
        place, (batch, heads, length, size) = places[module], q.shape
        scale, bias = float(size**-0.5 if scaling is None else scaling), extra.get("position_bias")
        if place.distances is not None:
            scale = place.distances.scale
            bias = in_graph(module, place.distances, q, k, state.vectors) if place.biased else None
        if place.kind == "cross":
            return cross_attention(state, place, q, k, v, scale, extra), None
        if place.kind == "encoder":
            return encoder_attention(state, place, q, k, v, scale, bias, extra), None
        out = own_attention(state, place, q, k, v, scale, bias, extra)
        return out.view(batch, length, heads, size), None

    return function


@contextmanager
def lowered(
    model: PreTrainedModel, accuracy_level: int, positions: int, logits: str
) -> Iterator[tuple[Encoder, CrossDecoder]]:
    """The model with its leaves swapped for export leaves; restored afterwards.

    Raises BaseModelError if the graphs do not support its attention.
    """
    seen = watch(model)
    places, tables = attentions(model, seen), lookups(model, seen, positions)
    state = Shared(dense=True, positions=positions)
    encoder = model.get_encoder()
    inside = set(encoder.modules())
    sizes: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for module in model.modules():
        if isinstance(module, Scaled):
            sizes[module not in inside][module.site.name] = module.site.size
    own = [p for p in places.values() if p.kind == "own"]
    AttentionInterface.register(ATTENTION, attend(state, places))
    with ExitStack() as stack:
        undo = stack.enter_context(swapped(model, state, accuracy_level, logits))
        put(model, tables, undo)
        stack.enter_context(tabulated(model, state.span, positions))
        stack.enter_context(attention(model, ATTENTION))
        yield Encoder(model, state, sizes[0]), CrossDecoder(model, state, sizes[1], own)
