"""How many bytes a layer takes on its grid, by arithmetic alone, for comparison with what is on disk.

A row of K inputs in blocks of b has B = ceil(K / b) blocks and takes

                 4 bits                                                     8 bits
    codes        B b / 2      half a byte per input, the last block full    B b     a byte per input
    scales       4 B          float32                                       4 B
    zero points  ceil(B / 2)  half a byte per block, rounded up           B       a byte per block

without zero points on a symmetric grid. So a weight takes 4 + 32/b + 4/b bits (symmetric: 4 + 32/b) if b divides K and
B is even, and a little more otherwise; at 8 bits 8 + 32/b + 8/b. K = 576, b = 32: B = 18, 288 + 72 + 9 = 369 bytes per
row, 5.125 bits per weight. On NF4 a weight of N rows takes ceil(N K / 2) bytes of codes and 4 ceil(N K / b) of scales.

The manifest gives the grid and block of each layer: a base may keep the codes that it came with (GPTQ, AWQ, Q4_0, NF4),
and some layers may be at 8 bits.
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
        """Blocks per row."""
        return -(-self.inputs // self.block)

    @property
    def bits(self) -> int:
        """Bits per code."""
        return 8 if self.format == "int8" else 4


def zero_point_bytes(shape: Shape) -> int:
    """Bytes of the zero points, which no kernel packs."""
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
    """The shape with the block that rows get if `at_most` is the largest allowed."""
    chosen = int8.block_for if format == "int8" else int4.block_for
    return Shape(outputs, inputs, chosen(inputs, at_most, symmetric), symmetric, format)


def linear_shapes(linears: Sequence[Layer]) -> list[Shape]:
    """Every linear layer, including the head."""
    return [Shape(x.outputs, x.inputs, x.block_size, x.symmetric, x.format) for x in linears]


def embedding_shape(manifest: Manifest) -> Shape | None:
    """The embedding on the grid, whether or not it is also the head; None if there is none."""
    regions = [t.bytes for t in manifest.tensors if t.part == "embedding_codes"]
    architecture, on = manifest.architecture, manifest.base.grid.embedding
    looked_up = bool(regions) and (architecture.tied_embedding or not _has_head(manifest) or len(regions) > 1)
    if not looked_up or on is None:
        return None
    shape = Shape(architecture.vocab_size, architecture.hidden_size, on.block_size, on.symmetric, on.format)
    # a table may be narrower than the states (ELECTRA, OPT-350m); its rows are whole blocks, so its codes tell its width
    width = 8 * min(regions) // (shape.bits * architecture.vocab_size)
    return shape._replace(inputs=min(width, shape.inputs))


def on_their_grid(linears: Sequence[Layer]) -> list[Layer]:
    """The layers that the graph has on their grid; for the others it has int8 weights."""
    return [layer for layer in linears if layer.products == "grid"]


def int8_bytes(linears: Sequence[Layer]) -> int:
    """Bytes of the layers that the graph has int8 weights for: a byte per weight, and a float32 scale per output. What
    smooths their inputs comes on top, and further scales of rows that are cut into parts: together about a percent.
    """
    return sum(layer.outputs * (layer.inputs + 4) for layer in in_int8(linears))


def in_int8(linears: Sequence[Layer]) -> list[Layer]:
    """The layers that the graph has int8 weights for."""
    return [layer for layer in linears if layer.products == "int8"]


def stored_shapes(manifest: Manifest) -> list[Shape]:
    """What the weight file holds on the grid; a tied embedding and head count once."""
    shapes, embedding = linear_shapes(on_their_grid(manifest.linears)), embedding_shape(manifest)
    once = manifest.architecture.tied_embedding and _has_head(manifest)
    return shapes if embedding is None or once else [*shapes, embedding]


def _has_head(manifest: Manifest) -> bool:
    return any(layer.role == "head" for layer in on_their_grid(manifest.linears))


def weight_count(shapes: list[Shape]) -> int:
    return sum(shape.outputs * shape.inputs for shape in shapes)


def bits_each(bytes_: int, weights: int) -> float:
    """Bits per weight, to five places; 0 without weights."""
    return round(8 * bytes_ / weights, 5) if weights else 0.0
