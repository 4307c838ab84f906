"""A model's sizes before it is built: its numbers, what each is for, and what they take in each form.

    form        linear layers                                embeddings and head              everything else
    float32     4 bytes per number                           4                                4
    bfloat16    2                                            2                                2
    nf4         4 bits and a float32 scale per block         4, as bitsandbytes leaves them   4
    int4, int8  the grids of bits.py, in blocks of b         the same                         4

Rows of an embedding are looked up without padding, so its block is the largest one, up to the one asked for, that
divides its width. A table that is also the head counts once. What transformers keeps in float (T5's `wo`) stays in
float on both grids. So the parts of a form sum to what its weights take on disk; the graph, the tokenizer and the
bundle's own files come on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qia3.bundle.manifest import Architecture, Code, Dense, Layer
from qia3.bundle.sites import Site
from qia3.footprint.bits import Shape, grid_bytes, on_grid
from qia3.footprint.lora import unfolding
from qia3.grids.blocks import BLOCK_SIZES

CODES: dict[str, tuple[Code, Literal[4, 8]]] = {"nf4": ("nf4", 4), "int4": ("int4", 4), "int8": ("int8", 8)}
PARTS = ("embedding", "head", "attention", "feed_forward", "experts", "other_linear", "norms_biases_and_positions")
ATTENTION = ("query", "key", "value", "qkv", "attention_output")
FEED_FORWARD = ("feed_forward", "feed_forward_up", "feed_forward_down")


@dataclass(frozen=True)
class Matrix:
    """A linear layer. `once`: it runs for the prompt only; `stays_float`: not on a grid, unless a build file names it."""

    name: str
    role: str
    inputs: int
    outputs: int
    once: bool = False
    stays_float: bool = False

    @property
    def numbers(self) -> int:
        return self.inputs * self.outputs

    @property
    def part(self) -> str:
        """Its part, one of PARTS."""
        if self.role in ("head", "experts"):
            return self.role
        if self.role in ATTENTION:
            return "attention"
        return "feed_forward" if self.role in FEED_FORWARD else "other_linear"


@dataclass(frozen=True)
class Table:
    """A table for token ids. `quantisable`: its rows are used unchanged, or times a constant."""

    rows: int
    width: int
    quantisable: bool = True

    @property
    def numbers(self) -> int:
        return self.rows * self.width


@dataclass(frozen=True)
class Shapes:
    """A model whose weights were not read.

    `matrices` are its linear layers, including the head, which is also the first of `tables` if it is tied. `sites` are
    the places of IA³ vectors, `others` the number of parameters in neither, `tabled` the number of additional ones in a
    graph that are computed from weights (DeBERTa's positions).
    """

    reference: str
    model_type: str
    architecture: Architecture
    matrices: tuple[Matrix, ...]
    tables: tuple[Table, ...]
    others: int
    sites: tuple[Site, ...]
    tabled: int = 0

    @property
    def parameters(self) -> int:
        """Number of parameters as transformers counts them: a tied table counts once."""
        return sum(self.parts().values())

    @property
    def constants(self) -> int | None:
        """Entries of vectors that do not fold (lora.unfolded)."""
        return unfolding(self.sites, {m.name for m in self.matrices if m.stays_float}, self.architecture)

    def parts(self) -> dict[str, int]:
        """Number of parameters by part; a tied head counts with the embedding."""
        found = dict.fromkeys(PARTS, 0)
        for matrix in self.matrices:
            found[matrix.part] += matrix.numbers
        if self.architecture.tied_embedding:
            found["head"] = 0
        found["embedding"] = sum(table.numbers for table in self.tables)
        found["norms_biases_and_positions"] = self.others
        return {part: count for part, count in found.items() if count}


@dataclass(frozen=True)
class Form:
    """How weights are stored: "float32", "bfloat16", "nf4", "int4" or "int8", the last three in blocks."""

    name: str
    block: int = 0
    symmetric: bool = False

    @property
    def label(self) -> str:
        return f"{self.name}, block {self.block}" if self.block else self.name

    def bytes_by_part(self, shapes: Shapes) -> dict[str, int]:
        """Bytes on disk by part."""
        found = dict.fromkeys(shapes.parts(), 0)
        for matrix in shapes.matrices:
            if matrix.part in found:
                found[matrix.part] += self.matrix_bytes(matrix)
        found["embedding"] = sum(map(self.table_bytes, shapes.tables))
        if "norms_biases_and_positions" in found:
            made = 4 * shapes.tabled if self.name in ("int4", "int8") else 0
            found["norms_biases_and_positions"] = shapes.others * (2 if self.name == "bfloat16" else 4) + made
        return found

    def matrix_bytes(self, matrix: Matrix) -> int:
        shape = self.shape(matrix)
        return matrix.numbers * (2 if self.name == "bfloat16" else 4) if shape is None else grid_bytes(shape)

    def table_bytes(self, table: Table) -> int:
        block = self.block_of(table)
        if block is None:
            return table.numbers * (2 if self.name == "bfloat16" else 4)
        return grid_bytes(on_grid(table.rows, table.width, block, self.symmetric, self.name))

    def block_of(self, table: Table) -> int | None:
        """The block of an embedding's rows; None if it stays in float."""
        if self.name not in ("int4", "int8") or not table.quantisable:
            return None
        return max((b for b in BLOCK_SIZES if table.width % b == 0 and b <= self.block), default=None)

    def shape(self, matrix: Matrix) -> Shape | None:
        """Its shape on the grid; None if it stays in float."""
        if not self.block or matrix.stays_float or (self.name == "nf4" and matrix.role == "head"):
            return None
        if self.name == "nf4":
            return Shape(matrix.outputs, matrix.inputs, self.block, True, "nf4")
        return on_grid(matrix.outputs, matrix.inputs, self.block, self.symmetric, self.name)

    def layers(self, shapes: Shapes) -> tuple[tuple[Layer, ...], tuple[Dense, ...]]:
        """The linear layers on the grid and those in float, as a manifest lists them."""
        linears, dense = [], []
        for m in shapes.matrices:
            if (shape := self.shape(m)) is None:
                dense.append(Dense(m.name, m.inputs, m.outputs, m.role, m.once))
                continue
            code, bits = CODES[self.name]
            linears.append(Layer(m.name, m.inputs, m.outputs, m.role, bits, code, shape.block, shape.symmetric, m.once))
        return tuple(linears), tuple(dense)


def total(parts: Mapping[str, int]) -> int:
    return sum(parts.values())
