"""Fills transformers' model from a GGUF file: one tensor per parameter and no tensor left over, or an error before
anything is read.

    model.layers.0.self_attn.q_proj.weight  <->  blk.0.attn_q.weight      gguf's own name table

llama.cpp's converter changes some tensors; UNDO reverses that. Worked example, `paired`, for one head of four rows:
rotary embedding pairs rows 0, 2 and rows 1, 3 in transformers but neighbours in llama.cpp, so the file has x0 x2 x1 x3,
and reading it as two columns, column by column, gives x0 x1 x2 x3.

    llama       rows of queries and keys, weights and biases     `paired`; Granite and SmolLM3 the same
    gemma 1..3  norms are stored as 1 + weight                   `minus_one`; Nemotron the same
    falcon      all queries, all keys, all values                `grouped`: per group of heads, as in the layer
    bloom       the same for one head per group
    (GPT-2)     layers of class Conv1D are stored transposed in transformers; recognised by the class

Tensors are dequantised one at a time, so the peak memory is the float model plus one tensor. Sources: conversion/*.py of
github.com/ggml-org/llama.cpp, modeling_gguf_pytorch_utils.py of transformers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gguf
import numpy as np
import torch
from accelerate import init_empty_weights
from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

from qia3.base.complete import note_untied
from qia3.base.family import auto_class
from qia3.base.gguf_config import read_gguf_config
from qia3.base.gguf_parts import Gguf
from qia3.base.gguf_rope import ROPE_TENSORS
from qia3.base.gguf_t5 import has_own_head, idle_tensors
from qia3.errors import BaseModelError

Dense = NDArray[np.float32]
Place = tuple[nn.Module, str]
LISTED = 8


def paired(dense: Dense, name: str, config: Any) -> Dense:
    heads = config.num_key_value_heads if ".attn_k." in name else config.num_attention_heads
    return dense.reshape(heads, -1, 2, *dense.shape[1:]).swapaxes(1, 2).reshape(dense.shape)


def minus_one(dense: Dense, name: str, config: Any) -> Dense:
    return dense - 1


def grouped(dense: Dense, name: str, config: Any) -> Dense:
    heads = config.num_attention_heads
    groups = (
        heads
        if config.model_type == "bloom"
        else getattr(config, "num_kv_heads", 1)
        if config.new_decoder_architecture
        else 1
    )
    width = len(dense) // (heads + 2 * groups)
    parts = np.split(dense, [heads * width, (heads + groups) * width])
    return np.concatenate([p.reshape(groups, -1, *dense.shape[1:]) for p in parts], axis=1).reshape(dense.shape)


UNDO: dict[str, tuple[re.Pattern[str], Callable[[Dense, str, Any], Dense]]] = {
    "llama": (re.compile(r"\.attn_[qk]\.(weight|bias)$"), paired),
    "granite": (re.compile(r"\.attn_[qk]\.(weight|bias)$"), paired),
    "smollm3": (re.compile(r"\.attn_[qk]\.(weight|bias)$"), paired),
    "gemma": (re.compile(r"norm\.weight$"), minus_one),
    "gemma2": (re.compile(r"norm\.weight$"), minus_one),
    "gemma3": (re.compile(r"norm\.weight$"), minus_one),
    "nemotron": (re.compile(r"norm\.weight$"), minus_one),
    "falcon": (re.compile(r"\.attn_qkv\.(weight|bias)$"), grouped),
    "bloom": (re.compile(r"\.attn_qkv\.(weight|bias)$"), grouped),
}


def load_gguf(file: Gguf) -> Any:
    """The float32 model of a file. Raises BaseModelError if file and model do not fit."""
    config = read_gguf_config(file)
    with init_empty_weights(include_buffers=False):
        model = auto_class(config).from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.tie_weights()
    if config.is_encoder_decoder and has_own_head(file):  # transformers ties it, whatever the configuration says
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
        note_untied(model)
    places = _places(model, file)
    _check(model, file, places)
    for tensor, (module, child, others) in places.items():
        filled = nn.Parameter(torch.from_numpy(_read(file, tensor, module, config)))
        for holder, attribute in [(module, child), *others]:
            holder._parameters[attribute] = filled
    return model.eval()


def tensor_name(file: Gguf, config: Any) -> Callable[[str], str | None]:
    """A function from a parameter's name in transformers to a tensor's in the file; None if gguf's table has none."""
    text = config.get_text_config()
    blocks = max(text.num_hidden_layers, getattr(text, "num_decoder_layers", 0))
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(known.get(file.architecture, gguf.MODEL_ARCH.LLAMA), blocks)

    def find(parameter: str) -> str | None:
        module, _, end = parameter.rpartition(".")
        found = table.get_name(module) or table.get_name(module.partition(".")[2])  # Bloom's names lack the first part
        return None if found is None else f"{found}.{end}"

    return find


def _places(model: Any, file: Gguf) -> dict[str, tuple[nn.Module, str, list[Place]]]:
    """Tensor of the file -> module and name of its parameter, and the places that share it.

    Raises BaseModelError if two parameters would take the same tensor.
    """
    find = tensor_name(file, model.config)
    seen: dict[nn.Parameter, list[tuple[str, Place]]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for child, parameter in module._parameters.items():
            if parameter is not None:
                seen.setdefault(parameter, []).append((f"{prefix}.{child}" if prefix else child, (module, child)))
    places: dict[str, tuple[nn.Module, str, list[Place]]] = {}
    for holders in seen.values():
        named = [(find(name) or name, place) for name, place in holders]
        tensor, first = next((pair for pair in named if pair[0] in file.tensors), named[0])
        if tensor in places:
            raise BaseModelError(
                f"{file.path.name}: several layers of the model would take tensor {tensor}, among them {holders[0][0]}"
            )
        places[tensor] = (*first, [place for _, place in named if place is not first])
    return places


def _check(model: Any, file: Gguf, places: dict[str, tuple[nn.Module, str, list[Place]]]) -> None:
    """Raises BaseModelError with everything that does not fit."""
    missing = [tensor for tensor in places if tensor not in file.tensors]
    idle = {*ROPE_TENSORS, *idle_tensors(file)}
    left = [name for name in file.tensors if name not in places and name not in idle]
    wrong = []
    for tensor, (module, child, _) in places.items():
        shape = tuple(getattr(module, child).shape)
        if tensor in file.tensors and _turned(file.tensors[tensor].shape, module, child) != shape:
            wrong.append(f"{tensor} has shape {list(file.tensors[tensor].shape)} instead of {list(shape)}")
    buffers = [n for n in model.state_dict() if n not in dict(model.named_parameters(remove_duplicate=False))]
    told = [
        *([f"missing: {_listed(missing)}"] if missing else []),
        *([f"not in the model: {_listed(left)}"] if left else []),
        *wrong[:LISTED],
        *([f"{len(wrong) - LISTED} more with another shape"] if len(wrong) > LISTED else []),
        *([f"not in this format: {_listed(buffers)}"] if buffers else []),
    ]
    if told:
        raise BaseModelError(
            f"{file.path.name} does not fit the model that it describes: "
            f"{'; '.join(told)}{_likely(file, missing, left)}"
        )


def _turned(shape: tuple[int, ...], module: nn.Module, child: str) -> tuple[int, ...]:
    return shape[::-1] if isinstance(module, Conv1D) and child == "weight" else shape


def _read(file: Gguf, tensor: str, module: nn.Module, config: Any) -> Dense:
    dense = file.read(tensor)
    pattern, undo = UNDO.get(file.architecture, (None, None))
    if pattern is not None and undo is not None and pattern.search(tensor):
        dense = undo(dense, tensor, config)
    return np.ascontiguousarray(dense.T if isinstance(module, Conv1D) and dense.ndim == 2 else dense)


def _likely(file: Gguf, missing: list[str], left: list[str]) -> str:
    """The likely reason, if there is one."""
    if any("lora" in name or name.endswith((".lora_a", ".lora_b")) for name in left):
        return " (is it the training state of an adapter? merge it into its base first)"
    if any(".attn_qkv." in name for name in left) and any(".attn_q." in name for name in missing):
        return (
            " (fused queries, keys and values are not supported for this architecture; convert the model without "
            "fusing them)"
        )
    if left and not missing and all(name.endswith(".bias") for name in left):
        return " (the architecture has no such biases in transformers; use the model's safetensors instead)"
    if missing and len(file.files) == 1:
        return " (is it a part of a split model, or an interrupted download? fetch the whole model)"
    return ""


def _listed(names: Iterable[str]) -> str:
    """Names, merged over layers: blk.[0-29].attn_q.bias."""
    return ", ".join(_folded(list(names)))


def _folded(names: list[str]) -> Iterator[str]:
    layers: dict[str, list[int]] = {}
    for name in names:
        number = re.search(r"\d+", name[:60])
        layers.setdefault(re.sub(r"\d+", "#", name[:60], count=1), []).append(int(number[0]) if number else -1)
    counts = Counter({kind: len(seen) for kind, seen in layers.items()})
    for kind, seen in layers.items():
        span = str(seen[0]) if counts[kind] == 1 else f"[{min(seen)}-{max(seen)}]"
        yield ascii(kind.replace("#", span))[1:-1]
