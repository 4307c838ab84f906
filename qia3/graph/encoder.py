"""An encoder alone as it is exported: the real transformers model with its leaves lowered (decoder.py), attention as in
an encoder-decoder's encoder (seq2seq.py), then pooling and a head.

    p = pooled(states)                the mean over the tokens, or the first token's state
    sentence_embedding = p            normalised to unit length if the base says so
    logits = W p + b                  W [rows, labels, d] and b [rows, labels] are inputs, like the vectors
    token_logits = W states + b       per token; this costs as much as one more attention head

The head is in float32: it is as small as a few vectors. In a batch each row may have its own head, and so its own task;
a head with fewer labels than the widest is padded with biases so low that softmax ignores them. In a merged model the
head is part of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

import onnx_ir as ir
import torch
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn
from torch.export import Dim
from torch.onnx.ops import symbolic
from transformers import AttentionInterface, PreTrainedModel

from qia3.base.pooling import embedded, pooled, pooling_of
from qia3.bundle.head import Head
from qia3.bundle.ports import (
    ATTENTION_MASK,
    BATCH,
    EMBEDDING,
    HEAD_BIAS,
    HEAD_WEIGHT,
    INPUT_IDS,
    LABELS,
    LAST_STATE,
    LOGITS,
    ROWS,
    SEQUENCE,
    TOKEN_LOGITS,
    TOKEN_TYPES,
)
from qia3.graph.decoder import put, swapped
from qia3.graph.distance import constants
from qia3.graph.encoder_passes import DefaultHead, DefaultTypes
from qia3.graph.export import quiet, trace
from qia3.graph.passes import Dimensions, run_passes
from qia3.graph.relative import tabulated
from qia3.graph.rotary import lookups
from qia3.graph.seq2seq import ATTENTION, Reader, Shared, attend
from qia3.graph.stacks import attentions, reaching
from qia3.graph.watch import watch
from qia3.ia3.roles import attention
from qia3.ia3.vectors import Scaled

DIMENSIONS: Dimensions = {
    INPUT_IDS: (BATCH, SEQUENCE),
    ATTENTION_MASK: (BATCH, SEQUENCE),
    TOKEN_TYPES: ("token_types_batch_size", "token_types_length"),  # 1 each by default
    LAST_STATE: (BATCH, SEQUENCE, None),
    EMBEDDING: (BATCH, None),
    HEAD_WEIGHT: (ROWS, LABELS, None),
    HEAD_BIAS: (ROWS, LABELS),
    LOGITS: (BATCH, LABELS),
    TOKEN_LOGITS: (BATCH, SEQUENCE, LABELS),
}


class Pooled(Reader):
    """forward(input_ids, attention_mask, token types, vectors, head) -> (states, embedding, logits, token logits); for
    export only. `head`: weight and bias as inputs, or empty if `own` is part of the graph; then it has only one kind of
    logits.
    """

    def __init__(self, model: PreTrainedModel, state: Shared, sizes: dict[str, int], own: Head | None) -> None:
        super().__init__(model, state, sizes)
        self.how, self.own = pooling_of(model.config), own
        self.weight = None if own is None else nn.Buffer(torch.from_numpy(own.weight)[None])
        self.bias = None if own is None else nn.Buffer(torch.from_numpy(own.bias)[None])

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, types: list[Tensor], vectors: list[Tensor], head: list[Tensor]
    ) -> tuple[Tensor, ...]:
        extra = {}
        if types:  # [1, 1] by default, which broadcasts to every token
            everywhere = (types[0], torch.zeros_like(input_ids))
            extra[TOKEN_TYPES] = symbolic("Add", everywhere, {}, dtype=torch.long, shape=input_ids.shape, version=14)
        states = self.states(input_ids, attention_mask, vectors, **extra)
        vector = pooled(states, attention_mask, self.how)
        weight, bias = head or (self.weight, self.bias)
        assert weight is not None
        assert bias is not None
        of_text, of_tokens = ((self.own is None or self.own.per_token is which) for which in (False, True))
        logits = [_logits(weight, bias, vector[:, None])[:, 0]] if of_text else []
        logits += [_logits(weight, bias, states)] if of_tokens else []
        return states, embedded(vector, self.how), *logits


def _logits(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """[B, S, labels] of x [B, S, d]. The head has 1 or B rows, which torch's shapes cannot express, so the operator is
    emitted by name.
    """
    shape = (*x.shape[:2], weight.shape[1])
    product: Tensor = symbolic("MatMul", (x, weight.transpose(1, 2)), {}, dtype=x.dtype, shape=shape, version=13)
    found: Tensor = symbolic("Add", (product, bias[:, None]), {}, dtype=x.dtype, shape=shape, version=14)
    return found


@contextmanager
def lowered(model: PreTrainedModel, accuracy_level: int, positions: int, own: Head | None) -> Iterator[Pooled]:
    """The model with its leaves swapped for export leaves; restored afterwards.

    Raises BaseModelError if the graph does not support its attention.
    """
    seen = watch(model)
    places, tables = reaching(model, attentions(model, seen), positions), lookups(model, seen, positions)
    state = Shared(positions=positions)
    sizes = {m.site.name: m.site.size for m in model.modules() if isinstance(m, Scaled)}
    AttentionInterface.register(ATTENTION, attend(state, places))
    with ExitStack() as stack:
        undo = stack.enter_context(swapped(model, state, accuracy_level, "all"))
        put(model, tables, undo)
        stack.enter_context(tabulated(model, state.span, positions))
        stack.enter_context(constants({m: p.distances for m, p in places.items() if p.distances is not None}))
        stack.enter_context(attention(model, ATTENTION))
        yield Pooled(model, state, sizes, own)


def export_encoder(
    model: PreTrainedModel, accuracy_level: int, positions: int, required: bool = False, own: Head | None = None
) -> ir.Model:
    """The graph of a model whose linear layers are 4-bit, with vectors unmerged or merged.

    `required`: vectors and head are inputs without defaults. `own`: a head that becomes part of the graph. Raises
    BaseModelError.
    """
    with lowered(model, accuracy_level, positions, own) as whole, quiet():
        sizes, width = whole.sizes, model.config.hidden_size
        types = [torch.zeros(2, 7, dtype=torch.long)] if has_types(model) else []
        vectors = [torch.ones(2, 1, size) for size in sizes.values()]
        head = [torch.ones(2, 3, width), torch.ones(2, 3)] if own is None else []
        ids, mask = torch.zeros(2, 7, dtype=torch.long), torch.ones(2, 7, dtype=torch.long)
        two, one = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC}
        shapes: tuple[Any, ...] = (two, two, [two] * len(types), [one] * len(vectors), [two] * len(head))
        inputs = [
            INPUT_IDS,
            ATTENTION_MASK,
            *[TOKEN_TYPES] * len(types),
            *sizes,
            *(HEAD_WEIGHT, HEAD_BIAS)[: len(head)],
        ]
        outputs = [LAST_STATE, EMBEDDING, LOGITS, *([TOKEN_LOGITS] if own is None else [])]
        program = trace(whole, (ids, mask, types, vectors, head), shapes, inputs, outputs)
        fold_constants(program.model)
        of_tokens = {LOGITS: DIMENSIONS[TOKEN_LOGITS]} if own is not None and own.per_token else {}
        made = run_passes(program.model, sizes, required, {**DIMENSIONS, **of_tokens}, "encoder")
        if types:
            DefaultTypes()(made)
        if own is None and not required:
            DefaultHead(width)(made)
        return made


def has_types(model: PreTrainedModel) -> bool:
    """Whether the family distinguishes a first and a second text (token types)."""
    return TOKEN_TYPES in signature(model.forward).parameters and (getattr(model.config, "type_vocab_size", 0) or 0) > 1
