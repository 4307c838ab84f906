"""A frozen 4-bit base and its fingerprint, which adapters are bound to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from qia3.base.drift import Rounding
from qia3.base.shards import raw
from qia3.base.start import start_of
from qia3.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A frozen 4-bit model. `fingerprint` is the SHA-256 over name, type, shape and bytes of every tensor.

    `codes`: "own", or the checkpoint format that the layers' codes come from ("gptq", "gptq_v2", "awq", "q4_0",
    "compressed-tensors", "mlx"), which then also determines block size and symmetry. `rounding`: what rounding zero
    points to whole numbers changed, for formats with other offsets.
    """

    reference: str
    model: Any
    tokenizer: Any
    fingerprint: str
    block_size: int
    symmetric: bool
    parameters: int
    calibration: str = "none"
    eight_bit: tuple[str, ...] = ()  # roles of the layers that are at 8 bits
    blocks: Mapping[str, list[str]] = field(default_factory=dict)  # roles by block size, where it is not `block_size`
    codes: str = "own"
    grid: str = "int4"  # of its linear layers
    rounding: Rounding | None = None

    @cached_property
    def tokens(self) -> Tokens:
        """The tokenizer as the device runs it, limited to the embedding's rows."""
        return Tokens.of(self.tokenizer, self.model.get_input_embeddings().num_embeddings)

    @cached_property
    def start(self) -> tuple[int, ...]:
        """The tokens that an encoder-decoder's decoder starts with; empty for a decoder alone. Raises BaseModelError."""
        return start_of(self.model)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 (64 hex digits) over all tensors of the frozen base, before vectors are added."""
    return _digest(model.state_dict())


def tables(model: nn.Module) -> str:
    """The same for buffers that are computed from the configuration and not saved (rotary tables)."""
    state = model.state_dict()
    return _digest({name: buffer for name, buffer in model.named_buffers() if name not in state})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().cpu()
        digest.update(f"{name}|{data.dtype}|{tuple(data.shape)}|".encode())
        digest.update(raw(data) if data.dim() else repr(data.item()).encode())
    return digest.hexdigest()
