"""The two graphs of an encoder-decoder: torch.onnx.export on the real model with lowered leaves, then onnx-ir passes.

Both are traced in the same state of the model, and what they share (an embedding) is the same memory, which is written
once (external.py).
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import Sequential
from onnxscript.optimizer import fold_constants
from torch.export import Dim
from transformers import PreTrainedModel

from qia3.bundle.ports import (
    ATTENTION_MASK,
    BATCH,
    CROSS,
    DECODER_BEFORE,
    DECODER_TOTAL,
    ENCODER_BEFORE,
    ENCODER_MASK,
    ENCODER_NEW,
    ENCODER_SEQUENCE,
    ENCODER_STATES,
    INPUT_IDS,
    LAST_STATE,
    LOGITS,
    PAST,
    PAST_LENGTH,
    PRESENT,
    SEQUENCE,
    TOKEN_BATCH,
    cross_cache_names,
)
from qia3.graph.export import quiet, trace
from qia3.graph.passes import Dimensions, run_passes
from qia3.graph.seq2seq import CrossDecoder, Encoder, lowered
from qia3.graph.seq2seq_passes import AnyHeads, Length, NewStates, OneBatch, OwnShapes, StatesRows

ENCODER_DIMENSIONS: Dimensions = {
    INPUT_IDS: (BATCH, ENCODER_SEQUENCE),
    ATTENTION_MASK: (BATCH, ENCODER_SEQUENCE),
    LAST_STATE: (BATCH, ENCODER_SEQUENCE, None),
}


def export_seq2seq(
    model: PreTrainedModel, accuracy_level: int, positions: int, logits: str, required: bool = False
) -> dict[str, ir.Model]:
    """The graphs "encoder" and "decoder" of a model whose linear layers are 4-bit (or float, if left so), with vectors
    unmerged or merged.

    `required`: vectors are inputs without a default of ones. Raises BaseModelError.
    """
    with lowered(model, accuracy_level, positions, logits) as (encoder, decoder), quiet():
        return {"encoder": _encoder(encoder, required), "decoder": _decoder(decoder, required)}


def _encoder(encoder: Encoder, required: bool) -> ir.Model:
    size = encoder.model.get_encoder().config.hidden_size
    vectors = [torch.ones(2, 1, size) for _ in encoder.sizes]
    ids, mask = torch.zeros(2, 7, dtype=torch.long), torch.ones(2, 7, dtype=torch.long)
    shapes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, [{0: Dim.DYNAMIC}] * len(vectors))
    program = trace(encoder, (ids, mask, vectors), shapes, [INPUT_IDS, ATTENTION_MASK, *encoder.sizes], [LAST_STATE])
    fold_constants(program.model)
    return run_passes(program.model, encoder.sizes, required, ENCODER_DIMENSIONS, "encoder")


def _decoder(decoder: CrossDecoder, required: bool) -> ir.Model:
    config, layers = decoder.model.get_decoder().config, len(decoder.layers)
    past = [torch.zeros(2, p.kv_heads, length, p.size) for p in decoder.layers for length in (5, 5, 4, 4)]
    vectors = [torch.ones(2, 1, size) for size in decoder.sizes.values()]
    any_two = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    examples = (
        torch.zeros(2, 3, dtype=torch.long),
        torch.ones(2, 11, dtype=torch.long),
        torch.zeros(2, 7, decoder.model.get_encoder().config.hidden_size),
        torch.tensor(-1),
        past,
        vectors,
    )
    cache, rows = [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC}] * len(past), [{0: Dim.DYNAMIC}] * len(vectors)
    shapes: tuple[Any, ...] = (any_two, any_two, any_two, {}, cache, rows)
    inputs = [INPUT_IDS, ENCODER_MASK, ENCODER_STATES, PAST_LENGTH, *cross_cache_names(layers, PAST), *decoder.sizes]
    program = trace(decoder, examples, shapes, inputs, [LOGITS, *cross_cache_names(layers, PRESENT)])
    fold_constants(program.model)
    passes = [OneBatch(), StatesRows(), NewStates(), Length()]
    if any(p.size != config.hidden_size // config.num_attention_heads for p in decoder.layers):
        passes.append(AnyHeads())
    Sequential(*passes)(program.model)
    return OwnShapes()(run_passes(program.model, decoder.sizes, required, _dimensions(layers), "decoder")).model


def _dimensions(layers: int) -> Dimensions:
    names: dict[str, tuple[str | None, ...]] = {
        INPUT_IDS: (TOKEN_BATCH, SEQUENCE),
        ENCODER_MASK: (BATCH, ENCODER_SEQUENCE),
        ENCODER_STATES: (BATCH, ENCODER_SEQUENCE, None),
        LOGITS: (TOKEN_BATCH, SEQUENCE, None),
    }
    lengths = {PAST: (DECODER_BEFORE, ENCODER_BEFORE), PRESENT: (DECODER_TOTAL, ENCODER_NEW)}
    for start, both in lengths.items():
        for name in cross_cache_names(layers, start):
            names[name] = (BATCH, None, both[f".{CROSS}." in name], None)
    return names
