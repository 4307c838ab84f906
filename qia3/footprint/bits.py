"""How many bytes a layer takes on the 4-bit grid, by arithmetic alone, to stand beside what is on disk.

A row of K inputs in blocks of b has B = ceil(K / b) blocks and takes

    codes        B b / 2      a half byte an input, the last block filled up
    scales       4 B          float32
    zero points  ceil(B / 2)  a half byte a block, an odd last block rounded up; none on a symmetric grid

so a weight takes 4 + 32/b + 4/b bits (symmetric: 4 + 32/b) where b divides K and B is even, and a little more elsewhere. K = 576, b = 32:
B = 18, 288 + 72 + 9 = 369 bytes a row, 5.125 bits a weight.

Which block a layer has stands beside it in the manifest, because a base may keep the codes that it came with (GPTQ, AWQ, Q4_0). Where it does not
stand there (bundles from before), it is the one up to the base's block size in which the layer's rows take the fewest bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from qia3.grids.int4 import block_for


class Shape(NamedTuple):
    """A layer on the grid."""

    outputs: int
    inputs: int
    block: int
    symmetric: bool

    @property
    def blocks(self) -> int:
        """Of a row."""
        return -(-self.inputs // self.block)


def grid_bytes(shape: Shape) -> int:
    """Bytes of codes, scales and zero points of one layer."""
    zero_points = 0 if shape.symmetric else -(-shape.blocks // 2)
    return shape.outputs * (shape.blocks * shape.block // 2 + 4 * shape.blocks + zero_points)


def on_grid(outputs: int, inputs: int, at_most: int, symmetric: bool) -> Shape:
    """In the block that rows get where `at_most` is the largest."""
    return Shape(outputs, inputs, block_for(inputs, at_most, symmetric), symmetric)


def linear_shapes(manifest: Mapping[str, Any]) -> list[Shape]:
    """Every linear layer, the head among them."""
    return [_stored(manifest, layer["outputs"], layer["inputs"], layer) for layer in manifest["linears"]]


def embedding_shape(manifest: Mapping[str, Any]) -> Shape | None:
    """The embedding that is looked up in 4 bits, whether or not it is the head as well; None where there is none."""
    regions = sum(t["part"] == "embedding_codes" for t in manifest["tensors"])
    head = any(layer["role"] == "head" for layer in manifest["linears"])
    looked_up = bool(regions) and (manifest["architecture"]["tied_embedding"] or not head or regions > 1)
    if not looked_up:
        return None
    architecture, own = manifest["architecture"], manifest["base"]["grid"].get("embedding") or {}
    return _stored(manifest, architecture["vocab_size"], architecture["hidden_size"], own)


def stored_shapes(manifest: Mapping[str, Any]) -> list[Shape]:
    """What the weight file holds in 4 bits: a tied embedding and head once."""
    shapes, embedding = linear_shapes(manifest), embedding_shape(manifest)
    once = manifest["architecture"]["tied_embedding"] and any(layer["role"] == "head" for layer in manifest["linears"])
    return shapes if embedding is None or once else [*shapes, embedding]


def weight_count(shapes: list[Shape]) -> int:
    return sum(shape.outputs * shape.inputs for shape in shapes)


def _stored(manifest: Mapping[str, Any], outputs: int, inputs: int, own: Mapping[str, Any]) -> Shape:
    """On the grid that a layer's own entry names, else on the base's."""
    grid = manifest["base"]["grid"]
    if "block_size" in own:
        return Shape(outputs, inputs, own["block_size"], own["symmetric"])
    return on_grid(outputs, inputs, grid["block_size"], grid["symmetric"])


def bits_each(bytes_: int, weights: int) -> float:
    """Bits a weight, to five places; 0 where there are no weights."""
    return round(8 * bytes_ / weights, 5) if weights else 0.0
