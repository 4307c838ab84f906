"""How many bytes a layer takes on its grid, by arithmetic alone, to stand beside what is on disk.

A row of K inputs in blocks of b has B = ceil(K / b) blocks and takes

                 4 bits                                                     8 bits
    codes        B b / 2      a half byte an input, the last block full     B b     a byte an input
    scales       4 B          float32                                       4 B
    zero points  ceil(B / 2)  a half byte a block, an odd one rounded up    B       a byte a block

with no zero points on a symmetric grid. So a weight takes 4 + 32/b + 4/b bits (symmetric: 4 + 32/b) where b divides K
and B is even, and a little more elsewhere; at 8 bits 8 + 32/b + 8/b. K = 576, b = 32: B = 18, 288 + 72 + 9 = 369 bytes
a row, 5.125 bits a weight. On NF4 a weight of N rows takes ceil(N K / 2) bytes of codes and 4 ceil(N K / b) of scales.

Which grid and block a layer has stands beside it in the manifest: a base may keep the codes that it came with (GPTQ,
AWQ, Q4_0, NF4), and some layers may be at 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from qia3.bundle.manifest import Layer, Manifest
from qia3.grids import int4, int8


class Shape(NamedTuple):
    """A layer on a grid."""

    outputs: int
    inputs: int
    block: int
    symmetric: bool
    format: str = "int4"

    @property
    def blocks(self) -> int:
        """Of a row."""
        return -(-self.inputs // self.block)

    @property
    def bits(self) -> int:
        """Of a code."""
        return 8 if self.format == "int8" else 4


def zero_point_bytes(shape: Shape) -> int:
    """Those of them that are zero points, which no kernel packs."""
    if shape.symmetric or shape.format == "nf4":
        return 0
    return shape.outputs * (shape.blocks if shape.bits == 8 else -(-shape.blocks // 2))


def grid_bytes(shape: Shape) -> int:
    """Bytes of codes, scales and zero points of one layer."""
    if shape.format == "nf4":
        entries = shape.outputs * shape.inputs
        return -(-entries // 2) + 4 * -(-entries // shape.block)
    if shape.format == "int8":
        return shape.outputs * int8.row_bytes(shape.inputs, shape.block, shape.symmetric)
    return shape.outputs * int4.row_bytes(shape.inputs, shape.block, shape.symmetric)


def on_grid(outputs: int, inputs: int, at_most: int, symmetric: bool, format: str = "int4") -> Shape:
    """In the block that rows get where `at_most` is the largest."""
    chosen = int8.block_for if format == "int8" else int4.block_for
    return Shape(outputs, inputs, chosen(inputs, at_most, symmetric), symmetric, format)


def linear_shapes(linears: Sequence[Layer]) -> list[Shape]:
    """Every linear layer, the head among them."""
    return [Shape(x.outputs, x.inputs, x.block_size, x.symmetric, x.format) for x in linears]


def embedding_shape(manifest: Manifest) -> Shape | None:
    """The embedding that is looked up on the grid, whether or not it is the head as well; None where there is none."""
    regions = sum(t.part == "embedding_codes" for t in manifest.tensors)
    architecture, on = manifest.architecture, manifest.base.grid.embedding
    looked_up = bool(regions) and (architecture.tied_embedding or not _has_head(manifest) or regions > 1)
    if not looked_up or on is None:
        return None
    return Shape(architecture.vocab_size, architecture.hidden_size, on.block_size, on.symmetric, on.format)


def stored_shapes(manifest: Manifest) -> list[Shape]:
    """What the weight file holds on the grid: a tied embedding and head once."""
    shapes, embedding = linear_shapes(manifest.linears), embedding_shape(manifest)
    once = manifest.architecture.tied_embedding and _has_head(manifest)
    return shapes if embedding is None or once else [*shapes, embedding]


def _has_head(manifest: Manifest) -> bool:
    return any(layer.role == "head" for layer in manifest.linears)


def weight_count(shapes: list[Shape]) -> int:
    return sum(shape.outputs * shape.inputs for shape in shapes)


def bits_each(bytes_: int, weights: int) -> float:
    """Bits a weight, to five places; 0 where there are no weights."""
    return round(8 * bytes_ / weights, 5) if weights else 0.0
