"""What a layout of a quantised checkpoint answers (words.py, bnb.py): which layers it has codes for, which tensors a
layer is made of, and the layer's weight.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from qia3.base.tensors import Tensors
from qia3.base.weights import GridWeight
from qia3.errors import BaseModelError

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
WORDS = (torch.int32,)
Need = tuple[tuple[torch.dtype, ...], tuple[int, ...]]  # possible types, shape


class Layout(Protocol):
    """`codes` is what the base says that it keeps."""

    @property
    def codes(self) -> str: ...

    def layers(self, model: nn.Module, tensors: Tensors) -> list[str]:
        """The modules that the files have codes for. Raises BaseModelError where config.json says otherwise."""

    def needs(self, name: str, inputs: int, outputs: int, tensors: Tensors) -> dict[str, Need]:
        """What is there for a layer, by what follows its name.

        Raises ValueError where it cannot be in this layout or not on our grid.
        """

    def weight(self, name: str, tensors: Tensors) -> GridWeight:
        """A layer with its codes. Raises ValueError."""


def marked(tensors: Tensors, mark: str) -> list[str]:
    """The modules that have a tensor whose name ends so."""
    return [name.removesuffix(mark) for name in tensors.places if name.endswith(mark)]


def refused(what: str) -> BaseModelError:
    """For what is not read, with what is."""
    return BaseModelError(f"{what}, which is not read; what is: {READ}")


READ = (
    "4-bit GPTQ (checkpoint_format gptq or gptq_v2), 4-bit AWQ (version gemm), bitsandbytes NF4, GGUF files, and float "
    "weights in safetensors"
)
