"""Which layers of a build get more bits than the rest: by role in the build file, or as many as fit a budget of bits
per weight.

    eight_bit = ["value", "head", "down@0-2,11,28-29"]      # all values, the head, the down projections of layers 0, 1, 2, 11, 28 and 29
    blocks = { 32 = ["up@0-3"] }                            # shorter (or longer) blocks than the rest
    eight_bit = ["encoder.value", "decoder.down@0"]         # one stack of an encoder-decoder; "value@0" is layer 0 of both
    bits = 5.0                                              # chosen by the build (qia3.base.sensitivity), named in the report in the same way

Roles are found in the float model by what its layers do (roles.py). "up" means every layer that leads into a
feed-forward's inner activation, gate and up alike. A fused layer has every role of its parts: "value" means the whole
fused q|k|v projection. A head that is tied to the embedding counts for both: they are one table.

A budget is spent on three forms: the block that was asked for, blocks of 32, which ONNX Runtime's kernels still
multiply fast, and 8 bits.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor

from qia3.base.modules import GridLinear
from qia3.base.quantise import Chosen, Form, Grid, quantise_model
from qia3.base.sensitivity import choose
from qia3.bundle.sites import in_encoder
from qia3.errors import BaseModelError
from qia3.ia3.roles import find_roles
from qia3.progress import say

# a name in the build file (qia3.config.LAYER_ROLES): the roles of a model's layers that it means
MEANS = {
    "head": {"head"},
    "query": {"query", "qkv"},
    "key": {"key", "qkv"},
    "value": {"value", "qkv"},
    "output": {"attention_output"},
    "up": {"feed_forward", "feed_forward_up"},
    "down": {"feed_forward_down"},
}
SHORT = 32  # inputs of a block


@dataclass(frozen=True)
class Named:
    """The roles in a build file, for load_base: those at 8 bits, and those by block size."""

    eight_bit: tuple[str, ...]
    blocks: tuple[tuple[int, tuple[str, ...]], ...] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        return (*self.eight_bit, *(f"{role}:{block}" for block, roles in self.blocks for role in roles))

    def find(self, model: Any, grid: Grid, windows: Tensor | None) -> Chosen:
        """Raises BaseModelError if an entry matches no layer, or two entries match the same one."""
        linears = find_roles(model).linears
        own: dict[str, Form] = {}
        for form, key, roles in (
            (Form(8, grid.block_size), "eight_bit", self.eight_bit),
            *((Form(4, b), "blocks", r) for b, r in self.blocks),
        ):
            meant = {name for role in roles for name in _meant(role, linears, key)}
            if twice := sorted(meant & own.keys()):
                raise BaseModelError(
                    f"eight_bit and blocks name {len(twice)} layers twice (the first is {twice[0]}); name each once"
                )
            own |= dict.fromkeys(meant, form)
        return Chosen(own, self.eight_bit, {str(block): list(roles) for block, roles in self.blocks})


@dataclass(frozen=True)
class Within:
    """A budget of bits per weight, averaged over all linear layers (and what is tied to them)."""

    bits: float
    track: Callable[[list[Any], str], Iterable[Any]]

    @property
    def asked(self) -> tuple[str, ...]:
        return (f"{self.bits:g} bits",)

    def find(self, model: Any, grid: Grid, windows: Tensor | None) -> Chosen:
        """Raises BaseModelError if there is no calibration text, or if the bits are too few."""
        if windows is None:
            raise BaseModelError(
                "bits needs a calibration text to choose layers by, and this base has none; name layers with "
                "eight_bit or blocks"
            )
        say("quantising at 4 bits first, to measure what that costs in each layer")
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        rounded = copy.deepcopy(model, shared)  # new layers over the same weights
        quantise_model(
            rounded, Grid(grid.block_size, grid.symmetric), lambda names: self.track(names, "quantising"), windows
        )
        stores = {name: layer.store for name, layer in rounded.named_modules() if isinstance(layer, GridLinear)}
        groups = _groups({name: role for name, role in find_roles(model).linears.items() if name in stores})
        forms = choose(model, groups, stores, grid, SHORT, self.bits, windows, self.track)
        own = {group: form for group, form in forms.items() if form != Form(4, grid.block_size)}
        eight, short = ([group for group, form in own.items() if form.bits == bits] for bits in (8, 4))
        return Chosen(
            {name: form for group, form in own.items() for name in groups[group]},
            spelled(eight, groups),
            {str(SHORT): list(spelled(short, groups))} if short else {},
        )


def named(eight_bit: Iterable[str], blocks: Iterable[tuple[int, Iterable[str]]] = ()) -> Named:
    """The choice of a build file: roles at 8 bits, and roles by block size."""
    return Named(
        tuple(sorted(set(eight_bit))),
        tuple((block, tuple(sorted(set(roles)))) for block, roles in sorted(blocks) if roles),
    )


def _groups(roles: dict[str, str]) -> dict[str, list[str]]:
    """Layers grouped by the smallest unit that a build file can name: "head", "value@3", "encoder.value@3"."""
    two = any(in_encoder(name) for name in roles)
    groups = defaultdict(list)
    for name, role in roles.items():
        if meaning := next((asked for asked, means in MEANS.items() if role in means), None):
            number = _number(name)
            stack = ("encoder." if in_encoder(name) else "decoder.") if two and number is not None else ""
            groups[stack + meaning + ("" if number is None else f"@{number}")].append(name)
    return dict(groups)


def spelled(chosen: Iterable[str], groups: Iterable[str]) -> tuple[str, ...]:
    """Groups as a build file names them:

    "value@0", "value@1", "value@3" -> "value@0-1,3", or "value" if that is all of them.
    """
    every, wanted = _numbered(groups), _numbered(chosen)
    return tuple(sorted(role if wanted[role] == every[role] else f"{role}@{_ranges(wanted[role])}" for role in wanted))


def _numbered(groups: Iterable[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for group in groups:
        role, _, number = group.partition("@")
        found.setdefault(role, []).extend([int(number)] if number else [])
    return {role: sorted(numbers) for role, numbers in found.items()}


def _ranges(numbers: list[int]) -> str:
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _meant(asked: str, roles: dict[str, str], key: str) -> list[str]:
    """Names of the layers that `[STACK.]ROLE` or `[STACK.]ROLE@LAYERS` means."""
    path, _, numbers = asked.partition("@")
    stack, _, role = path.rpartition(".")
    two = any(in_encoder(name) for name in roles)
    if stack and not two:
        raise BaseModelError(f'{key} names "{path}", but the model has one stack of layers; write "{role}"')
    chosen = [name for name in roles if not stack or in_encoder(name) == (stack == "encoder")]
    found = {name: _number(name) for name in chosen if roles[name] in MEANS[role]}
    if not found and stack:
        raise BaseModelError(f'{key} names "{role}", but the {stack} has no such layer')
    if not found:
        known = [name for name, means in MEANS.items() if means & set(roles.values())]
        raise BaseModelError(f'the model has no layer of the role "{role}" in {key}; it has: {", ".join(known)}')
    wanted = _numbers(numbers) if numbers else set(found.values())
    if missing := wanted - set(found.values()):
        there = sorted(n for n in found.values() if n is not None)
        has = f"it is in layers {there[0]} to {there[-1]}" if there else "it is in no numbered layer"
        raise BaseModelError(f'{key} names "{path}" in layer {", ".join(map(str, sorted(missing, key=str)))}; {has}')
    return [name for name, number in found.items() if number in wanted]


def _number(name: str) -> int | None:
    """3 of model.layers.3.mlp.down_proj."""
    found = re.search(r"(?:^|\.)(\d+)\.", name)
    return int(found[1]) if found else None


def _numbers(text: str) -> set[int | None]:
    """{0, 1, 2, 11} of "0-2,11"."""
    ends = [part.partition("-") for part in text.split(",")]
    return {n for first, _, last in ends for n in range(int(first), int(last or first) + 1)}
