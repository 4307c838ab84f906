"""The protocol of a quantised checkpoint's layout (words.py, bnb.py, compressed.py, mlx.py): which layers it has codes
for, which tensors each of them consists of, and its weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from qia3.base.drift import Moved
from qia3.base.tensors import Tensors
from qia3.base.weights import GridWeight
from qia3.errors import BaseModelError

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
WORDS = (torch.int32,)
Need = tuple[tuple[torch.dtype, ...], tuple[int, ...]]  # possible types, shape


@dataclass(frozen=True)
class Loaded:
    """A layer's weight: with its own codes, or as floats [N, K] if none of our grids has its codes.

    `moved`: how far it is from the file's weight, if the two grids are not the same.
    """

    weight: GridWeight | Tensor
    moved: Moved | None = None


class Layer(Protocol):
    """The form in which one layer is stored."""

    def needs(self, name: str, inputs: int, outputs: int, tensors: Tensors) -> dict[str, Need]:
        """Types and shapes of its tensors, by the suffix of their names.

        Raises ValueError if it cannot be in this layout or on our grid.
        """

    def load(self, name: str, tensors: Tensors) -> Loaded:
        """Its weight. Raises ValueError if the tensors are invalid."""


class Layout(Protocol):
    """`codes` is the format's name in the base's record."""

    @property
    def codes(self) -> str: ...

    def layers(self, model: nn.Module, tensors: Tensors) -> Mapping[str, Layer]:
        """The modules that the files have codes for. Raises BaseModelError if config.json says otherwise."""


def marked(tensors: Tensors, mark: str) -> list[str]:
    """The modules that have a tensor whose name ends in `mark`."""
    return [name.removesuffix(mark) for name in tensors.places if name.endswith(mark)]


def refused(what: str) -> BaseModelError:
    """The error for an unsupported checkpoint, listing what is supported."""
    return BaseModelError(f"{what}, which is not supported; supported: {READ}")


READ = (
    "4-bit GPTQ (checkpoint_format gptq or gptq_v2), 4-bit AWQ (version gemm), bitsandbytes NF4, GGUF files, "
    "4-bit compressed-tensors (pack-quantized), 4-bit MLX (affine), and float weights in safetensors"
)
