"""What a training step keeps for its backward pass, counted rather than estimated.

The model runs once on torch's meta device, where tensors have shapes but no numbers, and autograd reports what it
saves: each storage once, without parameters and buffers. A layer with a frozen weight keeps no input for it; a scaled
one keeps its output, LoRA keeps its inputs, full fine-tuning keeps the inputs of all. Attention is transformers' eager
one, as QIA³ trains (the scores [rows, heads, L, L] are kept, too), without activation checkpointing, and without the
loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qia3.base.family import is_encoder
from qia3.bundle.sites import Site
from qia3.ia3.vectors import attach

Method = Literal["ia3", "lora", "full"]
RANK = 8


class _Lora(nn.Module):
    """A frozen linear layer with LoRA's two narrow ones, in float32 or the layer's type."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int) -> None:
        super().__init__()
        weight = base.weight
        assert isinstance(weight, Tensor)
        self.base, self.weight = base, weight
        self.a, self.b = (
            nn.Linear(i, o, bias=False, device=weight.device, dtype=weight.dtype)
            for i, o in ((inputs, RANK), (RANK, outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.b(self.a(x))
        return y


def saved_bytes(model: Any, sites: Iterable[Site], method: Method, rows: int, length: int, dtype: torch.dtype) -> int:
    """Bytes kept by one step with `rows` texts of `length` tokens. `model` is on the meta device, and is modified.

    An encoder-decoder's encoder and decoder have that many tokens each.
    """
    model.to(dtype).eval()  # without dropout, as QIA³ trains
    model.requires_grad_(method == "full")
    with torch.device("meta"):
        if method == "ia3":
            attach(model, sites)
        elif method == "lora":
            _put_lora(model)
        ids = torch.zeros(rows, length, dtype=torch.long)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if model.config.is_encoder_decoder or is_encoder(
            model.config
        ):  # they inspect a 2-D mask's values, not a 4-D one's
            given["attention_mask"] = mask = torch.zeros(rows, 1, length, length, dtype=dtype)
        if model.config.is_encoder_decoder:
            given |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        try:
            return _saved(model, given)
        except RuntimeError:
            if not is_encoder(model.config):
                raise
            return _saved(model, given | {"attention_mask": torch.ones_like(ids)})  # DeBERTa makes its own mask of it


def _saved(model: Any, given: dict[str, Tensor]) -> int:
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model(**given, use_cache=False)  # kept alive, with the graph that holds the saved tensors
    found = sum(t.untyped_storage().nbytes() for storage, t in kept.items() if storage not in own)
    del out
    return found


def _put_lora(model: Any) -> None:
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear | Conv1D) and layer is not head:
            first, second = layer.weight.shape
            inputs, outputs = (first, second) if isinstance(layer, Conv1D) else (second, first)
            model.set_submodule(name, _Lora(layer, inputs, outputs))
