"""What a layout of a quantised checkpoint answers (words.py, bnb.py, compressed.py, mlx.py): which layers it has codes
for, and for each of them which tensors it is made of, and its weight.
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
    """A layer's weight: with its codes; or as floats [N, K], where it has codes that none of our grids has.

    `moved`: how far it is from what the file stands for, where the two grids are not the same.
    """

    weight: GridWeight | Tensor
    moved: Moved | None = None


class Layer(Protocol):
    """How one layer is stored."""

    def needs(self, name: str, inputs: int, outputs: int, tensors: Tensors) -> dict[str, Need]:
        """What is there for it, by what follows its name.

        Raises ValueError where it cannot be in this layout or not on our grid.
        """

    def load(self, name: str, tensors: Tensors) -> Loaded:
        """Its weight. Raises ValueError."""


class Layout(Protocol):
    """`codes` is what the base says that it keeps."""

    @property
    def codes(self) -> str: ...

    def layers(self, model: nn.Module, tensors: Tensors) -> Mapping[str, Layer]:
        """The modules that the files have codes for. Raises BaseModelError where config.json says otherwise."""


def marked(tensors: Tensors, mark: str) -> list[str]:
    """The modules that have a tensor whose name ends so."""
    return [name.removesuffix(mark) for name in tensors.places if name.endswith(mark)]


def refused(what: str) -> BaseModelError:
    """For what is not read, with what is."""
    return BaseModelError(f"{what}, which is not read; what is: {READ}")


READ = (
    "4-bit GPTQ (checkpoint_format gptq or gptq_v2), 4-bit AWQ (version gemm), bitsandbytes NF4, GGUF files, "
    "4-bit compressed-tensors (pack-quantized), 4-bit MLX (affine), and float weights in safetensors"
)
