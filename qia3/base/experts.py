"""A mixture of experts on the grid: the weights of all experts of a layer, which transformers keeps in two tensors.

    gate_up_proj [E, 2 I, H]    down_proj [E, H, I]        y = sum over the chosen e of w_e down_e(silu(gate_e x) * up_e x)

They become two weights on the grid, [E 2 I, H] and [E H, I], with the rows of one expert after another. ONNX Runtime's
QMoE expects gate and up interleaved (gate 0, up 0, gate 1, up 1, ...), so their rows are stored like that here, too:
what trains is what ships. The router stays in float. Whether a module computes this formula is tested numerically; one
that does not (GPT-OSS) stays in float and is refused later.

Experts have no vectors. PEFT's IA³ wraps linear layers, which these are not; the paper has no experts; with many
experts, a few examples give each only a few tokens; and the operator has no input for a vector per expert.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qia3.base.modules import GridLinear
from qia3.base.weights import GridWeight, Int4Weight
from qia3.grids.blocks import BLOCK_SIZES

NAMES = ("experts", "moe")  # names of such modules
UP, DOWN = "gate_up_proj", "down_proj"


class GridExperts(nn.Module):
    """forward(hidden [T, H], top_k_index [T, k], top_k_weights [T, k]) -> [T, H], as transformers' own."""

    def __init__(self, up: GridLinear, down: GridLinear) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = up, down
        self.hidden_size, self.inner_size = up.in_features, down.in_features
        self.count = down.out_features // up.in_features

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        out = torch.zeros_like(hidden_states)
        for expert in torch.unique(top_k_index).tolist():
            token, choice = torch.where(top_k_index == expert)
            rows = self._of(expert, hidden_states[token]) * top_k_weights[token, choice, None]
            out = out.index_add(0, token, rows.to(out.dtype))
        return out

    def _of(self, expert: int, x: Tensor) -> Tensor:
        # x [T, H] -> [T, H]
        both = _part(x, self.gate_up_proj.store, expert, 2 * self.inner_size)
        return _part(F.silu(both[:, 0::2]) * both[:, 1::2], self.down_proj.store, expert, self.hidden_size)


def _part(x: Tensor, weight: GridWeight, expert: int, size: int) -> Tensor:
    """The product with one expert's rows, in the weight's compute type; returned in the type of x."""
    rows = slice(expert * size, (expert + 1) * size)
    result: Tensor = _Part.apply(x.to(weight.compute or x.dtype), weight, rows)  # type: ignore[no-untyped-call]
    return result.to(x.dtype)


class _Part(torch.autograd.Function):
    """Saves the weight's module and no tensor for backward, as qia3.base.product does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: GridWeight, rows: slice) -> Tensor:
        ctx.weight, ctx.rows, ctx.dtype = weight, rows, x.dtype
        return F.linear(x, _dense(weight, rows, x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ _dense(ctx.weight, ctx.rows, ctx.dtype), None, None


def _dense(weight: GridWeight, rows: slice, dtype: torch.dtype) -> Tensor:
    return weight.dense(dtype)[rows] if weight.holds(dtype) else weight.rows(rows, dtype)


def float_experts(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that choose an expert for each token and are not on the grid, by name."""
    return {n: m for n, m in model.named_modules() if n.rpartition(".")[2] in NAMES and not isinstance(m, GridExperts)}


def mixtures(model: nn.Module) -> dict[str, nn.Module]:
    """Mixtures of experts that are on the grid or can be put there."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, GridExperts)}
    return found | {n: m for n, m in float_experts(model).items() if fits(m)}


def fits(module: nn.Module) -> bool:
    """Whether a float module computes the formula and its sizes are multiples of the smallest block."""
    return not any(size % min(BLOCK_SIZES) for size in _sizes(module)) and _is_formula(module)


def products(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of a float module's two weights on the grid, by name."""
    sizes, shapes = _sizes(module), [getattr(module, name).shape for name in (UP, DOWN)]
    return {name: (size, s[0] * s[1]) for name, size, s in zip((UP, DOWN), sizes, shapes, strict=True)}


def put_on_grid(model: nn.Module, block_size: int, symmetric: bool) -> None:
    """Quantises every mixture that computes the formula, in blocks of up to `block_size` that divide its rows."""
    for name, module in float_experts(model).items():
        blocks = [b for b in BLOCK_SIZES if b <= block_size and not any(n % b for n in _sizes(module))]
        if not blocks or not fits(module):
            continue
        up, down = getattr(module, UP).detach(), getattr(module, DOWN).detach()
        gate, linear = up.chunk(2, dim=1)
        turned = torch.stack((gate, linear), dim=2).reshape(-1, up.shape[2])
        stores = [Int4Weight.from_float(w, blocks[-1], symmetric) for w in (turned, down.reshape(-1, down.shape[2]))]
        model.set_submodule(name, GridExperts(*map(GridLinear, stores)))


def gathered(model: nn.Module) -> None:
    """Puts the mixtures of a cached base together, whose tensors are layers on the grid already."""
    for name, module in float_experts(model).items():
        up, down = getattr(module, UP, None), getattr(module, DOWN, None)
        if isinstance(up, GridLinear) and isinstance(down, GridLinear):
            model.set_submodule(name, GridExperts(up, down))


def _sizes(module: nn.Module) -> tuple[int, ...]:
    """Inputs of the two products; 1 for a module with other tensors, which no block divides."""
    shapes = {name: p.shape for name, p in module.named_parameters()}
    if shapes.keys() != {UP, DOWN} or any(len(s) != 3 for s in shapes.values()):
        return (1,)
    (count, both, size), down = shapes[UP], shapes[DOWN]
    return (size, both // 2) if down == (count, size, both // 2) else (1,)


@torch.no_grad()
def _is_formula(module: nn.Module) -> bool:
    """Tested on three tokens, with the first and the last expert."""
    up, down = getattr(module, UP), getattr(module, DOWN)
    x = torch.randn(3, up.shape[2], generator=torch.Generator().manual_seed(0)).to(up)
    chosen, weights = torch.tensor([[0, len(up) - 1]] * 3, device=up.device), torch.tensor([[0.7, 0.4]] * 3).to(up)
    expected = torch.zeros_like(x)
    for expert, weight in ((0, 0.7), (len(up) - 1, 0.4)):
        gate, linear = F.linear(x, up[expert]).chunk(2, dim=-1)
        expected += weight * F.linear(F.silu(gate) * linear, down[expert])
    try:
        seen = module(x, chosen, weights)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    exact = up.dtype == torch.float32
    return isinstance(seen, Tensor) and torch.allclose(
        seen, expected, rtol=1e-3 if exact else 5e-2, atol=(1e-5 if exact else 2e-2) * float(expected.abs().max())
    )
