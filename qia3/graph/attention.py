"""Whether GroupQueryAttention computes the same as the model's attention, and if not, in which layer and why not.

    out = softmax(cap(scale q k^T) + causal window) v

Every layer's call is watched (watch.py) and recomputed with this formula; the graph has one operator per layer, and all
keys and values in the cache have one size. If the result differs, the reason is inferred from the call: a mask with
numbers other than 0 and -infinity is a bias on the scores, one that shows later tokens belongs to an encoder, and so
on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qia3.bundle.ports import MULTIPLE
from qia3.errors import BaseModelError
from qia3.graph.scores import HIDDEN, NOISE, bias_table, key_biases
from qia3.graph.watch import Call, Watched


@dataclass(frozen=True)
class Form:
    """How the operator computes a layer. `size`: of a head's keys and values in the cache; `values`: of a head's values
    in the model; `groups`: how many consecutive key heads are identical.
    """

    layer: int
    kv_heads: int
    size: int
    values: int
    groups: int
    scale: float
    window: int | None
    cap: float | None


Forms = dict[nn.Module, Form]


def forms_of(model: PreTrainedModel, seen: Watched) -> Forms:
    """The form of each attention module. Raises BaseModelError with every reason found and its layers."""
    layers = model.config.get_text_config().num_hidden_layers
    found: dict[str, list[str]] = {}
    missing = [i for i in range(layers) if i not in {c.layer for c in seen.calls}]
    for i in missing:
        found.setdefault(_without_attention(model, i, {c.name for c in seen.calls}), []).append(str(i))
    times: dict[int | None, int] = {}
    forms: Forms = {}
    for call in seen.calls:
        times[call.layer] = times.get(call.layer, 0) + 1
        reason = "attention that runs several times per pass" if times[call.layer] > 1 else reason_against(call)
        if reason is None:
            forms[call.module] = _form(call)
            first = next(iter(forms.values()))
            if (forms[call.module].kv_heads, forms[call.module].size) != (first.kv_heads, first.size):
                reason = f"heads that differ in size or number from those of layer {first.layer}"
        if reason:
            where = call.name if call.layer is None else str(call.layer)
            found.setdefault(reason, []).append(where)
    if found:
        reasons = "; ".join(f"{reason} in {_layers(where)}" for reason, where in found.items())
        raise BaseModelError(
            f"{type(model).__name__} cannot be shipped: its graph uses ONNX Runtime's GroupQueryAttention, "
            "one per layer, "
            f"which does not support {reasons}"
        )
    return forms


def _form(call: Call) -> Form:
    groups, size = _alike(call), max(call.k.shape[-1], call.v.shape[-1])
    return Form(
        layer=int(call.layer or 0),
        kv_heads=call.k.shape[1] // groups,
        size=-(-size // MULTIPLE) * MULTIPLE,
        values=call.v.shape[-1],
        groups=groups,
        scale=call.scale,
        window=call.extra.get("sliding_window"),
        cap=call.extra.get("softcap"),
    )


def _alike(call: Call) -> int:
    """How many consecutive heads have the same keys and values: a model may repeat them itself (Falcon)."""
    heads = call.k.shape[1]
    for groups in range(heads, 1, -1):
        if heads % groups == 0 and all(
            torch.equal(t, t[:, ::groups].repeat_interleave(groups, dim=1)) for t in (call.k, call.v)
        ):
            return groups
    return 1


def shared_biases(model: PreTrainedModel, seen: Watched, positions: int) -> Tensor | None:
    """t [H, positions] added to the scores of each key in every layer; None if nothing is added.

    Raises BaseModelError if layers add different ones.
    """
    tables = [_key_biases(call) for call in seen.calls]
    if all(table is None for table in tables):
        return None
    first = tables[0]
    if first is None or any(t is None or not torch.allclose(t, first, rtol=1e-4, atol=1e-5) for t in tables):
        raise BaseModelError(
            f"{type(model).__name__} cannot be shipped: its layers add different biases to their scores"
        )
    return bias_table(model, first, seen.calls[0].scale, positions)


def _key_biases(call: Call) -> Tensor | None:
    """t [H, T] of a module that computes attention itself and sees all earlier tokens, or None if it is zero."""
    if not call.by_hand or call.mask is None or call.extra.get("sliding_window"):
        return None
    table = key_biases(call.mask)
    return table if table is not None and bool((table.abs() > NOISE).any()) else None


def reason_against(call: Call) -> str | None:
    """What this call has that the operator does not support; None if the two agree."""
    length = call.q.shape[2]
    if call.layer is None:
        return "keys and values without a layer in the cache"
    if call.k.shape[2] != length:
        return f"{call.k.shape[2] - length:+d} keys besides those of the text (attention sinks or a prefix)"
    if call.extra.get("s_aux") is not None:
        return "attention sinks (a learned score that takes part in the softmax)"
    window = call.extra.get("sliding_window")
    table = _key_biases(call)
    bias = None if table is None else table[None, :, None]
    if agrees(call, operator_answer(call, visible(length, window), bias)):
        return None
    return _difference(call, window)


def operator_answer(call: Call, shown: Tensor, bias: Tensor | None = None) -> Tensor:
    """The formula above: [B, S, H, d]. `bias` is added to the scores."""
    groups = call.q.shape[1] // call.k.shape[1]
    k, v = (t.float().repeat_interleave(groups, dim=1) for t in (call.k, call.v))
    scores = call.q.float() @ k.transpose(2, 3) * call.scale
    if cap := call.extra.get("softcap"):
        scores = torch.tanh(scores / cap) * cap
    scores = scores if bias is None else scores + bias
    return (scores.masked_fill(~shown, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def visible(length: int, window: int | None) -> Tensor:
    """[S, S], true where the query of a row sees the key of a column: itself and what came before, up to a window."""
    distance = torch.arange(length)[:, None] - torch.arange(length)[None]
    return (distance >= 0) & (distance < (window or length))


def _difference(call: Call, window: int | None) -> str:
    """Why the answer differs, inferred from the mask."""
    length = call.q.shape[2]
    if call.mask is None:
        shown = torch.ones(length, length, dtype=torch.bool)
    elif call.mask.dtype is torch.bool:
        shown = call.mask
    else:
        shown = call.mask > HIDDEN
        if bool((call.mask[shown] != 0).any()):
            return "biases on attention scores"
    expected = visible(length, window).to(shown.device)
    if bool((shown & ~visible(length, None)).any()):
        return "tokens that see later ones (an encoder)"
    if bool((shown != expected).any()):
        return "an attention pattern other than causal or a sliding window (chunks?)"
    return "scores computed by another formula"


def agrees(call: Call, answer: Tensor) -> bool:
    other = call.answer.float()
    return other.shape == answer.shape and torch.allclose(
        other, answer, rtol=1e-3, atol=1e-4 * float(other.abs().max())
    )


def _without_attention(model: PreTrainedModel, i: int, called: set[str]) -> str:
    """What a layer has instead of attention, named by the classes that layers with attention do not have."""
    count = model.config.get_text_config().num_hidden_layers
    stacks = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    for name, stack in stacks:
        usual: set[str] = set()
        for j, layer in enumerate(stack):
            if any(c.startswith(f"{name}.{j}.") for c in called):
                usual |= _classes(layer)
        own = sorted(_classes(stack[i]) - usual)
        if usual and own:
            return f"a recurrent state ({', '.join(own)})"
    return "a layer without attention"


def _classes(layer: nn.Module) -> set[str]:
    return {type(m).__name__ for m in layer.modules() if type(m).__module__.startswith("transformers.")}


def _layers(where: Sequence[str]) -> str:
    """ "layer 3", "layers 0, 1 and 4 more"."""
    shown = ", ".join(where[:4])
    return f"layer{'s' if len(where) > 1 else ''} {shown}" + (f" and {len(where) - 4} more" if len(where) > 4 else "")
