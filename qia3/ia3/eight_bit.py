"""Which layers a build keeps at 8 bits: roles by their names in a build file, found in the float model by what its layers do (roles.py).

    eight_bit = ["head", "down"]

"up" is all that leads into a feed-forward's inner activation, gate and up alike. A fused layer has every role of its parts: "value" means
the whole of a fused q|k|v projection. A head that is tied to the embedding stands for both: they are one table.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from qia3.base.quantise import EightBit
from qia3.errors import BaseModelError
from qia3.ia3.roles import find_roles

# a name in the build file (qia3.config.EIGHT_BIT): the roles of a model's layers that it means
MEANS = {
    "head": {"head"},
    "query": {"query", "qkv"},
    "key": {"key", "qkv"},
    "value": {"value", "qkv"},
    "output": {"attention_output"},
    "up": {"feed_forward", "feed_forward_up"},
    "down": {"feed_forward_down"},
}


def eight_bit(names: tuple[str, ...]) -> EightBit:
    """The choice of a build file, for load_base."""
    return EightBit(tuple(sorted(names)), partial(_layers, names))


def _layers(names: tuple[str, ...], model: Any) -> frozenset[str]:
    """Names of the model's layers with these roles. Raises BaseModelError where a role has none."""
    roles = find_roles(model).linears
    for name in names:
        if not MEANS[name] & set(roles.values()):
            raise BaseModelError(
                f'the model has no layer of the role "{name}" in eight_bit; it has: {", ".join(_known(set(roles.values())))}'
            )
    return frozenset(layer for layer, role in roles.items() if any(role in MEANS[name] for name in names))


def _known(roles: set[str]) -> list[str]:
    return [name for name, means in MEANS.items() if means & roles]
