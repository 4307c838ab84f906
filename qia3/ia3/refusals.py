"""Why a model has no place for IA³ vectors, in one line, from its modules and what ran in one forward pass."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from qia3.base.experts import fits, float_experts

SHOWN = 4


def no_attention(model: PreTrainedModel) -> str:
    """Nothing reached the attention function: the model computes attention in its own code, or has none."""
    own = has_own_attention(model)
    if own:
        return (
            f"it computes attention in its own code ({', '.join(own)}), not through transformers' attention interface, "
            "which QIA³ needs to find keys and values and to write the graph"
        )
    stack = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len, default=nn.ModuleList())
    inside = [child for layer in stack for child in layer.children() if "norm" not in type(child).__name__.lower()]
    return f"no attention, and so no keys and values; its layers are made of {', '.join(_classes(inside)) or 'nothing known'}"


def has_own_attention(model: nn.Module) -> list[str]:
    """Attention classes whose files do not call transformers' attention function."""
    found = [m for m in model.modules() if "attention" in type(m).__name__.lower()]
    return _classes(m for m in found if not hasattr(sys.modules[type(m).__module__], "ALL_ATTENTION_FUNCTIONS"))


def no_feed_forward(model: PreTrainedModel) -> str:
    """There is attention, but no inner activation."""
    reason = "no feed-forward whose inner activation can be scaled"
    found = experts(model)
    if not found:
        return reason
    return (
        f"its feed-forwards are mixtures of experts ({', '.join(found)}) of a form that ONNX Runtime's QMoE "
        "does not support on CPUs; supported are "
        "down(silu(gate(x)) * up(x)) without biases, int4, and sizes that are multiples of 16"
    )


def experts(model: nn.Module) -> list[str]:
    """Classes of modules that choose an expert per token in a way that no graph here supports."""
    return _classes(m for m in float_experts(model).values() if not fits(m))


def beside_the_text(linears: Iterable[str], ran: Collection[str], attention: Iterable[str]) -> list[str]:
    """Linear layers in the decoder's layers that a text does not reach: attention to an encoder's output."""
    layers = {name.rpartition(".")[0] + "." for name in attention}
    return [n for n in linears if n not in ran and any(n.startswith(layer) for layer in layers)]


def without_numbers(names: Iterable[str]) -> list[str]:
    """Module paths without layer numbers, each once."""
    return sorted({".".join(p for p in n.split(".") if not p.isdigit()) for n in names})


def _classes(modules: Iterable[Any]) -> list[str]:
    found = sorted({type(m).__name__ for m in modules})
    return found[:SHOWN]
