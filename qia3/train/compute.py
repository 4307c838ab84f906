"""The type of matrix products in training, chosen for the hardware. The vectors are always bfloat16.

bfloat16 pays off if the processor has instructions for it: 2.4 times as fast as float32, measured on 2 cores with
AVX512-BF16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from qia3.base.memory import available_bytes
from qia3.base.modules import GridLinear
from qia3.base.processor import has_fast
from qia3.train import processes

SHARE = 0.5


def choose_compute(asked: str) -> torch.dtype:
    """`asked` is "auto", "float32" or "bfloat16"."""
    if asked != "auto":
        return torch.bfloat16 if asked == "bfloat16" else torch.float32
    return torch.bfloat16 if has_fast(torch.bfloat16) else torch.float32


def set_compute(model: nn.Module, head: nn.Module | None, dtype: torch.dtype | None, most: int | None = None) -> str:
    """Makes every linear layer multiply in `dtype`; the head stays float32, and so do the losses. None undoes it.

    The dequantised weights are held if they take up to SHARE of the free memory, and `most` bytes; otherwise each
    product dequantises its own, and again in the backward pass (qia3.base.product). Returns a line that says which.
    """
    kinds = {
        m.store: torch.float32 if m is head and dtype is not None else dtype
        for m in model.modules()
        if isinstance(m, GridLinear)
    }
    needed = sum(store.outputs * store.inputs * kind.itemsize for store, kind in kinds.items() if kind is not None)
    free = available_bytes(next(model.parameters()).device) // (processes.count() * processes.neighbours())
    holds = needed <= min(SHARE * free, needed if most is None else most)
    for store, kind in kinds.items():
        store.compute = kind
        store.hold_dense(kind if holds else None)
    size, room = f"{needed / 2**30:.2f} GiB", f"{free / 2**30:.2f} GiB free"
    return (
        f"weights are dequantised once and held ({size}, {room})"
        if holds
        else f"weights are dequantised in each product ({size}, {room})"
    )


@contextmanager
def computing(model: PreTrainedModel, dtype: torch.dtype, most: int | None = None) -> Iterator[str]:
    """`set_compute` for the block, undone afterwards. Yields its line."""
    try:
        yield set_compute(model, model.get_output_embeddings(), dtype, most)
    finally:
        set_compute(model, None, None)
