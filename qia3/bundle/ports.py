"""Names of the graphs' inputs and outputs, as the ecosystem's loaders look for them.

A decoder that stands alone:

    input_ids            int64 [batch_size, sequence_length]
    attention_mask       int64 [batch_size, total_sequence_length]
    past_key_values.I.P  float32 or int8 [batch_size, kv heads, past_sequence_length, head size]     P: key, value
    logits               float32 [batch_size, sequence_length or 1, vocabulary]
    present.I.P          float32 or int8 [batch_size, kv heads, total_sequence_length, head size]

An encoder, and the decoder that reads what it gives (1 in a mask: a token; padding may be on either side):

    input_ids            int64 [batch_size, encoder_sequence_length]
    attention_mask       int64 [batch_size, encoder_sequence_length]
    last_hidden_state    float32 [batch_size, encoder_sequence_length, hidden size]

    input_ids                     int64 [token_batch_size, sequence_length]
    encoder_attention_mask        int64 [batch_size, encoder_sequence_length]
    encoder_hidden_states         float32 [batch_size, encoder_sequence_length, hidden size]
    past_key_values.I.decoder.P   float32 [batch_size, kv heads, past_decoder_sequence_length, head size]
    past_key_values.I.encoder.P   float32 [batch_size, kv heads, past_encoder_sequence_length, head size]
    past_length                   int64 []     positions of the decoder's past that are valid; -1, its default: all of them
    logits                        float32 [token_batch_size, sequence_length or 1, vocabulary]
    present.I.decoder.P           float32 [batch_size, kv heads, total_decoder_sequence_length, head size]
    present.I.encoder.P           float32 [batch_size, kv heads, new_encoder_sequence_length, head size]

The keys and values of an encoder's states are those of the past and those of the states that the past lacks, from
past_encoder_sequence_length on: all of them at the first call, which has a past of no positions, and none afterwards.
(A past of a part of them is refused by the graphs of most families.)
present.I.encoder.P are the new ones alone; a caller keeps what the first call gave. token_batch_size is batch_size, or
any number where batch_size is 1: rows of tokens may share one row of the encoder's keys, values and mask. (The decoder's
own cache has a row for each row of tokens. It says batch_size all the same, for transformers.js knows that name alone.)

An encoder that stands alone (token_type_ids where its family has them; nought by default):

    input_ids, attention_mask, token_type_ids     int64 [batch_size, sequence_length]
    head.weight, head.bias                        float32 [rows, labels, hidden size] and [rows, labels]
    last_hidden_state                             float32 [batch_size, sequence_length, hidden size]
    sentence_embedding                            float32 [batch_size, hidden size]
    logits                                        float32 [batch_size, labels], of the pooled states
    token_logits                                  float32 [batch_size, sequence_length, labels], of each token's

Where the head of a task that labels tokens is a part of the graph, `logits` are those of the tokens, as loaders of token
classification want them, and there is no other.

A vector's input is called after its site (sites.py), [rows, 1, size].

A graph that learns (its shapes and tables: qia3.graph.trainable) reads TREES, or input_ids alone where a model does not
pack, TOKENS, TABLES and the vectors [1, 1, size], and gives LOSSES and each vector's gradient, NAME.gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

INPUT_IDS, ATTENTION_MASK, LOGITS = "input_ids", "attention_mask", "logits"
ENCODER_MASK, ENCODER_STATES, LAST_STATE = "encoder_attention_mask", "encoder_hidden_states", "last_hidden_state"
PAST_LENGTH = "past_length"
TOKEN_TYPES, EMBEDDING, TOKEN_LOGITS = "token_type_ids", "sentence_embedding", "token_logits"
HEAD_WEIGHT, HEAD_BIAS = HEAD = ("head.weight", "head.bias")
PAST, PRESENT = "past_key_values.", "present."
PARTS = ("key", "value")
TREES, TOKENS = (INPUT_IDS, "position_ids", "tree", "branch"), ("places", "read", "targets")
TABLES = ("mean", "right", "wrong", "member", "chosen")
LOSSES, GRADIENT = "losses", ".gradient"
SELF, CROSS = "decoder", "encoder"  # whose keys and values: the decoder's own tokens', the encoder's states'
BATCH, SEQUENCE, TOTAL, BEFORE, ROWS = (
    *("batch_size", "sequence_length", "total_sequence_length", "past_sequence_length", "rows"),
)
TOKEN_BATCH, LABELS = "token_batch_size", "labels"
ENCODER_SEQUENCE, ENCODER_BEFORE, ENCODER_NEW = (
    *("encoder_sequence_length", "past_encoder_sequence_length", "new_encoder_sequence_length"),
)
DECODER_BEFORE, DECODER_TOTAL = "past_decoder_sequence_length", "total_decoder_sequence_length"


MULTIPLE = 8  # of which GroupQueryAttention takes sizes of heads


CACHE_TYPES: dict[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(int8)": np.int8}


class Cache(NamedTuple):
    """What a graph keeps of each position in each layer: so many heads of keys, and of values, of this size."""

    heads: int
    size: int


def cache_type(told: str) -> type[np.generic]:
    """The numbers that a cache of this type in ONNX Runtime's words holds. Raises ValueError."""
    if told not in CACHE_TYPES:
        raise ValueError(f"a cache of {told} is none that is known: {', '.join(CACHE_TYPES)}")
    return CACHE_TYPES[told]


def cache_names(layers: int, prefix: str) -> list[str]:
    """past_key_values.0.key, past_key_values.0.value, past_key_values.1.key, ..."""
    return [f"{prefix}{i}.{part}" for i in range(layers) for part in PARTS]


def cross_cache_names(layers: int, prefix: str) -> list[str]:
    """past_key_values.0.decoder.key, .0.decoder.value, .0.encoder.key, .0.encoder.value, .1.decoder.key, ..."""
    return [f"{prefix}{i}.{whose}.{part}" for i in range(layers) for whose in (SELF, CROSS) for part in PARTS]
