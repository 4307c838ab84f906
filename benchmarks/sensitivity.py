"""Which layers' rounding costs most: the KL divergence that each 4-bit layer alone brings, by role and by layer of the model.

    python benchmarks/sensitivity.py smollm2-135m-instruct --grid own:64

Of a layer with weights W that are rounded to W + D, the divergence is, to second order, that of the first step along D:

    KL(W, W + D) = 1/2 E (d/da log p(y | W + a D) at a = 0)^2        y drawn from the model itself

(the Fisher information along D). Positions of a sequence do not correlate, so a sequence's scores may be summed before they are squared; each
row of a batch has its own `a` in every layer, and one backward pass gives all of them. Parts add up where their errors are small. Text: the
editorials of texts.py, in pieces of 32 tokens. `--bits` spends bits on 8-bit layers, those first that take away most a bit.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from texts import articles
from torch import Tensor, nn
from torch.nn import functional as F

from qia3.base.load import _open, _quiet, load_base
from qia3.base.modules import GridLinear
from qia3.base.quantise import float_weight
from qia3.base.sources import resolve
from qia3.ia3.roles import find_roles
from qia3.progress import bar

LENGTH, ROWS = 32, 16
EIGHT = 8.625  # bits a weight of a layer at 8 bits, block 64


class Moved(nn.Module):
    """A float layer, moved by `a` along `delta`; `a` [rows, 1, 1] is new in each pass."""

    def __init__(self, base: nn.Module, delta: Tensor) -> None:
        super().__init__()
        self.base, self.delta, self.a = base, delta, torch.zeros(1)

    def forward(self, x: Tensor) -> Any:
        return self.base(x) + self.a * F.linear(x.detach(), self.delta)


def moved_layers(model: nn.Module, rounded: nn.Module) -> dict[str, Moved]:
    """Puts a Moved in the place of every linear layer of the float model, the head among them."""
    found = {}
    for name, layer in [(n, m) for n, m in rounded.named_modules() if isinstance(m, GridLinear)]:
        base = model.get_submodule(name)
        found[name] = Moved(base, layer.weight - float_weight(base).detach())
        model.set_submodule(name, found[name])
    return found


def divergences(model: Any, layers: dict[str, Moved], rows: Tensor) -> Tensor:
    """Nats a position for each layer, by rows [n, LENGTH] of token ids."""
    total = torch.zeros(len(layers))
    for ids in bar(list(rows.split(ROWS)), "scores"):
        for layer in layers.values():
            layer.a = torch.zeros(len(ids), 1, 1, requires_grad=True)
        log_p = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        drawn = torch.multinomial(log_p.detach().exp().flatten(0, 1), 1).view(*ids.shape, 1)
        scores = torch.autograd.grad(log_p.gather(-1, drawn).sum(), [layer.a for layer in layers.values()])
        total += torch.stack([s.square().sum() for s in scores])
    return total / 2 / rows.numel()


def spend(found: dict[str, tuple[float, int]], bits: float, limit: float) -> tuple[list[str], float, float]:
    """Layers to keep at 8 bits, from (nats, weights) of each; the bits a weight and the nats that are left."""
    everything, nats = sum(size for _, size in found.values()), sum(kl for kl, _ in found.values())
    taken, each = [], bits
    for name, (kl, size) in sorted(found.items(), key=lambda item: -item[1][0] / item[1][1]):
        more = size * (EIGHT - each) / everything
        if bits + more <= limit:
            taken, bits, nats = [*taken, name], bits + more, nats - kl
    return taken, bits, nats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("--grid", default="own:64")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--bits", type=float, nargs="*", default=[])
    asked = parser.parse_args()
    calibration, block = asked.grid.split(":")
    torch.manual_seed(0)
    rounded = load_base(asked.model, int(block), False, calibration).model
    with _quiet():
        model, tokenizer = _open(resolve(asked.model))
    model.eval().requires_grad_(False)
    for parameter in model.parameters():  # not model.float(): transformers refuses it for a model read from GGUF
        parameter.data = parameter.data.float()
    roles = find_roles(rounded).linears
    ids = tokenizer.encode("\n\n".join(articles()))[: asked.rows * LENGTH]
    layers = moved_layers(model, rounded)
    kl = dict(zip(layers, divergences(model, layers, torch.tensor(ids).view(-1, LENGTH)).tolist(), strict=True))
    for role in dict.fromkeys(roles.values()):
        parts = [kl[n] for n in layers if roles[n] == role]
        print(f"{role:18} {sum(parts):.4f}   1e-4 each: {' '.join(f'{1e4 * p:.0f}' for p in parts)}")
    sizes = {n: (kl[n], layer.delta.numel()) for n, layer in layers.items()}
    stores = [m.store for m in rounded.modules() if isinstance(m, GridLinear)]
    bits = 8 * sum(s.grid.nbytes for s in stores) / sum(s.inputs * s.outputs for s in stores)
    for limit in asked.bits:
        taken, spent, left = spend(sizes, bits, limit)
        chosen = {role: [n for n in taken if roles[n] == role] for role in dict.fromkeys(roles[n] for n in taken)}
        layers_of = "; ".join(
            f"{role} {','.join(n.split('.')[2] if n.count('.') > 2 else n for n in names)}" for role, names in chosen.items()
        )
        print(f"{spent:.2f} bits a weight leave {left:.3f}: {layers_of}")


if __name__ == "__main__":
    main()
