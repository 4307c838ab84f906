"""The decoder as it is exported: the real transformers model with its leaves lowered and its cache as inputs and
outputs.

    inputs   input_ids [B, S], attention_mask [B, T] int64; past_key_values.{i}.{key,value} [B, kv heads, P, head size]; vectors [rows, 1, d]
    outputs  logits [B, 1, V] (or [B, S, V]); present.{i}.{key,value} [B, kv heads, T, head size]

GroupQueryAttention counts a row's valid positions from its start, so a batch of unequal lengths is padded on the right,
and row b's mask has n_b leading ones. Everything follows from n_b: the new tokens start at position max(n_b - S, 0),
and the last valid one of them is entry n_b - 1 - start. In a prompt (no past) start is 0; in a step of one token start
is n_b - 1, which overwrites a padded slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic, symbolic_multi_out
from transformers import AttentionInterface, PreTrainedModel

from qia3.base.experts import GridExperts
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.graph.attention import Forms, forms_of, shared_biases
from qia3.graph.experts import QMoE
from qia3.graph.leaves import Dense, Inputs, LastPosition, MultipliedLeaf, RMSNorm, ScaledLeaf, lookup, product
from qia3.graph.rotary import Rotation, in_operator, lookups
from qia3.graph.watch import watch, without_rotation
from qia3.ia3.roles import attention
from qia3.ia3.vectors import Multiplied, Scaled

ATTENTION = "qia3_group_query"


class Decoder(nn.Module):
    """forward(input_ids, attention_mask, past, vectors) -> (logits, *present); for export only."""

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: Inputs,
        sizes: dict[str, int],
        forms: Forms,
        rotation: Rotation | None,
        biases: Tensor | None,
    ) -> None:
        super().__init__()
        self.model, self.graph_inputs, self.sizes, self.forms = model, inputs, sizes, forms
        self.biases = None if biases is None else nn.Buffer(biases)
        self.cos = None if rotation is None else nn.Buffer(rotation.cos)
        self.sin = None if rotation is None else nn.Buffer(rotation.sin)
        self.rotates = frozenset() if rotation is None else rotation.layers

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: list[Tensor], vectors: list[Tensor]
    ) -> tuple[Tensor, ...]:
        state = self.graph_inputs
        length = input_ids.shape[1]
        valid = attention_mask.sum(1)
        start = (valid - length).clamp_min(0)
        state.past, state.present = past, {}
        state.vectors = dict(zip(self.sizes, vectors, strict=True))
        state.last = valid - 1 - start
        state.seqlens = (valid - 1).to(torch.int32)
        state.total_length, state.batch = attention_mask.shape[1], input_ids.shape[0]
        state.total = torch.scalar_tensor(torch.ops.aten.sym_size.int(attention_mask, 1), dtype=torch.int32)
        state.bias = None if self.biases is None else _bias(self.biases, state, length)
        positions = start[:, None] + torch.arange(length)[None]
        logits = self.model(input_ids=input_ids, attention_mask=None, position_ids=positions, use_cache=False).logits
        return (logits, *(t for i in sorted(state.present) for t in state.present[i]))


def _bias(table: Tensor, state: Inputs, length: int | torch.SymInt) -> Tensor:
    """[1, H, S, T] from t [H, positions]: each key's bias minus that of the newest key.

    Keys have the same positions in every row, so one row is enough for all. Softmax ignores the subtraction, which
    keeps the numbers small.
    """
    assert state.total is not None
    total, heads = state.total.to(torch.long), table.shape[0]

    def of(keys: Tensor, count: int | torch.SymInt) -> Tensor:
        taken: Tensor = symbolic(
            "Gather", (table, keys), {"axis": 1}, dtype=table.dtype, shape=(heads, count), version=13
        )
        return taken

    every = (torch.tensor(0), total, torch.tensor(1))
    keys = symbolic("Range", every, {}, dtype=torch.long, shape=(state.total_length,), version=11)
    bias = of(keys, state.total_length) - of((total - 1)[None], 1)
    return bias[None, :, None].expand(1, heads, length, state.total_length)


def group_query_attention(decoder: Decoder) -> Any:
    """An attention function for transformers that emits GroupQueryAttention. q [B, H, S, d], k and v [B, kv heads, S,
    d].
    """

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        state, form = decoder.graph_inputs, decoder.forms[module]
        batch, heads, length, _size = q.shape
        if form.groups > 1:
            k, v = k[:, :: form.groups], v[:, :: form.groups]
        flat = [_wide(t, form.size).transpose(1, 2).reshape(batch, length, -1) for t in (q, k, v)]
        tables = [decoder.cos, decoder.sin] if form.layer in decoder.rotates else []
        beside = [] if state.bias is None else [*(tables or (None, None)), None, state.bias]
        cache_shape = (batch, form.kv_heads, state.total_length, form.size)
        attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": form.kv_heads, "do_rotary": int(bool(tables))}
        attributes["scale"] = form.scale
        if form.window:
            attributes["local_window_size"] = int(form.window)
        if form.cap:
            attributes["softcap"] = float(form.cap)
        past = state.past[2 * form.layer : 2 * form.layer + 2]
        out, key, value = symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (*flat, *past, state.seqlens, state.total, *(beside or tables)),
            attributes,
            dtypes=(q.dtype,) * 3,
            shapes=((batch, length, heads * form.size), cache_shape, cache_shape),
            version=1,
        )
        state.present[form.layer] = (key, value)
        return out.view(batch, length, heads, form.size)[..., : form.values], None

    return attend


def _wide(x: Tensor, size: int) -> Tensor:
    """Pads heads to `size` entries with zeros, which add nothing to products of queries and keys."""
    return x if x.shape[-1] == size else nn.functional.pad(x, (0, size - x.shape[-1]))


@contextmanager
def lowered(model: PreTrainedModel, accuracy_level: int, positions: int, logits: str) -> Iterator[Decoder]:
    """The model as a Decoder, with its leaves swapped for export leaves; restored afterwards.

    Raises BaseModelError if the graph does not support its attention or rotary embedding.
    """
    inputs = Inputs()
    seen = watch(model)
    forms, biases = forms_of(model, seen), shared_biases(model, seen, positions)
    tables = lookups(model, seen, positions)
    rotation = in_operator(model, seen, tables)
    sizes = {m.site.name: m.site.size for m in model.modules() if isinstance(m, Scaled)}
    decoder = Decoder(model, inputs, sizes, forms, rotation, biases)
    AttentionInterface.register(ATTENTION, group_query_attention(decoder))
    with swapped(model, inputs, accuracy_level, logits) as undo:
        put(model, tables, undo)
        with attention(model, ATTENTION), nullcontext() if rotation is None else without_rotation(model):
            yield decoder


Undo = list[tuple[nn.Module, str, nn.Module]]


@contextmanager
def swapped(model: PreTrainedModel, inputs: Inputs, accuracy_level: int, logits: str) -> Iterator[Undo]:
    """Replaces every leaf; afterwards puts each module back under its name in its parent, also those added to the list."""
    undo = _swap(model, inputs, accuracy_level, logits)
    try:
        yield undo
    finally:
        for module, name, original in reversed(undo):
            setattr(module, name, original)


def put(model: PreTrainedModel, modules: Mapping[str, nn.Module], undo: Undo) -> None:
    """Replaces the modules with these names, and adds the originals to `undo`."""
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        undo.append((model.get_submodule(parent), child, model.get_submodule(name)))
        setattr(model.get_submodule(parent), child, module)


def _swap(model: PreTrainedModel, inputs: Inputs, accuracy_level: int, logits: str) -> Undo:
    """Replaces every leaf; returns what to put back."""
    head = model.get_output_embeddings()
    undo = []
    for parent in list(model.modules()):
        if isinstance(parent, Scaled | Multiplied | GridExperts):
            continue
        for name, child in list(parent.named_children()):
            leaf = _leaf(child, inputs, accuracy_level)
            if child is head and logits == "last":
                leaf = LastPosition(leaf or child, inputs)
            if leaf is not None:
                undo.append((parent, name, child))
                setattr(parent, name, leaf)
    return undo


def _leaf(module: nn.Module, inputs: Inputs, accuracy_level: int) -> nn.Module | None:
    if isinstance(module, Scaled):
        return ScaledLeaf(module, _leaf(module.base, inputs, accuracy_level) or module.base, inputs)
    if isinstance(module, Multiplied):
        return MultipliedLeaf(module, _leaf(module.base, inputs, accuracy_level) or module.base)
    if isinstance(module, GridExperts):
        return QMoE(module, accuracy_level)
    if isinstance(module, GridLinear):
        return product(module, accuracy_level)
    if isinstance(module, GridEmbedding):
        return lookup(module)
    if isinstance(module, nn.Linear) and inputs.dense:
        return Dense(module)
    return RMSNorm.matching(module) if "Norm" in type(module).__name__ else None
