"""Whether GroupQueryAttention computes what the model's attention computes, and if not, in which layer and why.

    out = softmax(cap(scale q k^T) + causal window) v

Every layer's call is watched (watch.py) and computed again by this formula; the graph has one operator a layer, with
keys and values of one size in the cache. What does not come out the same is named by what stands in the call: a mask
with other numbers than 0 and -infinity is a bias on the scores, one that shows later tokens belongs to an encoder, and
so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qia3.errors import BaseModelError
from qia3.graph.watch import Call, Watched

HIDDEN = -1e4  # a mask's entries below it are minus infinity
MULTIPLE = 8  # of which the operator takes head sizes


def check_attention(model: PreTrainedModel, seen: Watched) -> None:
    """Raises BaseModelError, one line with every reason found and its layers."""
    config = model.config.get_text_config()
    found: dict[str, list[str]] = {}
    missing = [i for i in range(config.num_hidden_layers) if i not in {c.layer for c in seen.calls}]
    for i in missing:
        found.setdefault(_without_attention(model, i, {c.name for c in seen.calls}), []).append(str(i))
    times: dict[int | None, int] = {}
    for call in seen.calls:
        times[call.layer] = times.get(call.layer, 0) + 1
        reason = "attention that runs several times" if times[call.layer] > 1 else reason_against(call, config)
        if reason:
            where = call.name if call.layer is None else str(call.layer)
            found.setdefault(reason, []).append(where)
    if found:
        reasons = "; ".join(f"{reason} in {_layers(where)}" for reason, where in found.items())
        raise BaseModelError(
            f"{type(model).__name__} cannot be shipped: its graph is made of ONNX Runtime's GroupQueryAttention, one a layer, "
            f"which has no form for {reasons}"
        )


def reason_against(call: Call, config: Any) -> str | None:
    """What this call has that the operator does not; None where the two agree."""
    (_, heads, length, size), kv = call.q.shape, call.k.shape[1]
    if call.layer is None:
        return "keys and values that no layer of the cache belongs to"
    if call.v.shape[-1] != size or call.k.shape[-1] != size:
        return f"keys of {call.k.shape[-1]} and values of {call.v.shape[-1]} entries a head (latent attention, MLA)"
    if size % MULTIPLE:
        return f"heads of {size} entries, where the operator takes multiples of {MULTIPLE},"
    if call.k.shape[2] != length:
        return f"{call.k.shape[2] - length:+d} keys beside those of the text (attention sinks or a prefix)"
    try:
        stated = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        stated_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    except Exception:  # transformers refuses to name one number where layers have their own (Gemma 4)
        return "heads of another size or number in each kind of layer"
    if (heads, kv, size) != (config.num_attention_heads, stated, stated_size):
        told = f"{config.num_attention_heads} heads, {stated} for keys, of {stated_size} entries"
        return f"layers of their own shape ({heads} heads, {kv} for keys, of {size} entries, where the configuration says {told}),"
    if call.extra.get("s_aux") is not None:
        return "attention sinks (a learned score that takes part in the softmax)"
    window = call.extra.get("sliding_window")
    if agrees(call, operator_answer(call, visible(length, window))):
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
    """Why the answer is another one, from the mask."""
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
        return "tokens that see the ones after them (an encoder)"
    if bool((shown != expected).any()):
        return "a pattern of what each token sees (chunks or a window of another kind)"
    return "scores of another formula"


def agrees(call: Call, answer: Tensor) -> bool:
    other = call.answer.float()
    return other.shape == answer.shape and torch.allclose(
        other, answer, rtol=1e-3, atol=1e-4 * float(other.abs().max())
    )


def _without_attention(model: PreTrainedModel, i: int, called: set[str]) -> str:
    """What a layer has in place of attention, named by the classes that no layer with attention has."""
    count = model.config.get_text_config().num_hidden_layers
    stacks = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    for name, stack in stacks:
        usual: set[str] = set()
        for j, layer in enumerate(stack):
            if any(c.startswith(f"{name}.{j}.") for c in called):
                usual |= _classes(layer)
        own = sorted(_classes(stack[i]) - usual)
        if usual and own:
            return f"a state other than keys and values ({', '.join(own)})"
    return "a layer without attention"


def _classes(layer: nn.Module) -> set[str]:
    return {type(m).__name__ for m in layer.modules() if type(m).__module__.startswith("transformers.")}


def _layers(where: Sequence[str]) -> str:
    """ "layer 3", "layers 0, 1 and 4 more"."""
    shown = ", ".join(where[:4])
    return f"layer{'s' if len(where) > 1 else ''} {shown}" + (f" and {len(where) - 4} more" if len(where) > 4 else "")
