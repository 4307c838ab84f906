"""Attention that a model computes in its own code, presented as if it went through transformers' attention interface.

Falcon, BLOOM, MPT, GPT-J, CodeGen, GPT-Neo and XGLM do not call transformers' attention function. Their modules write
out

    scores = q k^T          softmax(a scores + bias + mask)          out = probabilities v

in one of several ways: matmul, bmm, baddbmm or torch's fused function, with heads in a dimension of their own or merged
with the batch. While such a module runs, torch's functions are watched (TorchFunctionMode): the product of two
activations before the softmax has the queries and keys, the first one after it the values. (DeBERTa has more products
before it, from which it takes entries by torch.gather: these are recognised.) The registered function gets them in the
interface's layout, with what the module computed (`Made`); its answer replaces the last product. So the role probe, the
watch and the graph treat these models like all others, without a list of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, PreTrainedModel

INTERFACE = "ALL_ATTENTION_FUNCTIONS"  # the name that a file uses to call transformers' function
PRODUCTS = ("matmul", "__matmul__", "bmm", "baddbmm")
FUSED = "scaled_dot_product_attention"
HIDDEN = torch.finfo(torch.float32).min
Attend = Callable[..., tuple[Tensor, Any]]


@dataclass(frozen=True)
class Made:
    """What the module itself computed: `scores` [B, H, S, T] as they went into the softmax, and `answer` [B, S, H, d].
    `lookups`: products left [B, H, S, d] right [B, H, d, P] from which it took entries [B or 1, H or 1, S, T], for
    positions.
    """

    scores: Tensor
    answer: Tensor
    lookups: tuple[tuple[Tensor, Tensor, Tensor], ...] = ()


def by_hand(model: nn.Module) -> dict[str, nn.Module]:
    """The innermost attention modules whose files do not call transformers' attention function, by name."""
    found = {
        name: module
        for name, module in model.named_modules()
        if "attention" in type(module).__name__.lower() and not hasattr(sys.modules[type(module).__module__], INTERFACE)
    }
    return {n: m for n, m in found.items() if not any(other.startswith(n + ".") for other in found)}


@contextmanager
def handed_over(model: PreTrainedModel, implementation: str) -> Iterator[bool]:
    """Makes every module that computes attention itself call the registered function of this name instead.

    Yields whether there are any: they follow the implementation that their configuration names, for the masks they need
    and for what they compute (Falcon with alibi adds it twice if it is "eager").
    """
    modules = by_hand(model)
    if model.config.is_encoder_decoder:  # their graphs have other kinds of attention, too
        modules = {}
    attend = AttentionInterface().get(implementation)
    try:
        for module in modules.values():
            module.__dict__["forward"] = _watched(module, attend)
        yield bool(modules)
    finally:
        for module in modules.values():
            del module.__dict__["forward"]


def _watched(module: nn.Module, attend: Attend) -> Callable[..., Any]:
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        with _Handing(module, attend, hidden.shape[0]):
            return original(*args, **kwargs)

    return forward


class _Handing(TorchFunctionMode):
    """Watches one call of a module. `batch` tells heads from rows where they are one dimension."""

    def __init__(self, module: nn.Module, attend: Attend, batch: int | torch.SymInt) -> None:
        super().__init__()
        self.module, self.attend, self.batch = module, attend, batch
        self.products: list[tuple[Tensor, Tensor, Tensor]] = []
        self.taken: list[tuple[Tensor, Tensor]] = []  # the source, and the entries taken
        self.scores: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == FUSED:
            return self._fused(*args, **kwargs)
        result = func(*args, **kwargs)
        if name == "softmax" and self.products:
            self.scores = args[0] if args else kwargs["input"]
        elif name == "gather" and self.products:
            given = dict(zip(("input", "dim", "index"), args, strict=False)) | kwargs
            self.taken.append((given["input"], given["index"]))
        elif name in PRODUCTS and (factors := _activations(name, args, kwargs)) is not None:
            if self.scores is None:
                self.products.append((*factors, result))
            else:
                return self._answer(factors[1], result)
        return result

    def _fused(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """torch's fused function, written out."""
        groups = q.shape[1] // k.shape[1]
        keys, values = (t.repeat_interleave(groups, 1) if groups > 1 else t for t in (k, v))
        scores = q @ keys.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        shown = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril() if is_causal else attn_mask
        if shown is not None:
            scores = scores.masked_fill(~shown, HIDDEN) if shown.dtype is torch.bool else scores + shown
        made = scores.softmax(-1) @ values
        out, _ = self.attend(self.module, q, k, v, None, scaling=None, made=Made(scores, made.transpose(1, 2)))
        return out.transpose(1, 2)

    def _answer(self, values: Tensor, made: Tensor) -> Tensor:
        """The replacement for the product of probabilities and values, in its layout."""
        assert self.scores is not None
        lookups = tuple(
            (self._heads_apart(left), self._heads_apart(right), self._heads_apart(places))
            for left, right, product in self.products
            for source, places in self.taken
            if source is product
        )
        looked_up = [source for source, _ in self.taken]
        plain = [p for p in self.products if not any(p[2] is source for source in looked_up)] or self.products
        q, k = plain[-1][0], plain[-1][1].transpose(-1, -2)
        q, k, v, scores, answer = (self._heads_apart(t) for t in (q, k, values, self.scores, made))
        self.products, self.taken, self.scores = [], [], None
        whole = Made(scores, answer.transpose(1, 2), lookups)
        out, _ = self.attend(self.module, q, k, v, None, scaling=None, made=whole)
        return out.transpose(1, 2).reshape(made.shape)

    def _heads_apart(self, x: Tensor) -> Tensor:
        """[B, H, n, m] from either that or [B H, n, m]."""
        return x if x.dim() == 4 else x.reshape(self.batch, x.shape[0] // self.batch, *x.shape[1:])


def _activations(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """The two factors, unless one is a weight."""
    if name == "baddbmm":
        rest = [*args[1:3], *(kwargs[n] for n in ("batch1", "batch2") if n in kwargs)]
    else:
        rest = [*args[:2], *(kwargs[n] for n in ("other", "mat2") if n in kwargs)]
    first, second = rest
    return (first, second) if first.dim() == second.dim() and first.dim() > 2 else None
