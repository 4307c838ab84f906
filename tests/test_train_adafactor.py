"""Adafactor on offsets from one is transformers' Adafactor on the vectors themselves, as T-Few has them: matrices of
one column.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor as Stock

from qia3.train.adafactor import Adafactor


def gradients(steps: int, size: int) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    return [
        torch.randn(size, generator=made) * 10.0 ** torch.randint(-6, 3, (1,), generator=made) for _ in range(steps)
    ]


@pytest.mark.parametrize("shape", [(37, 1), (37,)])
def test_offsets_follow_the_vectors_of_t_few(shape):
    vector, offset = nn.Parameter(torch.ones(shape, dtype=torch.float64)), nn.Parameter(torch.zeros(37))
    stock = Stock([vector], lr=3e-3, scale_parameter=True, relative_step=False)
    ours = Adafactor([offset], lr=3e-3)
    for gradient in gradients(60, 37):
        vector.grad, offset.grad = gradient.double().reshape(shape), gradient.clone()
        stock.step()
        ours.step()
    assert offset.abs().max() > 0.01
    torch.testing.assert_close(1 + offset.double(), vector.detach().flatten(), rtol=1e-5, atol=1e-6)


def test_stock_adafactor_on_offsets_would_creep():
    """The reason for this file."""
    offset, stock = nn.Parameter(torch.zeros(37)), nn.Parameter(torch.zeros(37))
    for optimiser, parameter in (
        (Adafactor([offset], 3e-3), offset),
        (Stock([stock], lr=3e-3, relative_step=False), stock),
    ):
        parameter.grad = torch.ones(37)
        optimiser.step()
    assert float(offset.detach().abs().max()) == pytest.approx(3e-3)
    assert float(stock.detach().abs().max()) == pytest.approx(3e-6)


def test_a_state_that_was_saved_goes_on():
    halves, whole = (nn.Parameter(torch.zeros(8)) for _ in range(2))
    optimiser, other = Adafactor([halves], 1e-2), Adafactor([whole], 1e-2)
    for i, gradient in enumerate(gradients(10, 8)):
        halves.grad, whole.grad = gradient.clone(), gradient.clone()
        if i == 5:
            state = optimiser.state_dict()
            optimiser = Adafactor([halves], 1e-2)
            optimiser.load_state_dict(state)
        optimiser.step()
        other.step()
    assert torch.equal(halves, whole)
