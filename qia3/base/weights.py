"""A frozen base's 4-bit weights as torch modules.

They hold their grid's own bytes (qia3.grids), so what trains is what ships.

A `GridWeight` owns the bytes of one weight and knows their arithmetic; layers (modules.py) refer to one. Every grid has
a subclass, whose buffers are the tensors of the grid's layout, with the names that they have in the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from qia3.grids import int4
from qia3.grids.blocks import Blocks, Floats, fold
from qia3.grids.calibrated import Seen, quantise_calibrated

AT_ONCE = 1 << 18  # entries that are dequantised at a time: they fit in the cache and do not fragment the heap
PART = 1 << 24  # entries that a product needs dequantised at a time: 64 MiB in float32


class GridWeight(nn.Module):
    """[outputs, inputs] on a grid. `compute` is the type that products run in; None: the type of their input.

    `hold_dense` keeps the dequantised weight between calls, which trades 4 bytes per weight (2 in bfloat16) for time
    and changes no value.
    """

    kind: ClassVar[str]
    bits: ClassVar[int]  # per code
    outputs: int
    inputs: int
    block_size: int

    def __init__(self) -> None:
        super().__init__()
        self.compute: torch.dtype | None = None
        self._dense: Tensor | None = None

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], inputs: int, block_size: int) -> Self:
        """The weight from its buffers, by name."""
        raise NotImplementedError

    @property
    def grid(self) -> Any:
        """The same bytes as numpy arrays, without a copy on a CPU."""
        raise NotImplementedError

    @property
    def folds(self) -> bool:
        """Whether no block spans two rows, so that folding is exact."""
        return True

    def rows(self, index: Tensor | slice, dtype: torch.dtype) -> Tensor:
        """Dequantised rows [..., K] in `dtype`; the arithmetic is float32, then rounded once."""
        raise NotImplementedError

    def _scaled(self, vector: np.ndarray[Any, Any]) -> Tensor:
        """The scales with row n times vector[n]."""
        raise NotImplementedError

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The whole dequantised weight [N, K] in `dtype`."""
        return self._dense if self._dense is not None and self.holds(dtype) else self._dequantised(dtype)

    def holds(self, dtype: torch.dtype) -> bool:
        """Whether `dense` has it in memory already."""
        return self._dense is not None and self._dense.dtype == dtype

    def parts(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """The dequantised weight, some rows [n, K] after the others with their place, up to PART entries each: a head of a
        large vocabulary takes a gigabyte as a whole. In one part if blocks span rows, as these depend on each other.
        """
        step = max(1, PART // self.inputs) if self.folds else self.outputs
        for start in range(0, self.outputs, step):
            place = slice(start, min(start + step, self.outputs))
            yield place, self._dequantised(dtype, place)

    def _dequantised(self, dtype: torch.dtype, place: slice | None = None) -> Tensor:
        """The rows in `place`. On a CPU a few at a time, so that intermediate values stay in its cache: 3 to 7 times
        faster, and little memory.
        """
        device, place = next(self.buffers()).device, place or slice(0, self.outputs)
        if device.type != "cpu":
            return self.rows(place, dtype)
        step = max(1, AT_ONCE // self.inputs)
        whole = torch.empty(place.stop - place.start, self.inputs, dtype=dtype)
        for start in range(place.start, place.stop, step):
            rows = slice(start, min(start + step, place.stop))
            whole[rows.start - place.start : rows.stop - place.start] = self.rows(rows, dtype)
        return whole

    def hold_dense(self, dtype: torch.dtype | None) -> None:
        """Keeps the dequantised weight in `dtype` until called with None."""
        self._dense = None
        if dtype is not None:
            self._dense = self._dequantised(dtype)

    def fold(self, vector: Tensor) -> None:
        """Multiplies output row n by vector[n], float32 [N], by multiplying its scales.

        Raises ValueError if the weight cannot be folded.
        """
        scales = self._scaled(vector.detach().float().cpu().numpy())
        self._dense = None
        self.scales = scales


class BlockWeight(GridWeight):
    """A weight in blocks of inputs (qia3.grids.blocks): codes uint8 [N, B, ...], scales float32 [N, B], zero points
    uint8 or None.
    """

    layout: ClassVar[type[Blocks]]
    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None

    def __init__(self, weight: Blocks) -> None:
        super().__init__()
        self.inputs, self.outputs, self.block_size = weight.inputs, weight.outputs, weight.block_size
        self.register_buffer("codes", torch.from_numpy(weight.codes))
        self.register_buffer("scales", torch.from_numpy(weight.scales))
        self.register_buffer(
            "zero_points", None if weight.zero_points is None else torch.from_numpy(weight.zero_points)
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], inputs: int, block_size: int) -> Self:
        zeros = tensors.get("zero_points")
        return cls(
            cls.layout(
                tensors["codes"].numpy(), tensors["scales"].numpy(), None if zeros is None else zeros.numpy(), inputs
            )
        )

    @property
    def grid(self) -> Blocks:
        zeros = None if self.zero_points is None else self.zero_points.cpu().numpy()
        return self.layout(self.codes.cpu().numpy(), self.scales.cpu().numpy(), zeros, self.inputs)

    def _scaled(self, vector: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(fold(self.grid, vector).scales).to(self.codes.device)


class Int4Weight(BlockWeight):
    """Codes uint8 [N, B, block/2], zero points uint8 [N, ceil(B/2)] or None."""

    kind, bits, layout = "int4", 4, int4.Int4

    @classmethod
    def from_float(cls, weight: Tensor, block_size: int, symmetric: bool, seen: Seen | None = None) -> Int4Weight:
        """Quantises a float weight [N, K], calibrated if the moments of its inputs are given.

        Otherwise a few rows at a time, without a full copy.
        """
        if seen is None:
            rows = torch.split(weight.detach(), max(1, AT_ONCE // weight.shape[1]))
            return cls(int4.joined([int4.quantise(_floats(part), block_size, symmetric) for part in rows]))
        return cls(quantise_calibrated(_floats(weight.detach()), seen, block_size, symmetric))

    def rows(self, index: Tensor | slice, dtype: torch.dtype) -> Tensor:
        dense = self.steps(index).mul_(self.scales[index].unsqueeze(-1))
        return dense.flatten(-2)[..., : self.inputs].to(dtype)

    def steps(self, index: Tensor | slice) -> Tensor:
        """Codes less their zero points, float32 [..., B, block]: the rows before their scales."""
        codes = self.codes[index]
        return _apart(codes).float().sub_(self._zeros(index, codes).unsqueeze(-1))

    def _zeros(self, index: Tensor | slice, codes: Tensor) -> Tensor:
        """Zero points as float32 [..., B]."""
        if self.zero_points is None:
            return torch.full(codes.shape[:-1], float(int4.SYMMETRIC_ZERO), device=codes.device)
        return _apart(self.zero_points[index])[..., : codes.shape[-2]].float()


def _apart(packed: Tensor) -> Tensor:
    """Nibbles uint8 [..., 2 n] of bytes [..., n], the low one first: as the two bytes of a word. A stack of both takes
    twice as long.
    """
    words = packed.to(torch.int16)
    return (words | (words << 4)).bitwise_and_(0x0F0F).view(torch.uint8)


def _floats(weight: Tensor) -> Floats:
    return np.ascontiguousarray(weight.float().cpu().numpy())
