"""Names of the graphs' inputs and outputs, as common loaders expect them.

A decoder alone:

    input_ids            int64 [batch_size, sequence_length]
    attention_mask       int64 [batch_size, total_sequence_length]
    past_key_values.I.P  float32 or int8 [batch_size, kv heads, past_sequence_length, head size]     P: key, value
    logits               float32 [batch_size, sequence_length or 1, vocabulary]
    present.I.P          float32 or int8 [batch_size, kv heads, total_sequence_length, head size]

An encoder, and the decoder that reads its output (1 in a mask: a token; padding may be on either side):

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

The past holds keys and values of encoder states before past_encoder_sequence_length; the graph computes those of the
states after it: all of them at the first call, whose past is empty, and none afterwards. (The graphs of most families
refuse a past that covers only a part.) present.I.encoder.P holds the new ones only; a caller keeps what the first call
returned. token_batch_size is batch_size, or any number if batch_size is 1: several rows of tokens may share one row of
the encoder's keys, values and mask. (The decoder's own cache has a row per row of tokens. Its dimension is called
batch_size all the same, the only name that transformers.js knows.)

An encoder alone (token_type_ids if its family has them; zero by default):

    input_ids, attention_mask, token_type_ids     int64 [batch_size, sequence_length]
    head.weight, head.bias                        float32 [rows, labels, hidden size] and [rows, labels]
    last_hidden_state                             float32 [batch_size, sequence_length, hidden size]
    sentence_embedding                            float32 [batch_size, hidden size]
    logits                                        float32 [batch_size, labels], from the pooled states
    token_logits                                  float32 [batch_size, sequence_length, labels], from each token's state

If the head of a task that labels tokens is part of the graph, `logits` are those of the tokens, as loaders for token
classification expect, and there is no token_logits.

A vector's input is named after its site (sites.py), [rows, 1, size].

A training graph (shapes and tables: qia3.graph.trainable) reads TREES, or input_ids alone if a model does not support
packing, and TOKENS, TABLES and the vectors [1, 1, size]. It returns LOSSES and the gradient of each vector,
NAME.gradient.
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
SELF, CROSS = "decoder", "encoder"  # whose keys and values: of the decoder's own tokens, of the encoder's states
BATCH, SEQUENCE, TOTAL, BEFORE, ROWS = (
    *("batch_size", "sequence_length", "total_sequence_length", "past_sequence_length", "rows"),
)
TOKEN_BATCH, LABELS = "token_batch_size", "labels"
ENCODER_SEQUENCE, ENCODER_BEFORE, ENCODER_NEW = (
    *("encoder_sequence_length", "past_encoder_sequence_length", "new_encoder_sequence_length"),
)
DECODER_BEFORE, DECODER_TOTAL = "past_decoder_sequence_length", "total_decoder_sequence_length"


MULTIPLE = 8  # GroupQueryAttention takes head sizes that are multiples of this


CACHE_TYPES: dict[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(int8)": np.int8}


class Cache(NamedTuple):
    """The cache per layer and position: number of key (and value) heads, and their size."""

    heads: int
    size: int


def cache_type(told: str) -> type[np.generic]:
    """The numpy type for a cache type in ONNX Runtime's notation. Raises ValueError for any other."""
    if told not in CACHE_TYPES:
        raise ValueError(f"a cache of type {told} is not supported; supported: {', '.join(CACHE_TYPES)}")
    return CACHE_TYPES[told]


def cache_names(layers: int, prefix: str) -> list[str]:
    """past_key_values.0.key, past_key_values.0.value, past_key_values.1.key, ..."""
    return [f"{prefix}{i}.{part}" for i in range(layers) for part in PARTS]


def cross_cache_names(layers: int, prefix: str) -> list[str]:
    """past_key_values.0.decoder.key, .0.decoder.value, .0.encoder.key, .0.encoder.value, .1.decoder.key, ..."""
    return [f"{prefix}{i}.{whose}.{part}" for i in range(layers) for whose in (SELF, CROSS) for part in PARTS]
