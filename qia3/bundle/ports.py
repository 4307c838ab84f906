"""Names of a decoder graph's inputs and outputs, as the ecosystem's loaders look for them.

    input_ids            int64 [batch_size, sequence_length]
    attention_mask       int64 [batch_size, total_sequence_length]
    past_key_values.I.P  float32 [batch_size, kv heads, past_sequence_length, head size]     P: key, value
    logits               float32 [batch_size, sequence_length or 1, vocabulary]
    present.I.P          float32 [batch_size, kv heads, total_sequence_length, head size]

A vector's input is called after its site (sites.py), [rows, 1, size].
"""

from __future__ import annotations

INPUT_IDS, ATTENTION_MASK, LOGITS = "input_ids", "attention_mask", "logits"
PAST, PRESENT = "past_key_values.", "present."
PARTS = ("key", "value")
BATCH, SEQUENCE, TOTAL, BEFORE, ROWS = (
    *("batch_size", "sequence_length", "total_sequence_length", "past_sequence_length", "rows"),
)


def cache_names(layers: int, prefix: str) -> list[str]:
    """past_key_values.0.key, past_key_values.0.value, past_key_values.1.key, ..."""
    return [f"{prefix}{i}.{part}" for i in range(layers) for part in PARTS]
