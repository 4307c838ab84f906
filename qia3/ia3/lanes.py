"""Vectors of several tasks on one frozen base: each row of a batch is multiplied by its own task's vectors.

A lane is a set of trainable offsets, one for each site of the base, like those in the base's own layers
(qia3.ia3.vectors), but outside the model. During `worn` the model's layers take theirs from the lanes:

    offsets of T lanes   [T, d]      l = 1 + bfloat16(offset)
    lane of each row     [R]         rows 0 0 0 1 2 2: three rows of the first lane, one of the second, two of the third
    vectors              [R, 1, d]   gathered; gradients flow back the same way and are summed per lane
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from qia3.ia3.vectors import Scaled

Lane = Mapping[str, Scaled]


def new_lane(scaled: Mapping[str, Scaled]) -> dict[str, Scaled]:
    """New offsets for the same layers, on their device."""
    lane = {name: Scaled(layer.base, layer.site) for name, layer in scaled.items()}
    for name, layer in lane.items():
        layer.delta.data = layer.delta.data.to(scaled[name].delta.device)
        if layer.rows is not None:
            layer.rows = layer.rows.to(layer.delta.device)
    return lane


@contextmanager
def worn(
    scaled: Mapping[str, Scaled], lanes: Sequence[Lane], rows: Tensor, encoder_rows: Tensor | None
) -> Iterator[None]:
    """`rows` int64 [R]: the lane of each row; `encoder_rows` [E]: the same for the encoder of an encoder-decoder."""

    def chooser(name: str, owner: Tensor) -> None:
        scaled[name].chosen = lambda: gathered([lane[name] for lane in lanes], owner)

    try:
        for name, layer in scaled.items():
            chooser(name, encoder_rows if layer.site.in_encoder and encoder_rows is not None else rows)
        yield
    finally:
        for layer in scaled.values():
            layer.chosen = None


def gathered(layers: Sequence[Scaled], owner: Tensor) -> Tensor:
    """[R, 1, size]: row r has the vector of layer owner[r]."""
    first = layers[0]
    vectors = 1 + torch.stack([layer.delta for layer in layers]).to(first.precision).float()  # [T, d]
    if first.rows is not None:
        ones = vectors.new_ones(len(layers), first.site.size)
        vectors = ones.index_copy(1, first.rows, vectors)
    return vectors[owner][:, None]
