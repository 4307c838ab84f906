"""One pass of a few tokens through a model, with its attention watched layer by layer.

transformers passes queries, keys and values to whatever attention function is registered. The one registered here
records them, calls the model's own eager function, and records the answer. A second pass, with rotary embedding
replaced by the identity and the first pass's answers returned again, shows each layer's queries and keys before
rotation, from the same hidden states:

    pass 1    x_i -> q_i, k_i rotated   -> o_i          pass 2    x_i -> q_i, k_i plain -> o_i of pass 1

So what a layer does is compared numerically, without a table of families.
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

from qia3.base.family import is_encoder
from qia3.errors import BaseModelError, first_line
from qia3.graph import distance
from qia3.graph.scores import own_window, taken_apart
from qia3.ia3.by_hand import by_hand
from qia3.ia3.roles import attention, device_of

WATCH = "qia3_watch"
TOKENS, FEWER = 12, 7
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
    by_hand: bool = False

    @property
    def layer(self) -> int | None:
        """The index of the module's keys and values in the cache; if it computes attention itself, the index of its
        layer.
        """
        index = getattr(self.module, "layer_idx", None)
        if index is None and self.by_hand:
            index = next((int(part) for part in self.name.split(".") if part.isdigit()), None)
        return index if isinstance(index, int) else None

    @property
    def scale(self) -> float:
        return float(self.q.shape[-1] ** -0.5 if self.scaling is None else self.scaling)


@dataclass
class Watched:
    """`calls` in order; `tables`: the arguments of each rotary module, by name."""

    calls: list[Call] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def sample_ids(model: PreTrainedModel, length: int = TOKENS) -> Tensor:
    """[1, length] of distinct tokens."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    return (torch.arange(length, device=device_of(model)) * 37 + 5)[None] % vocabulary


def sample(model: PreTrainedModel) -> dict[str, Tensor]:
    """The input of a pass: `sample_ids`, and for an encoder-decoder's decoder fewer of them, so that lengths tell whose
    keys are whose. Masks are explicit, since some models (T5Gemma) otherwise treat the padding token's id as padding.
    """
    ids = sample_ids(model)
    if not model.config.is_encoder_decoder:
        return {"input_ids": ids}
    few = ids[:, :FEWER]
    masks = {"attention_mask": torch.ones_like(ids), "decoder_attention_mask": torch.ones_like(few)}
    return {"input_ids": ids, "decoder_input_ids": few, **masks}


def watch(model: PreTrainedModel, answers: Sequence[Tensor] | None = None) -> Watched:
    """Runs `sample`. `answers`: what attention returns, call by call, instead of its own result."""
    seen, reads = Watched(), is_encoder(model.config)
    names = {m: n for n, m in model.named_modules()}

    def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **extra: Any) -> tuple[Tensor, None]:
        extra |= dict(zip(("attention_mask", "scaling", "dropout"), rest, strict=False))
        mask, made = extra.pop("attention_mask", None), extra.pop("made", None)
        if made is not None:
            answer = made.answer
            if reads:
                apart = distance.taken_apart(made, q, k)
                scaling, extra = (None if apart is None else apart.scale), {"distances": apart}
                extra |= {} if apart is None else {"position_bias": distance.added(apart, q, k)}
            else:
                scaling, mask = taken_apart(made.scores, q, k)
                extra = {"sliding_window": own_window(module)}
        else:
            answer = _eager(module)(module, q, k, v, mask, **extra)[0] if answers is None else None
            scaling = extra.pop("scaling", None)
        answer = answer if answers is None else answers[len(seen.calls)]
        seen.calls.append(Call(module, names[module], q, k, v, mask, scaling, extra, answer, made is not None))
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
            model(**sample(model), use_cache=False)
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError) as error:
        if answers is not None:  # a rotation function with other arguments
            return Watched()
        raise BaseModelError(_does_not_run(model, error)) from error
    finally:
        for handle in handles:
            handle.remove()
    return seen


@torch.no_grad()
def _does_not_run(model: PreTrainedModel, error: Exception) -> str:
    """Explains whether the model itself fails, or whether its attention is misread (DeBERTa multiplies more than
    queries by keys).
    """
    name = type(model).__name__
    own = sorted({type(module).__name__ for module in by_hand(model).values()})
    try:
        model(**sample(model), use_cache=False)
    except Exception:  # a model's code can raise anything
        own = []
    if not own:
        return f"{name} does not run on a text alone: {first_line(error)}"
    return (
        f"{name} cannot be shipped: it computes attention in its own code ({', '.join(own)}), which is not "
        "softmax(scale q k^T + bias) v"
    )


@torch.no_grad()
def other_states(model: PreTrainedModel) -> list[str]:
    """Classes of modules besides attention whose last position depends on earlier ones: they carry a state of their
    own.

    Found by running each child of a decoder layer again on its own inputs with the second-last position changed.
    """
    attention_names = {call.name for call in watch(model).calls}
    layers = {name.rpartition(".")[0] for name in attention_names}
    inputs: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    children = [c for layer in layers for n, c in model.get_submodule(layer).named_children()
                if f"{layer}.{n}" not in attention_names]  # fmt: skip
    handles = [
        c.register_forward_pre_hook(lambda m, args, kwargs: inputs.update({m: (args, kwargs)}), with_kwargs=True)
        for c in children
    ]
    try:
        model(input_ids=sample_ids(model), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return sorted({type(m).__name__ for m, (args, kwargs) in inputs.items() if _looks_back(m, args, kwargs)})


def _looks_back(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the last position of its output depends on the second-last position of its input."""
    changed = [_changed(a) for a in args], {name: _changed(a) for name, a in kwargs.items()}
    try:
        before, after = module(*args, **kwargs), module(*changed[0], **changed[1])
    except (TypeError, ValueError, RuntimeError):
        return False
    first, second = (r[0] if isinstance(r, tuple) else r for r in (before, after))
    return isinstance(first, Tensor) and first.dim() == 3 and not torch.allclose(first[:, -1], second[:, -1], atol=1e-6)


def _changed(value: Any) -> Any:
    """An activation [1, S, d] with its second-last position changed; anything else unchanged."""
    if not isinstance(value, Tensor) or value.dim() != 3 or not value.is_floating_point():
        return value
    other = value.clone()
    other[:, -2] += 1
    return other


def rotary_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that compute tables of cosines and sines, by name."""
    return {n: m for n, m in model.named_modules() if n.endswith("rotary_emb")}


def rotation_files(model: nn.Module) -> list[ModuleType]:
    """The files of the model's classes that define the rotation."""
    names = {type(m).__module__ for m in model.modules()}
    return [sys.modules[n] for n in sorted(names) if hasattr(sys.modules[n], ROTATION)]


@contextmanager
def without_rotation(model: nn.Module) -> Iterator[None]:
    """Replaces the model's rotary embedding by the identity; restores it afterwards."""
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
