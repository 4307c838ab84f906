"""How many bytes a layer takes on the 4-bit grid, by arithmetic alone, to stand beside what is on disk.

A row of K inputs in blocks of b has B = ceil(K / b) blocks and takes

    codes        B b / 2      a half byte an input, the last block filled up
    scales       4 B          float32
    zero points  ceil(B / 2)  a half byte a block, an odd last block rounded up; none on a symmetric grid

so a weight takes 4 + 32/b + 4/b bits (symmetric: 4 + 32/b) where b divides K and B is even, and a little more elsewhere. K = 576, b = 32:
B = 18, 288 + 72 + 9 = 369 bytes a row, 5.125 bits a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qia3.grids.int4 import block_for

Shape = tuple[int, int]  # outputs, inputs


def grid_bytes(shape: Shape, block_size: int, symmetric: bool) -> int:
    """Bytes of codes, scales and zero points of one layer, in the block that its rows get where `block_size` is the largest."""
    outputs, inputs = shape
    block = block_for(inputs, block_size, symmetric)
    blocks = -(-inputs // block)
    return outputs * (blocks * block // 2 + 4 * blocks + (0 if symmetric else -(-blocks // 2)))


def linear_shapes(manifest: Mapping[str, Any]) -> list[Shape]:
    """Every linear layer, the head among them."""
    return [(layer["outputs"], layer["inputs"]) for layer in manifest["linears"]]


def embedding_shape(manifest: Mapping[str, Any]) -> Shape | None:
    """The embedding that is looked up in 4 bits, whether or not it is the head as well; None where there is none."""
    regions = sum(t["part"] == "embedding_codes" for t in manifest["tensors"])
    head = any(layer["role"] == "head" for layer in manifest["linears"])
    looked_up = bool(regions) and (manifest["architecture"]["tied_embedding"] or not head or regions > 1)
    return (manifest["architecture"]["vocab_size"], manifest["architecture"]["hidden_size"]) if looked_up else None


def stored_shapes(manifest: Mapping[str, Any]) -> list[Shape]:
    """What the weight file holds in 4 bits: a tied embedding and head once."""
    shapes, embedding = linear_shapes(manifest), embedding_shape(manifest)
    once = manifest["architecture"]["tied_embedding"] and any(layer["role"] == "head" for layer in manifest["linears"])
    return shapes if embedding is None or once else [*shapes, embedding]


def weight_count(shapes: list[Shape]) -> int:
    return sum(outputs * inputs for outputs, inputs in shapes)


def bits_each(bytes_: int, weights: int) -> float:
    """Bits a weight, to five places; 0 where there are no weights."""
    return round(8 * bytes_ / weights, 5) if weights else 0.0
