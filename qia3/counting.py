"""The parts of a forecast that need the model itself, from models without weights: sizes, what a training step keeps, and
what a part of one keeps on a device (qia3.learn computes one part after the other, in float32).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch

from qia3.base.complete import empty
from qia3.base.load import quiet
from qia3.footprint.before import TEXTS, TOKENS
from qia3.footprint.learning import ON_DEVICE, PART, learns
from qia3.footprint.shapes import Shapes
from qia3.graph.distance import table_numbers
from qia3.ia3.activations import Method, saved_bytes
from qia3.ia3.shapes import read_any_config, shapes_of

METHODS: tuple[Method, ...] = ("ia3", "lora", "full")
DEVICE_METHODS: tuple[Method, ...] = ("ia3", "lora")


@dataclass(frozen=True)
class Counted:
    """`kept`: bytes that a training step keeps for its backward pass, by method."""

    shapes: Shapes
    kept: dict[str, int]


def count(reference: str) -> Counted:
    """Counts a model. Raises BaseModelError if it is not supported."""
    with quiet():
        config = read_any_config(reference)
        read = shapes_of(config, reference)
        shapes = replace(read, tabled=table_numbers(empty(copy.deepcopy(config))))
        kept: dict[str, int] = {m: _kept(config, shapes, m, TEXTS, TOKENS, torch.bfloat16) for m in METHODS}
        if learns(shapes):
            kept |= {m + ON_DEVICE: _kept(config, shapes, m, 1, PART, torch.float32) for m in DEVICE_METHODS}
        return Counted(shapes, kept)


def _kept(config: object, shapes: Shapes, method: Method, rows: int, tokens: int, dtype: torch.dtype) -> int:
    model = empty(copy.deepcopy(config))
    model.config._attn_implementation = "eager"
    length = min(tokens, shapes.architecture.context_length or tokens)
    return saved_bytes(model, shapes.sites, method, rows, length, dtype)
