"""Training an encoder-decoder without dropout, so that it computes what it computes on a device.

T5 and BART come with dropout at 0.1. It would make a step depend on how it is split, into parts or over processes, and
a frozen base has nothing to regularise except the few numbers of its vectors. The model stays in training mode, since
transformers recomputes activations only there. Rates are found by name: transformers keeps them as numbers on its
modules (`dropout`, `activation_dropout`, `layerdrop`), torch's layer as `p`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Sets rates to zero in the block and restores them afterwards."""
    rates = _rates(model)
    try:
        for module, name, _ in rates:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, rate in rates:
            setattr(module, name, rate)


def drops(model: nn.Module) -> bool:
    """Whether a training step depends on random draws."""
    return any(rate > 0 for _, _, rate in _rates(model))


def _rates(model: nn.Module) -> list[tuple[nn.Module, str, float]]:
    return [
        (module, name, rate)
        for module in model.modules()
        for name, rate in vars(module).items()
        if isinstance(rate, float) and ("drop" in name or (isinstance(module, nn.Dropout) and name == "p"))
    ]
