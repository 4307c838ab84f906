"""Puts a layer of a quantised checkpoint into the model: a linear layer, or an embedding that the head may share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qia3.base.complete import tied_names
from qia3.base.family import get_module
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.quantise import embedding_scale
from qia3.base.tensors import Tensors
from qia3.base.weights import GridWeight
from qia3.errors import BaseModelError


def place(model: Any, name: str, weight: GridWeight | Tensor, tensors: Tensors) -> None:
    """`weight` [N, K] becomes the module `name`, with its bias. A float weight fills the module that is there.

    An embedding that is not the token embedding (learned positions), or that does more than scale its rows, stays in
    float.
    """
    module = model.get_submodule(name)
    if isinstance(module, nn.Embedding):
        _place_embedding(model, name, module, weight, tensors)
    elif isinstance(weight, GridWeight):
        bias = tensors.read(f"{name}.bias") if f"{name}.bias" in tensors.places else None
        model.set_submodule(name, GridLinear(weight, bias))
    else:
        _fill(module, weight.T.contiguous() if isinstance(module, Conv1D) else weight)
        if f"{name}.bias" in tensors.places:
            module.bias = nn.Parameter(tensors.read(f"{name}.bias"), requires_grad=False)


def _place_embedding(
    model: Any, name: str, module: nn.Embedding, weight: GridWeight | Tensor, tensors: Tensors
) -> None:
    if not isinstance(weight, GridWeight):
        _fill(module, weight)
        return
    if model.config.is_encoder_decoder:
        raise BaseModelError(
            f"{name} is quantised, but quantised embeddings of encoder-decoders are not supported; use a "
            "checkpoint with float embeddings"
        )
    scale = _scale(module, weight) if module is get_module(model, "get_input_embeddings") else None
    if scale is None:
        _fill(module, weight.dense(torch.float32))
        return
    head = get_module(model, "get_output_embeddings")
    head_name = next((n for n, m in model.named_modules() if m is head), "")
    shared = f"{head_name}.weight" in tied_names(model) and f"{head_name}.weight" not in tensors.places
    model.set_submodule(name, GridEmbedding(weight, torch.float32, None if scale == 1 else scale))
    if head is not None and shared:
        bias = tensors.read(f"{head_name}.bias") if f"{head_name}.bias" in tensors.places else None
        model.set_submodule(head_name, GridLinear(weight, bias))


def _scale(module: nn.Embedding, weight: GridWeight) -> float | None:
    """The constant that the module multiplies rows by, found by trying a few."""
    module.padding_idx = None  # it may be beyond these rows, and the module is dropped next
    module.num_embeddings = min(4, weight.outputs)
    _fill(module, weight.rows(slice(0, module.num_embeddings), torch.float32))
    return embedding_scale(module)


def _fill(module: nn.Module, weight: Tensor) -> None:
    module.weight = nn.Parameter(weight, requires_grad=False)
