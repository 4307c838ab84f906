"""What a GGUF file of the architecture `t5` says about its network; T5, T5 v1.1, flan-t5, mT5 and UMT5 are all called
that.

    block_count = 8, decoder_block_count = 6     layers of the encoder and of the decoder (default: the same)
    attention.key_length = 64                    d_kv; heads * d_kv need not be the width
    attention.relative_buckets_count = 32
    enc.blk.0.attn_q.weight   dec.blk.0.cross_attn_q.weight   enc.blk.0.attn_rel_b.weight   dec.output_norm.weight

Three things are not in any entry and follow llama.cpp, which goes by the tensors that it finds (src/models/t5.cpp):

    gated feed-forwards               with ffn_gate: gated GELU (its tanh form); without: ReLU. No T5 published in this
                                      format has another. transformers' own reader leaves ReLU in gated ones.
    relative position bias           in the first layer of each stack: T5; in every layer: UMT5. Distances are clipped at 128.
    a head                            without output.weight, or if it equals the embedding byte for byte, the head is the
                                      embedding, and T5 scales its input

The first T5s have a relative position bias for cross-attention as well, which no implementation uses (`idle_tensors`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import AutoConfig

from qia3.base.gguf_ids import embedding_rows, token_ids
from qia3.base.gguf_parts import Entries, Gguf
from qia3.errors import BaseModelError

T5 = "t5"
NUMBERS = {
    "embedding_length": "d_model",
    "feed_forward_length": "d_ff",
    "block_count": "num_layers",
    "attention.head_count": "num_heads",
    "attention.key_length": "d_kv",
    "attention.relative_buckets_count": "relative_attention_num_buckets",
}
OPTIONAL = ("decoder_block_count", "attention.value_length", "decoder_start_token_id", "context_length", "vocab_size")
EPSILON = "attention.layer_norm_rms_epsilon"
EPSILONS = (EPSILON, "attention.layer_norm_epsilon")
CROSS = "dec.blk.0.cross_attn_rel_b.weight"
FARTHEST = 128


def read_t5_config(file: Gguf) -> Any:
    """The configuration that the file describes. Raises BaseModelError."""
    entries = file.of_architecture()
    _check_entries(file, entries)
    layers = (
        entries.whole("block_count"),
        entries.whole("decoder_block_count" if "decoder_block_count" in entries else "block_count"),
    )
    rows = embedding_rows(file)
    gated = any(name.endswith(".ffn_gate.weight") for name in file.tensors)
    return AutoConfig.for_model(
        _kind(file, layers),
        **{name: entries.whole(entry) for entry, name in NUMBERS.items()},
        num_decoder_layers=layers[1],
        vocab_size=rows,
        layer_norm_epsilon=entries[EPSILON],
        relative_attention_max_distance=FARTHEST,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not has_own_head(file),
        decoder_start_token_id=entries.get("decoder_start_token_id"),
        **token_ids(file, rows, entries.get("vocab_size")),
    )


def has_own_head(file: Gguf) -> bool:
    """Whether the head is a table of its own rather than the embedding."""
    head, embedding = file.tensors.get("output.weight"), file.tensors.get("token_embd.weight")
    if head is None or embedding is None:
        return head is not None
    alike = (head.kind, head.shape) == (embedding.kind, embedding.shape)
    return not (alike and np.array_equal(file.raw("output.weight"), file.raw("token_embd.weight")))


def idle_tensors(file: Gguf) -> set[str]:
    """Tensors that may be in the file although the model does not use them."""
    return set() if file.architecture != T5 else {CROSS} if has_own_head(file) else {CROSS, "output.weight"}


def _check_entries(file: Gguf, entries: Entries) -> None:
    """Raises BaseModelError if an entry is missing or unknown, or two contradict each other."""
    missing = [name for name in NUMBERS if type(entries.get(name)) is not int or not entries[name]]
    missing += [EPSILON] if not isinstance(entries.get(EPSILON), float) else []
    if missing:
        raise BaseModelError(
            f"{file.path.name} is incomplete: t5.{', t5.'.join(missing)} is missing or not a number; "
            "fetch it again, or use another file"
        )
    unread = [f"{name} = {value}" for name, value in entries.items() if name not in {*NUMBERS, *OPTIONAL, *EPSILONS}]
    same = (("attention.value_length", "attention.key_length"), EPSILONS[::-1])
    unread += [
        f"{a} = {entries[a]} beside {b} = {entries[b]}" for a, b in same if entries.get(a, entries[b]) != entries[b]
    ]
    if unread:
        raise BaseModelError(
            f"{file.path.name} has settings that transformers' T5 cannot express: {', '.join(sorted(unread))}; "
            "use the model's safetensors instead"
        )


def _kind(file: Gguf, layers: tuple[int, int]) -> str:
    """T5 or UMT5, by the relative position biases. Raises BaseModelError if they fit neither."""
    stacks = dict(zip(("enc", "dec"), layers, strict=True))
    found = {s: [i for i in range(n) if f"{s}.blk.{i}.attn_rel_b.weight" in file.tensors] for s, n in stacks.items()}
    if all(places == [0] for places in found.values()):
        return "t5"
    if all(found[s] == list(range(n)) for s, n in stacks.items()):
        return "umt5"
    told = ", ".join(f"{s}.blk.{places or 'none'}" for s, places in found.items())
    raise BaseModelError(
        f"{file.path.name} has relative position biases (attn_rel_b) in {told}: T5 has one in the first layer "
        "of each stack, "
        "UMT5 one in every layer; fetch it again, or use the model's safetensors instead"
    )
