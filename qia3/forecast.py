"""What a model will cost, asked before anything is downloaded or built: sizes, what training keeps, and the verdicts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from qia3.base.complete import empty
from qia3.base.load import quiet
from qia3.errors import ConfigError
from qia3.footprint.before import Before, before
from qia3.footprint.device import Device
from qia3.footprint.shapes import Shapes
from qia3.footprint.verdict import verdict
from qia3.graph.distance import table_numbers
from qia3.ia3.activations import Method, saved_bytes
from qia3.ia3.shapes import read_any_config, shapes_of

TEXTS, TOKENS = 8, 128  # of a training step
USUAL_CONTEXT = 2048
METHODS: tuple[Method, ...] = ("ia3", "lora", "full")


def forecast(reference: str, contexts: Sequence[int], rows: int, devices: Sequence[Device]) -> Before:
    """For a build in blocks of 64. Verdicts are for the longest of `contexts`, USUAL_CONTEXT where there are none.

    Raises BaseModelError for a model that is not read, and ConfigError for a context that it does not have.
    """
    with quiet():
        config = read_any_config(reference)
        read = shapes_of(config, reference)
        shapes = replace(read, tabled=table_numbers(empty(copy.deepcopy(config))))
        asked = _contexts(shapes, contexts)
        kept: dict[str, int] = {method: _kept(config, shapes, method) for method in METHODS}
    verdicts = [verdict(shapes, device, max(asked), rows) for device in devices]
    return before(shapes, asked, rows, kept, (TEXTS, TOKENS), verdicts)


def _contexts(shapes: Shapes, asked: Sequence[int]) -> list[int]:
    limit = shapes.architecture.context_length
    if not asked:
        return [min(USUAL_CONTEXT, limit or USUAL_CONTEXT)]
    if limit and max(asked) > limit:
        raise ConfigError(f"{shapes.reference} has {limit:,} positions, and a context of {max(asked):,} was asked for")
    return sorted(set(asked))


def _kept(config: object, shapes: Shapes, method: Method) -> int:
    model = empty(copy.deepcopy(config))
    model.config._attn_implementation = "eager"
    length = min(TOKENS, shapes.architecture.context_length or TOKENS)
    return saved_bytes(model, shapes.sites, method, TEXTS, length, torch.bfloat16)
