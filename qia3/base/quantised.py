"""Opens a checkpoint that was quantised elsewhere (GPTQ, AWQ, bitsandbytes NF4, compressed-tensors, MLX) and keeps its
codes: a model whose layers are already GridLinear.

    config.json          the architecture, and `quantization_config`, which is removed: transformers' own quantisers are not used
    *.safetensors        the layout's tensors per quantised layer (layouts.py), NAME.bias; everything else in float

The model is first built without memory (on torch's meta device), and the tensors that it needs are compared with those
in the files: names, types, shapes. Then it is built again, with memory for buffers only, and filled. Layers that the
file leaves in float (embedding, head, norms) are filled as they are; quantise.py takes them from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, GenerationConfig
from transformers.pytorch_utils import Conv1D

from qia3.base.complete import Misfit, held_by, likely, misshapen, note_untied, tied_names, ties
from qia3.base.drift import Moved
from qia3.base.family import auto_class
from qia3.base.given import Given
from qia3.base.idle import not_idle
from qia3.base.layout import FLOATS, Layout, Need
from qia3.base.layouts import read_layout
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.placed import place
from qia3.base.settings import take_settings, unsaid
from qia3.base.shards import raw
from qia3.base.sources import Source
from qia3.base.tensors import Tensors
from qia3.errors import BaseModelError


def open_quantised(source: Source) -> tuple[Any, Given] | None:
    """The model with its codes, and their description; None for a source that is not quantised. Raises BaseModelError."""
    if source.gguf_file is not None:
        return None
    config = AutoConfig.from_pretrained(source.name, trust_remote_code=False)
    settings = take_settings(config, Path(source.name))
    if settings is None:
        return None
    tensors = Tensors(Path(source.name))
    layout = read_layout(settings | {"quant_method": settings.get("quant_method") or unsaid(tensors)})
    check(_built(config, tensors, torch.device("meta")), layout, tensors)
    model = _built(config, tensors, init_empty_weights(include_buffers=False))
    moved = _fill(model, layout, tensors)
    if (tensors.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(tensors.folder)
    return model.eval().requires_grad_(False), Given.in_model(layout.codes, model, moved)


def check(model: Any, layout: Layout, tensors: Tensors) -> None:
    """Raises BaseModelError that names all tensors that are missing, have the wrong type or shape, or are not in the
    model.
    """
    places = tensors.places
    needed = dict(_needed(model, layout, tensors))
    left = [name for name in places if name not in needed]
    misfit = Misfit(
        missing=[name for name in needed if name not in places],
        left=not_idle(model.config, left, places),
        wrong=[
            misshapen(name, places[name], shape, types)
            for name, (types, shape) in needed.items()
            if name in places and (places[name].dtype not in types or places[name].shape != shape)
        ],
    )
    misfit.refuse(likely(model, misfit, places))


def _needed(model: Any, layout: Layout, tensors: Tensors) -> Iterator[tuple[str, Need]]:
    """Name, possible types and shape of each tensor that fills the model."""
    places, layers = tensors.places, layout.layers(model, tensors)
    if not layers:
        raise BaseModelError(
            "config.json says that the weights are quantised, but the files hold no quantised ones; fetch the "
            "model again"
        )
    for name, layer in layers.items():
        inputs, outputs = _size(model, name, tensors)
        try:
            needs = layer.needs(name, inputs, outputs, tensors)
        except ValueError as error:
            raise BaseModelError(f"cannot keep the codes of {name}: {error}") from error
        if f"{name}.bias" in places or getattr(model.get_submodule(name), "bias", None) is not None:
            needs["bias"] = FLOATS, (outputs,)
        yield from ((f"{name}.{kind}", need) for kind, need in needs.items())
    tied = tied_names(model)
    for name, tensor in model.state_dict().items():
        shared = name not in places and any(other in places for other in tied.get(name, ()))
        if name.rpartition(".")[0] not in layers and not shared:
            yield name, (FLOATS, tuple(tensor.shape))


def _size(model: nn.Module, name: str, tensors: Tensors) -> tuple[int, int]:
    """Inputs and outputs of a linear layer; for an embedding, row length and number of rows."""
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = None
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, Conv1D):
        return int(layer.nx), int(layer.nf)
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim, layer.num_embeddings
    first = next(place for place in tensors.places if place.startswith(f"{name}."))
    raise BaseModelError(f"the weights do not fit config.json: {first} is not a linear layer of the model")


def _fill(model: Any, layout: Layout, tensors: Tensors) -> dict[str, Moved]:
    """Fills the model. Returns the layers that differ from the files, and how far they moved."""
    layers, moved = layout.layers(model, tensors), {}
    for name, layer in layers.items():
        try:
            loaded = layer.load(name, tensors)
        except ValueError as error:
            raise BaseModelError(f"cannot keep the codes of {name}: {error}") from error
        place(model, name, loaded.weight, tensors)
        if loaded.moved is not None:
            moved[name] = loaded.moved
    for prefix, module in model.named_modules():
        if prefix in layers:
            continue
        for child, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            name = f"{prefix}.{child}" if prefix else child
            if name in tensors.places and isinstance(tensor, nn.Parameter):
                setattr(module, child, nn.Parameter(tensors.read(name), requires_grad=False))
            elif (
                name in tensors.places
                and not isinstance(module, GridLinear)
                and child not in module._non_persistent_buffers_set
            ):
                module._buffers[child] = tensors.read(name).to(tensor.dtype)
    _tie(model, tensors)
    return moved


def _tie(model: Any, tensors: Tensors) -> None:
    """Ties what config.json ties, as transformers does: an absent tensor is its partner's; two different tensors stay
    separate.
    """
    held = held_by(model, tensors.places)
    for target, source in ties(model).items():
        first = held.get(source, source)
        alike = target in held or _digest(tensors, target) == _digest(tensors, first)
        for name in (target, source) if alike else (source,):
            holder, _, child = name.rpartition(".")
            if name != first and not isinstance(model.get_submodule(holder), GridLinear | GridEmbedding):
                setattr(model.get_submodule(holder), child, model.get_parameter(first))
    note_untied(model)


def _digest(tensors: Tensors, name: str) -> bytes:
    return hashlib.sha256(raw(tensors.read(name))).digest()


def _built(config: Any, tensors: Tensors, place: AbstractContextManager[Any] | torch.device) -> Any:
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if layers > len(tensors.places):  # before memory is allocated for them
        raise BaseModelError(
            f"the weights do not fit config.json: it asks for {layers} layers, but there are only "
            f"{len(tensors.places)} tensors"
        )
    with place:
        return auto_class(config).from_config(config, dtype=torch.float32, trust_remote_code=False)
