"""Pre-training heads of an encoder, which a new task does not use: tensors in a folder's files besides the body.

    bert.encoder.layer.0...      the body                  cls.predictions...    for hidden words
    bert.pooler.dense.weight     for the next sentence     classifier.weight     somebody's own labels

transformers' own classes say which tensors those are: the class that config.json names under `architectures`, and the
classes that the family is trained with. A tensor is left out if one of them has it, in this shape, or if the body has
its own prefix in the file and the tensor is outside it, like the discriminator of DeBERTa-v3, for which transformers
has no class:

    deberta.encoder.layer.0...   the body              mask_predictions.dense.weight    beside it

Any other tensor is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining

from qia3.base.family import is_encoder
from qia3.base.shards import Entry
from qia3.progress import say


def not_heads(config: Any, names: Iterable[str], found: Mapping[str, Entry]) -> list[str]:
    """Those of the left-over `names` that belong to no head; prints which ones do. For encoders only."""
    names = list(names)
    if not names or not is_encoder(config):
        return names
    known = dict(_tensors(config))
    body = f"{AutoModel._model_mapping[type(config)].base_model_prefix}."
    apart = all(name.startswith(body) for name in found.keys() - set(names))
    heads = [n for n in names if known.get(n) == found[n].shape or (apart and not n.startswith(body))]
    if heads:
        parts = sorted({".".join(name.split(".")[:2]) for name in heads})
        say(f"left out, because it belongs to another task: {', '.join(parts)} ({len(heads)} tensors)")
    return [name for name in names if name not in heads]


def _tensors(config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors of these classes, as their files have them."""
    named: list[Any] = [getattr(transformers, name, None) for name in config.architectures or ()]
    usual = [
        auto._model_mapping.get(type(config), None)
        for auto in (AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining)
    ]
    classes: dict[Any, None] = dict.fromkeys(made for made in (*named, *usual) if isinstance(made, type))
    for made in classes:
        if made.config_class is not type(config):
            continue
        with torch.device("meta"):
            state = made(config).state_dict()
        for name, tensor in state.items():
            yield name, tuple(tensor.shape)
            yield f"{made.base_model_prefix}.{name}", tuple(tensor.shape)
            yield name.removeprefix(f"{made.base_model_prefix}."), tuple(tensor.shape)
