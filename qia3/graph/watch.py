"""One pass of a few tokens through a decoder, with its attention watched layer by layer.

transformers hands queries, keys and values to whatever attention function is registered. The one registered here keeps
what it is handed, lets the model's own eager function answer, and keeps the answer. A second pass with the rotation made
the identity, and the first pass's answers handed out again, shows each layer's queries and keys as they are before they
are rotated, from the same hidden states:

    pass 1    x_i -> q_i, k_i rotated   -> o_i          pass 2    x_i -> q_i, k_i plain -> o_i of pass 1

So what a layer does is compared as numbers, and no table of families is kept.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from qia3.ia3.roles import attention

WATCH = "qia3_watch"
TOKENS = 12
ROTATION = "apply_rotary_pos_emb"


@dataclass(frozen=True)
class Call:
    """One call of the attention function. q [B, H, S, d], k and v [B, kv heads, T, d], answer [B, S, H, d]."""

    module: nn.Module
    name: str
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scaling: float | None
    extra: dict[str, Any]
    answer: Tensor

    @property
    def layer(self) -> int | None:
        """The index that the module keeps its keys and values under."""
        index = getattr(self.module, "layer_idx", None)
        return index if isinstance(index, int) else None

    @property
    def scale(self) -> float:
        return float(self.q.shape[-1] ** -0.5 if self.scaling is None else self.scaling)


@dataclass
class Watched:
    """`calls` in their order; `tables`: what each rotary module was called with, by its name."""

    calls: list[Call] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def sample_ids(model: PreTrainedModel, length: int = TOKENS) -> Tensor:
    """[1, length] of tokens that differ."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    return (torch.arange(length, device=model.device) * 37 + 5)[None] % vocabulary


def watch(model: PreTrainedModel, answers: Sequence[Tensor] | None = None) -> Watched:
    """Runs `sample_ids`. `answers`: what attention gives back, call by call, instead of what it computes."""
    seen = Watched()
    names = {m: n for n, m in model.named_modules()}

    def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **extra: Any) -> tuple[Tensor, None]:
        extra |= dict(zip(("attention_mask", "scaling", "dropout"), rest, strict=False))
        mask = extra.pop("attention_mask", None)
        answer = _eager(module)(module, q, k, v, mask, **extra)[0] if answers is None else answers[len(seen.calls)]
        scaling = extra.pop("scaling", None)
        seen.calls.append(Call(module, names[module], q, k, v, mask, scaling, extra, answer))
        return answer, None

    def keep(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.tables.setdefault(name, []).append(dict(signature(module.forward).bind(*args, **kwargs).arguments))

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    AttentionInterface.register(WATCH, attend)
    AttentionMaskInterface.register(WATCH, eager_mask)
    handles = [keep(name, module) for name, module in rotary_modules(model).items()]
    try:
        with attention(model, WATCH), torch.no_grad():
            model(input_ids=sample_ids(model), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def rotary_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that make tables of cosines and sines, by name."""
    return {n: m for n, m in model.named_modules() if n.endswith("rotary_emb")}


def rotation_files(model: nn.Module) -> list[ModuleType]:
    """The files of the model's classes that define the rotation."""
    names = {type(m).__module__ for m in model.modules()}
    return [sys.modules[n] for n in sorted(names) if hasattr(sys.modules[n], ROTATION)]


@contextmanager
def without_rotation(model: nn.Module) -> Iterator[None]:
    """Makes the model's rotation the identity, then puts it back."""
    files = rotation_files(model)
    originals = [getattr(file, ROTATION) for file in files]
    try:
        for file in files:
            setattr(file, ROTATION, _identity)
        yield
    finally:
        for file, original in zip(files, originals, strict=True):
            setattr(file, ROTATION, original)


def _identity(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return q, k


def _eager(module: nn.Module) -> Any:
    """The attention function that the module's own file falls back to."""
    return sys.modules[type(module).__module__].eager_attention_forward
