"""Quantises a model folder without ever holding it in memory as floats: a model of shapes only is filled and quantised
layer by layer.

    shapes  ->  layer 1: read, quantised, released  ->  layer 2  ->  ...  ->  the rest is read: norms, biases, the embedding

So the peak memory is the 4-bit size plus one tensor. Buffers (rotary tables) are computed by the model's own code; only
parameters are empty.

This is used if loading is mere copying: every parameter is in the files under its own name, or under one that it is
tied to. Where transformers renames, fuses or converts (experts in one tensor, 8-bit files, parts kept in float32),
transformers loads the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping

from qia3.base.complete import note_untied
from qia3.base.experts import float_experts
from qia3.base.family import auto_class
from qia3.base.memory import give_back
from qia3.base.shards import Entry, raw, read

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Place = tuple[nn.Module, str]


@dataclass(frozen=True)
class Stream:
    """`model` has no parameters yet; `sources` gives, for each parameter, where its bytes are and all places that share
    it.
    """

    model: Any
    dtype: torch.dtype
    sources: dict[Place, tuple[Entry, tuple[Place, ...]]]

    def layers(self, names: Iterable[str]) -> Iterator[str]:
        """Iterates over `names` of modules: each is filled when it is yielded and emptied when the next one is; after
        the last, everything else is filled.
        """
        for name in names:
            layer = self.model.get_submodule(name)
            self._fill(layer)
            yield name
            layer._parameters.clear()  # quantised by now; the empty layer may still be referenced
            give_back()
        for module in self.model.modules():
            self._fill(module)
        self.sources.clear()  # it refers to modules that are replaced next: the embedding

    def _fill(self, module: nn.Module) -> None:
        """Uses the model's float type, as transformers does, whatever type the file has."""
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                entry, places = self.sources[module, name]
                filled = nn.Parameter(read(entry).to(self.dtype), requires_grad=False)
                for holder, attribute in places:
                    holder._parameters[attribute] = filled


def open_stream(folder: Path, found: Mapping[str, Entry]) -> Stream | None:
    """The empty model of a folder whose files hold `found`; None if transformers would do more than copy, or cannot
    read it either.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        dtype = _dtype(config, found)
        if dtype is None or getattr(config, "quantization_config", None) is not None:
            return None
        with init_empty_weights(include_buffers=False):
            model = auto_class(config).from_config(config, dtype=dtype, trust_remote_code=False)
        model.tie_weights()  # every assignment under init_empty_weights creates a new parameter
        if config.is_encoder_decoder:
            _untie(model, found)
        sources = _sources(model, found, config.is_encoder_decoder)
        if sources is None or _converted(model, dtype) or float_experts(model):
            return None
        model.generation_config = _generation(folder)
    except Exception:  # can be any exception; transformers then loads the folder itself and its error is reported
        return None
    return Stream(model, dtype, sources)


def _dtype(config: Any, found: Mapping[str, Entry]) -> torch.dtype | None:
    """The configuration's type, or the files' if they have only one, as transformers chooses it."""
    kinds = {entry.dtype for entry in found.values() if entry.dtype.is_floating_point}
    chosen = config.dtype or (next(iter(kinds)) if len(kinds) == 1 else None)
    return chosen if chosen in FLOATS else None


def _converted(model: Any, dtype: torch.dtype) -> bool:
    """Whether transformers changes anything between file and parameter, or keeps a part of the model in another type:
    T5's `wo` in a float16 model, its strict list in any 16-bit model.
    """
    half = model._keep_in_fp32_modules and dtype == torch.float16
    apart = half or (model._keep_in_fp32_modules_strict and dtype != torch.float32)
    return bool(get_model_conversion_mapping(model, add_legacy=False)) or bool(apart)


def _untie(model: Any, found: Mapping[str, Entry]) -> None:
    """Gives a separate parameter to each name that config.json ties to another but that has a different tensor in the
    files (the head of T5 v1.1). Names that still share one stand for one tensor, however often it is stored.
    """
    for parameter, seen in _places(model).items():
        there = [(name, place) for name, place in seen if name in found]
        first = _digest(found[there[0][0]]) if len(there) > 1 else b""
        for name, (module, child) in there[1:]:
            if _digest(found[name]) != first:
                module._parameters[child] = nn.Parameter(torch.empty_like(parameter), requires_grad=False)
    note_untied(model)


def _digest(entry: Entry) -> bytes:
    return hashlib.sha256(raw(read(entry))).digest()


def _places(model: nn.Module) -> dict[nn.Parameter, list[tuple[str, Place]]]:
    """Every parameter with its names and places."""
    names: dict[nn.Parameter, list[tuple[str, Place]]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(parameter, []).append((f"{prefix}.{name}" if prefix else name, (module, name)))
    return names


def _sources(
    model: nn.Module, found: Mapping[str, Entry], several: bool
) -> dict[Place, tuple[Entry, tuple[Place, ...]]] | None:
    """None if a parameter is in no file, in two that might differ (unless `several`), or in one with another shape; or
    if a buffer is saved, too.
    """
    names = _places(model)
    sources: dict[Place, tuple[Entry, tuple[Place, ...]]] = {}
    for parameter, seen in names.items():
        own = [found[name] for name, _ in seen if name in found]
        if (
            not own
            or (len(own) > 1 and not several)
            or own[0].shape != tuple(parameter.shape)
            or own[0].dtype not in FLOATS
        ):
            return None
        places = tuple(place for _, place in seen)
        sources |= dict.fromkeys(places, (own[0], places))
    state = {name for seen in names.values() for name, _ in seen}
    return sources if set(model.state_dict()) <= state else None


def _generation(folder: Path) -> GenerationConfig:
    """Found as transformers does: in a file of its own, else in config.json."""
    try:
        return GenerationConfig.from_pretrained(folder)
    except OSError:
        return GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)
