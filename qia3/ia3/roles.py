"""Finds the key, value and feed-forward layers of any transformers model by what they do, not by their names.

One forward pass over a few tokens is watched. Every linear layer's output is detached from the layers before it and
made a leaf of the autograd graph, and transformers' attention function is replaced by one that records its queries,
keys and values. Then

- the outputs of a layer inside an attention module that the keys have a gradient in are its key rows, and likewise for values and
  queries. A fused q|k|v projection shows which of its rows are which, whatever their order.
- the inner activation of a feed-forward is the input of a layer, outside attention, each entry of which depends on the same entry of
  another layer's output and on no other: first half against second half of the entries tells.
- in a gated feed-forward, h = act(gate) * up, negating `up` negates h: the vector goes to up's output, where it folds into the rows.
  If no branch is linear (h = act(up)), the vector stays on the input of the down projection. A fused gate|up layer is two branches.

Norms on keys (Qwen3, Gemma3, OLMo2) come after the projection and do not disturb this: the vector sits on the
projection's output.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from qia3.base.calibrate import layer_stacks
from qia3.base.experts import mixtures
from qia3.base.modules import GridLinear
from qia3.bundle.sites import Site
from qia3.errors import BaseModelError, first_line
from qia3.ia3.by_hand import handed_over
from qia3.ia3.refusals import (
    beside_the_text,
    experts,
    has_own_attention,
    no_attention,
    no_feed_forward,
    without_numbers,
)

PROBE, PROBED = "qia3_probe", 4
POSITIONS = "positions"  # the role of layers that see no text: DeBERTa's keys and queries of positions
LINEAR = (nn.Linear, Conv1D, GridLinear)


@dataclass(frozen=True)
class Roles:
    """The sites that train, in the model's order; query projections, for adapters that have vectors there; and the role
    of each linear layer.
    """

    sites: tuple[Site, ...]
    queries: tuple[Site, ...]
    linears: dict[str, str]


@dataclass
class _Watch:
    """The result of one pass: inputs and leaf outputs of linear layers by name; queries, keys, values by attention
    module.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    attention: list[tuple[nn.Module, tuple[Tensor, Tensor, Tensor]]] = field(default_factory=list)


def find_roles(model: PreTrainedModel) -> Roles:
    """Raises BaseModelError, listing the linear layers seen, if the model has no recognisable keys and values or no
    feed-forward.
    """
    names = {m: n for n, m in model.named_modules()}
    mixed = tuple(f"{name}." for name in mixtures(model)) if not experts(model) else ()
    every = {n: m for n, m in model.named_modules() if isinstance(m, LINEAR)}
    linears = {n: m for n, m in every.items() if not n.startswith(mixed)}
    if experts(model):
        raise BaseModelError(_nothing_found(model, no_feed_forward(model), linears))
    watch = _run(model, linears, {})
    attention = [(names[module], qkv) for module, qkv in watch.attention]
    _refuse_parts_unseen(model, linears, watch, [name for name, _ in attention])
    _refuse_stacks_unseen(model, [name for name, _ in attention])
    inside = {n for n in linears if any(n.startswith(a + ".") for a, _ in attention)}
    roles: dict[str, str] = {}
    sites, queries = [], []
    for module, qkv in attention:
        owned = [n for n in watch.outputs if n.startswith(module + ".")]
        found = _attention_sites(owned, watch, qkv, roles)
        sites += [s for s in found if s.role != "query"]
        queries += [s for s in found if s.role == "query"]
    head = names.get(model.get_output_embeddings(), "") if model.get_output_embeddings() is not None else ""
    feed_forward = _feed_forward_sites(
        model, linears, [n for n in watch.outputs if n not in inside and n != head], watch, roles
    )
    order = {n: i for i, n in enumerate(linears)}
    if not sites or not (feed_forward or mixed):
        raise BaseModelError(_nothing_found(model, no_feed_forward(model) if sites else no_attention(model), linears))
    if head:
        roles[head] = "head"
    roles |= dict.fromkeys(_outputs_outside(set(linears) - inside - set(roles), watch, roles), "attention_output")
    for name in every:
        if name in inside and name in watch.outputs and watch.outputs[name].shape[-2] != PROBED:
            roles.setdefault(name, POSITIONS)
        usual = "experts" if name not in linears else "attention_output" if name in inside else "other"
        roles.setdefault(name, usual)
    return Roles(tuple(sorted(sites + feed_forward, key=lambda s: order[s.module])), tuple(queries), roles)


def _attention_sites(
    owned: list[str], watch: _Watch, qkv: tuple[Tensor, Tensor, Tensor], roles: dict[str, str]
) -> list[Site]:
    """The sites of one attention module, from the rows of its layers' outputs that queries, keys and values depend on."""
    rows = {
        part: _rows(tensor, [watch.outputs[n] for n in owned])
        for part, tensor in zip(("query", "key", "value"), qkv, strict=True)
    }
    sites = []
    for i, name in enumerate(owned):
        parts = {part: found[i] for part, found in rows.items() if found[i]}
        if not parts:
            continue
        size = int(watch.outputs[name].shape[-1])
        role = next(iter(parts)) if len(parts) == 1 else "qkv"
        roles[name] = role
        trained = tuple(sorted(set(parts.get("key", ())) | set(parts.get("value", ()))))
        whole = role != "qkv" or len(trained) == size
        sites.append(Site(name, role, "output", size, None if whole else trained))  # type: ignore[arg-type]
    return sites


def _outputs_outside(names: set[str], watch: _Watch, roles: dict[str, str]) -> list[str]:
    """Layers outside attention modules that values reach through no other layer: BERT's attention.output."""
    values = [watch.outputs[name] for name, role in roles.items() if role in ("value", "qkv")]
    fed = {name: watch.inputs[name] for name in names if name in watch.inputs and watch.inputs[name].requires_grad}
    return [name for name, tensor in fed.items() if any(_rows(tensor, values))]


def _rows(tensor: Tensor, leaves: list[Tensor]) -> list[tuple[int, ...]]:
    """Per leaf [1, S, N], the entries n that `tensor` depends on."""
    weight = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor)
    grads = (
        torch.autograd.grad((tensor * weight).sum(), leaves, retain_graph=True, allow_unused=True)
        if tensor.requires_grad
        else [None] * len(leaves)
    )
    return [() if g is None else tuple(g.flatten(0, -2).abs().sum(0).nonzero().flatten().tolist()) for g in grads]


@dataclass(frozen=True)
class _Branch:
    """A layer's output, or one half of a fused gate|up layer's output, that enters an inner activation entry by entry."""

    layer: str
    start: int
    stop: int


def _feed_forward_sites(
    model: PreTrainedModel, linears: dict[str, nn.Module], outside: list[str], watch: _Watch, roles: dict[str, str]
) -> list[Site]:
    branches = {down: found for down in outside if (found := _branches(down, outside, watch))}
    linear: dict[str, _Branch] = {}
    for turn in range(max((len(b) for b in branches.values()), default=0)):
        tried = {down: b[turn] for down, b in branches.items() if turn < len(b)}
        again = _run(model, linears, _negated(watch.outputs, list(tried.values())))
        linear |= {
            d: b for d, b in tried.items() if torch.allclose(again.inputs[d], -watch.inputs[d], rtol=1e-4, atol=1e-6)
        }
    sites = []
    for down, found in branches.items():
        roles.update({down: "feed_forward_down"} | {b.layer: "feed_forward" for b in found})
        sites.append(_feed_forward_site(down, int(watch.inputs[down].shape[-1]), linear.get(down), watch))
        if down in linear:
            roles[linear[down].layer] = "feed_forward_up"
    return sites


def _feed_forward_site(down: str, inner: int, up: _Branch | None, watch: _Watch) -> Site:
    """The site: on the linear branch's output if there is one, otherwise on the input of the down projection."""
    if up is None:
        return Site(down, "feed_forward", "input", inner)
    size = int(watch.outputs[up.layer].shape[-1])
    return Site(
        up.layer, "feed_forward", "output", size, None if size == inner else tuple(range(up.start, up.stop)), down
    )


def _negated(outputs: dict[str, Tensor], branches: list[_Branch]) -> dict[str, Tensor]:
    fixed = {n: t.detach().clone() for n, t in outputs.items()}
    for b in branches:
        fixed[b.layer][..., b.start : b.stop] *= -1
    return fixed


def _branches(down: str, outside: list[str], watch: _Watch) -> list[_Branch]:
    """The branches of which `down`'s input is an entry-by-entry function."""
    inner = watch.inputs[down]
    size = int(inner.shape[-1])
    ups = [n for n in outside if n != down and watch.outputs[n].shape[-1] in (size, 2 * size)]
    if not ups or not inner.requires_grad or size < 2:
        return []
    grads = torch.autograd.grad(
        inner[..., : size // 2].sum(), [watch.outputs[n] for n in ups], retain_graph=True, allow_unused=True
    )
    found = []
    for name, grad in zip(ups, grads, strict=True):
        if grad is None or grad.shape[:-1] != inner.shape[:-1]:
            continue
        parts = [grad[..., i : i + size] for i in range(0, grad.shape[-1], size)]
        if all(bool(g[..., : size // 2].any()) and not bool(g[..., size // 2 :].any()) for g in parts):
            found += [_Branch(name, i * size, (i + 1) * size) for i in range(len(parts))]
    return found


def _run(model: PreTrainedModel, linears: dict[str, nn.Module], fixed: dict[str, Tensor]) -> _Watch:
    """One pass over PROBED tokens. A layer named in `fixed` returns that output instead of its own."""
    watch = _Watch()

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            if name in watch.outputs:  # a second call, for something other than the text: DeBERTa's positions
                return None
            watch.inputs[name] = inputs[0]
            watch.outputs[name] = fixed.get(name, output).detach().requires_grad_()
            return watch.outputs[name].clone()  # some models modify a layer's output in place (Gemma 3n)

        return keep

    def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        watch.attention.append((module, (q, k, v)))
        v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        return v[:, :, -1:].expand(-1, -1, q.shape[2], -1).transpose(
            1, 2
        ).contiguous(), None  # any mixture of values works here

    AttentionInterface.register(PROBE, attend)
    handles = [m.register_forward_hook(hook(n)) for n, m in linears.items()]
    ids = torch.arange(PROBED, device=device_of(model))[None] % model.config.get_text_config().vocab_size
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    try:
        with attention(model, PROBE), torch.enable_grad():
            model(input_ids=ids, use_cache=False, **extra)
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise BaseModelError(_does_not_run(model, ids, extra, watch, linears, error)) from error
    finally:
        for handle in handles:
            handle.remove()
    return watch


def _does_not_run(
    model: PreTrainedModel,
    ids: Tensor,
    extra: dict[str, Tensor],
    watch: _Watch,
    linears: dict[str, nn.Module],
    error: Exception,
) -> str:
    """Explains whether the attention interface or the model itself fails on a text."""
    name = type(model).__name__
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False, **extra)
    except Exception as own:  # a model's code can raise anything
        return f"{name} does not run on a text alone: {first_line(own)}"
    if not watch.attention and has_own_attention(model):
        return _nothing_found(model, no_attention(model), linears)
    return f"{name} does not run with transformers' attention interface, which QIA³ needs: {first_line(error)}"


def device_of(model: nn.Module) -> torch.device:
    """The device of a model, even if it has no parameters left (OLMo on a grid)."""
    return next(chain(model.parameters(), model.buffers())).device


@contextmanager
def attention(model: PreTrainedModel, implementation: str) -> Any:
    """Runs `model` with another registered attention function, then puts its own back."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    before = [(c, c._attn_implementation) for c in configs]
    try:
        with handed_over(model, implementation) as by_hand:
            for config, _ in before if not by_hand else ():
                config._attn_implementation = implementation
            yield
    finally:
        for config, name in before:
            config._attn_implementation = name


def _refuse_parts_unseen(
    model: PreTrainedModel, linears: dict[str, nn.Module], watch: _Watch, attention: list[str]
) -> None:
    """Raises BaseModelError if a decoder layer has parts that a text does not reach."""
    if not attention:
        raise BaseModelError(_nothing_found(model, no_attention(model), linears))
    unseen = beside_the_text(linears, watch.outputs, attention)
    if unseen:
        raise BaseModelError(
            f"{type(model).__name__} is part of a larger model: a text does not reach "
            f"{', '.join(without_numbers(unseen))} "
            "(attention to an encoder's output); use a decoder that works alone"
        )


def _refuse_stacks_unseen(model: PreTrainedModel, attention: list[str]) -> None:
    """Raises BaseModelError if a layer of an encoder-decoder has attention that was not seen: an encoder layer has one,
    a decoder layer two, to itself and to the encoder's output.
    """
    if not model.config.is_encoder_decoder:
        return
    for wanted, (path, stack) in enumerate(layer_stacks(model), start=1):
        layers = [f"{path}.{i}." for i in range(len(stack))]
        if blind := [layer for layer in layers if sum(name.startswith(layer) for name in attention) < wanted]:
            raise BaseModelError(
                f"{type(model).__name__} computes attention in its own code in {len(blind)} of the "
                f"{len(layers)} layers of "
                f"{path}, not through transformers' attention interface, which QIA³ needs to find keys and "
                "values and to write the graph"
            )


def _nothing_found(model: PreTrainedModel, reason: str, linears: dict[str, nn.Module]) -> str:
    seen = ", ".join(without_numbers(linears)) or "none"
    return f"{type(model).__name__} has no place for IA³ vectors: {reason}. Linear layers seen: {seen}"
