"""An encoder alone as it is exported: the real transformers model with its leaves lowered (decoder.py), its attention as
an encoder-decoder's encoder has it (seq2seq.py), and behind it what makes one vector of a text, and a head.

    p = pooled(states)                the mean over the tokens, or the first one's state
    sentence_embedding = p            of length one, where the base says so
    logits = W p + b                  W [rows, labels, d] and b [rows, labels] are inputs, as the vectors are
    token_logits = W states + b       of each token; they cost what one more head of attention would

The head is in float32: it is the size of a few vectors. In a batch each row may have a head of its own, and so a task of
its own; of fewer labels than the widest, it is filled up with biases that no softmax sees. Merged, the head is a part of
the graph.
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
    TOKEN_TYPES: ("token_types_batch_size", "token_types_length"),  # 1 each, by default
    LAST_STATE: (BATCH, SEQUENCE, None),
    EMBEDDING: (BATCH, None),
    HEAD_WEIGHT: (ROWS, LABELS, None),
    HEAD_BIAS: (ROWS, LABELS),
    LOGITS: (BATCH, LABELS),
    TOKEN_LOGITS: (BATCH, SEQUENCE, LABELS),
}


class Pooled(Reader):
    """forward(input_ids, attention_mask, token types, vectors, head) -> (states, embedding, logits, of the tokens); to be
    exported, not run. `head`: weight and bias as inputs, or none, where `own` is a part of the graph; it has logits of
    the one kind then.
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
        if types:  # [1, 1] by default, for every token of every row
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
    """[B, S, labels] of x [B, S, d]. Rows of the head are 1 or the batch, which torch's shapes cannot say: by name."""
    shape = (*x.shape[:2], weight.shape[1])
    product: Tensor = symbolic("MatMul", (x, weight.transpose(1, 2)), {}, dtype=x.dtype, shape=shape, version=13)
    found: Tensor = symbolic("Add", (product, bias[:, None]), {}, dtype=x.dtype, shape=shape, version=14)
    return found


@contextmanager
def lowered(model: PreTrainedModel, accuracy_level: int, positions: int, own: Head | None) -> Iterator[Pooled]:
    """The model with its leaves swapped for export leaves; it is itself again afterwards.

    Raises BaseModelError where its attention is none that the graph has.
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
    """The graph of a model whose linear layers are 4-bit and whose vectors are at the side, or folded.

    `required`: vectors and head are inputs that have to be fed, instead of having defaults. `own`: the head that is a
    part of the graph. Raises BaseModelError.
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
    """Whether the family tells a first text from a second one."""
    return TOKEN_TYPES in signature(model.forward).parameters and (getattr(model.config, "type_vocab_size", 0) or 0) > 1
