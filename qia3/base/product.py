"""y = x W^T + b with W on a grid, for training: a gradient for x, none for W, and no dequantised W kept between forward
and backward.

    forward   y = x W^T + b          backward   grad_x = grad_y W

For the backward pass torch keeps what the gradient needs: for a product with a frozen weight that is W, not x. A W that
was dequantised for this product would live until the backward pass, and so would those of all layers: 13 GB for 7
billion weights in bfloat16. Here only the codes are kept, which exist anyway, and W is dequantised a second time. Of a
large W, such as a head, only some rows exist at a time. If the dense weights are held (GridWeight.hold_dense), torch's
own product keeps them without a copy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qia3.base.weights import GridWeight


def product(x: Tensor, weight: GridWeight, bias: Tensor | None) -> Tensor:
    """x [..., K] and a weight [N, K] -> [..., N], in the type of x."""
    if weight.holds(x.dtype):
        return F.linear(x, weight.dense(x.dtype), bias)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _computed(x, weight, bias)
    result: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


def _computed(x: Tensor, weight: GridWeight, bias: Tensor | None) -> Tensor:
    found = []
    for at, rows in weight.parts(x.dtype):
        found.append(F.linear(x, rows, None if bias is None else bias[at]))
        del rows  # before the next part exists
    return found[0] if len(found) == 1 else torch.cat(found, dim=-1)


class _Product(torch.autograd.Function):
    """Saves the weight's module for backward, but no tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: GridWeight, bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype
        return _computed(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """The sum over parts is float32: in bfloat16 its error would grow with their number."""
        kind = torch.promote_types(ctx.dtype, torch.float32)
        total = torch.zeros(*grad.shape[:-1], ctx.weight.inputs, dtype=kind, device=grad.device)
        for at, rows in ctx.weight.parts(ctx.dtype):
            total += grad[..., at] @ rows
            del rows
        return total.to(grad.dtype), None, None
