"""Which layers a build keeps at 8 bits: roles by their names in a build file, found in the float model by what its layers do (roles.py).

    eight_bit = ["value", "head", "down@0-2,11,28-29"]      # all values, the head, the down projections of layers 0, 1, 2, 11, 28 and 29

"up" is all that leads into a feed-forward's inner activation, gate and up alike. A fused layer has every role of its parts: "value" means
the whole of a fused q|k|v projection. A head that is tied to the embedding stands for both: they are one table.
"""

from __future__ import annotations

import re
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


def eight_bit(asked: tuple[str, ...]) -> EightBit:
    """The choice of a build file, for load_base."""
    return EightBit(tuple(sorted(set(asked))), partial(_layers, asked))


def _layers(asked: tuple[str, ...], model: Any) -> frozenset[str]:
    """Names of the model's layers that are meant. Raises BaseModelError where a part of it means none."""
    roles = find_roles(model).linears
    return frozenset(name for one in asked for name in _meant(one, roles))


def _meant(asked: str, roles: dict[str, str]) -> list[str]:
    """Names of the layers that `ROLE` or `ROLE@LAYERS` means."""
    role, _, numbers = asked.partition("@")
    found = {name: _number(name) for name, given in roles.items() if given in MEANS[role]}
    if not found:
        known = [name for name, means in MEANS.items() if means & set(roles.values())]
        raise BaseModelError(f'the model has no layer of the role "{role}" in eight_bit; it has: {", ".join(known)}')
    wanted = _numbers(numbers) if numbers else set(found.values())
    if missing := wanted - set(found.values()):
        there = sorted(n for n in found.values() if n is not None)
        has = f"it is in layers {there[0]} to {there[-1]}" if there else "it is in no numbered layer"
        raise BaseModelError(f'eight_bit names "{role}" in layer {", ".join(map(str, sorted(missing, key=str)))}; {has}')
    return [name for name, number in found.items() if number in wanted]


def _number(name: str) -> int | None:
    """3 of model.layers.3.mlp.down_proj."""
    found = re.search(r"(?:^|\.)(\d+)\.", name)
    return int(found[1]) if found else None


def _numbers(text: str) -> set[int | None]:
    """{0, 1, 2, 11} of "0-2,11"."""
    ends = [part.partition("-") for part in text.split(",")]
    return {n for first, _, last in ends for n in range(int(first), int(last or first) + 1)}
