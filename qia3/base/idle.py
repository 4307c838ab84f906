"""Tensors in files that models compute themselves: the only ones that may be left over, each with the reason, and each
checked against what it should be.

    rotary_emb.inv_freq        rotary frequencies, which older versions of transformers saved with every layer
    position_ids               0, 1, 2 ..., likewise
    attn.bias, attention.bias  [1, 1, n, n] of ones below the diagonal: the causal mask of GPT-2, GPT-NeoX and similar
    masked_bias                the number that was written where that mask is zero
    position_embeddings.weight DeBERTa's, if config.json says that they are not added (position_biased_input)
    mtp.                       multi-token prediction: it drafts later tokens and is not needed for the next one

These may be absent: one of two names that share a tensor by config.json (`tie_word_embeddings`), if the other is there,
and in encoder-decoders:

    embed_positions.weight     Marian's sines and cosines, which transformers does not save
    final_logits_bias          BART's and similar, zero unless it was set
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from qia3.base.family import auto_class
from qia3.base.shards import Entry, read
from qia3.errors import BaseModelError

DRAFTS = re.compile(r"^(model\.)?mtp\.")
AS_STORED = 1e-2  # relative: frequencies in bfloat16 are off by 0.4 %


def not_idle(config: Any, names: Iterable[str], found: Mapping[str, Entry]) -> list[str]:
    """Those of the left-over `names` that no reason above covers.

    Raises BaseModelError if rotary frequencies differ from config.json.
    """
    rotations = [name for name in names if name.endswith("rotary_emb.inv_freq")]
    if rotations:
        _check_rotations(config, rotations, found)
    return [name for name in names if name not in rotations and not _is_idle(config, name, found[name])]


def is_computed(model: Any, name: str) -> bool:
    """Whether a tensor that no file has is computed by the model from its sizes."""
    holder, _, child = name.rpartition(".")
    module = model.get_submodule(holder)
    if child == "weight" and isinstance(module, nn.Embedding):
        return hasattr(module, "create_weight") and "embed_positions" in holder
    return name == "final_logits_bias" and child in module._buffers


def _is_idle(config: Any, name: str, entry: Entry) -> bool:
    shape, end = entry.shape, name.rpartition(".")[2]
    if end == "masked_bias":
        return shape in ((), (1,))
    if end == "position_ids":
        row = read(entry).reshape(-1)
        return not row.is_floating_point() and torch.equal(row.long(), torch.arange(len(row)))
    if name.endswith((".attn.bias", ".attention.bias")) and shape[:2] == (1, 1) and len(shape) == 4:
        mask = read(entry)[0, 0] != 0
        return torch.equal(mask, torch.ones_like(mask).tril())
    if name.endswith(".position_embeddings.weight"):
        return getattr(config, "position_biased_input", True) is False
    return bool(DRAFTS.match(name))


def _check_rotations(config: Any, names: list[str], found: Mapping[str, Entry]) -> None:
    with init_empty_weights(include_buffers=False):
        model = auto_class(config).from_config(config, trust_remote_code=False)
    own = [buffer.float() for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
    other = [name for name in names if not _is_one_of(read(found[name]).float(), own)]
    if other:
        raise BaseModelError(
            f"the weights do not fit config.json: {', '.join(other[:3])}{' and others' if len(other) > 3 else ''}: "
            "its rotary frequencies differ from those that config.json gives (rope_theta); fetch config.json again"
        )


def _is_one_of(table: Tensor, own: list[Tensor]) -> bool:
    return any(table.shape == t.shape and torch.allclose(table, t, rtol=AS_STORED, atol=0) for t in own)
