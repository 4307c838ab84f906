"""Token ids in a GGUF file, for every architecture."""

from __future__ import annotations

from typing import Any

from qia3.base.gguf_file import Array, Value
from qia3.base.gguf_parts import Gguf
from qia3.errors import BaseModelError

TOKENS = {"bos_token_id": "bos_token_id", "pad_token_id": "padding_token_id"}


def embedding_rows(file: Gguf) -> int:
    """Rows of the embedding. Raises BaseModelError if there is none."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise BaseModelError(
            f"{file.path.name} has no embedding (token_embd.weight): is it only one part of a split model?"
        )
    return embedding.shape[0]


def token_ids(file: Gguf, rows: int, told: Value | None) -> dict[str, Any]:
    """Special token ids, None if the file has none: never the class's defaults."""
    listed = file.values.get("tokenizer.ggml.tokens")
    for what, count in (("vocab_size", told), ("tokens", listed.count if isinstance(listed, Array) else None)):
        if isinstance(count, int) and (count > rows or (what == "vocab_size" and count != rows)):
            raise BaseModelError(
                f"{file.path.name} says {what} = {count}, but its embedding has {rows} rows; fetch it again, "
                "or use another file"
            )
    ids = {name: file.values.get(f"tokenizer.ggml.{entry}") for name, entry in TOKENS.items()}
    ends = [file.values.get(f"tokenizer.ggml.{entry}") for entry in ("eos_token_id", "eot_token_id")]
    known = list(dict.fromkeys(i for i in ends if i is not None))
    wrong = [i for i in (*ids.values(), *known) if i is not None and not (type(i) is int and 0 <= i < rows)]
    if wrong:
        raise BaseModelError(
            f"{file.path.name} names token {wrong[0]}, but its embedding has {rows} rows; fetch it again"
        )
    return {**ids, "eos_token_id": known if len(known) > 1 else known[0] if known else None}
