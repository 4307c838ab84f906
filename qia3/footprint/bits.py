"""How many bytes a layer takes on its grid, by arithmetic alone, to stand beside what is on disk.

A row of K inputs in blocks of b has B = ceil(K / b) blocks and takes

                 4 bits                                                     8 bits
    codes        B b / 2      a half byte an input, the last block full     B b     a byte an input
    scales       4 B          float32                                       4 B
    zero points  ceil(B / 2)  a half byte a block, an odd one rounded up    B       a byte a block

with no zero points on a symmetric grid. So a weight takes 4 + 32/b + 4/b bits (symmetric: 4 + 32/b) where b divides K and B is even, and a
little more elsewhere; at 8 bits 8 + 32/b + 8/b. K = 576, b = 32: B = 18, 288 + 72 + 9 = 369 bytes a row, 5.125 bits a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from qia3.grids import int4, int8


class Shape(NamedTuple):
    """A layer's shape and the bits of its codes."""

    outputs: int
    inputs: int
    bits: int = 4

    def block(self, grid: Mapping[str, Any]) -> int:
        """The block that its rows get on the manifest's grid, whose block is the largest there is."""
        chosen = int4.block_for if self.bits == 4 else int8.block_for
        return chosen(self.inputs, grid["block_size"], grid["symmetric"])


def grid_bytes(shape: Shape, grid: Mapping[str, Any]) -> int:
    """Bytes of codes, scales and zero points of one layer."""
    block = shape.block(grid)
    if shape.bits == 8:
        return shape.outputs * int8.row_bytes(shape.inputs, block, grid["symmetric"])
    blocks = -(-shape.inputs // block)
    return shape.outputs * (blocks * block // 2 + 4 * blocks + (0 if grid["symmetric"] else -(-blocks // 2)))


def linear_shapes(manifest: Mapping[str, Any]) -> list[Shape]:
    """Every linear layer, the head among them."""
    return [Shape(layer["outputs"], layer["inputs"], layer["bits"]) for layer in manifest["linears"]]


def embedding_shape(manifest: Mapping[str, Any]) -> Shape | None:
    """The embedding that is looked up on the grid, whether or not it is the head as well; None where there is none."""
    regions = sum(t["part"] == "embedding_codes" for t in manifest["tensors"])
    heads = [layer["bits"] for layer in manifest["linears"] if layer["role"] == "head"]
    tied = manifest["architecture"]["tied_embedding"]
    looked_up = bool(regions) and (tied or not heads or regions > 1)
    shape = manifest["architecture"]["vocab_size"], manifest["architecture"]["hidden_size"]
    return Shape(*shape, heads[0] if tied and heads else 4) if looked_up else None


def stored_shapes(manifest: Mapping[str, Any]) -> list[Shape]:
    """What the weight file holds on the grid: a tied embedding and head once."""
    shapes, embedding = linear_shapes(manifest), embedding_shape(manifest)
    once = manifest["architecture"]["tied_embedding"] and any(layer["role"] == "head" for layer in manifest["linears"])
    return shapes if embedding is None or once else [*shapes, embedding]


def weight_count(shapes: list[Shape]) -> int:
    return sum(shape.outputs * shape.inputs for shape in shapes)


def bits_each(bytes_: int, weights: int) -> float:
    """Bits a weight, to five places; 0 where there are no weights."""
    return round(8 * bytes_ / weights, 5) if weights else 0.0
