"""What a module that computes attention itself (ia3/by_hand.py) adds to its scores: a mask, and a bias per key.

    scores[h, i, j] = a (q_i . k_j) + t[h, j] + r[h, i]        where token i sees token j, a very low number elsewhere

The scale a and the table t are inferred numerically. r changes nothing, since softmax is over j. BLOOM, MPT and Falcon
with alibi (Press et al. 2021, arXiv:2108.12409) have t[h, j] = slope[h] j; Falcon rounds it to bfloat16, which is no
longer a straight line beyond 256, so its values for a long text are tabulated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from qia3.errors import BaseModelError, first_line
from qia3.ia3.roles import attention, device_of

HIDDEN = -1e4  # mask entries below it count as minus infinity
BIASES = "qia3_biases"
LONGEST = 2048  # tokens of the text that biases are read from; the scores of all heads take H S S numbers
NOISE = 1e-4


def taken_apart(scores: Tensor, q: Tensor, k: Tensor) -> tuple[float, Tensor]:
    """The scale, and everything else that was added [B, H, S, T] (the scores themselves where nothing is seen).

    Both come from double differences, which a bias per row or key does not affect: d_i d_j (scores) = a d_i d_j (q
    k^T).
    """
    products = q.double() @ k.double().transpose(2, 3).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    wide, seen = scores.double(), scores > HIDDEN
    four = seen[..., 1:, 1:] & seen[..., 1:, :-1] & seen[..., :-1, 1:] & seen[..., :-1, :-1]
    of_products, of_scores = _twice(products)[four], _twice(wide)[four]
    scale = float((of_products * of_scores).sum() / of_products.square().sum().clamp_min(1e-30))
    return scale, torch.where(seen, wide - scale * products, wide).float()


def _twice(x: Tensor) -> Tensor:
    """Differences of neighbours along the last two dimensions."""
    return x.diff(dim=-1).diff(dim=-2)


def own_window(module: nn.Module) -> int | None:
    """How many keys each token sees by a mask of the module itself; None if it has none, or one that shows all
    (GPT-Neo). Raises BaseModelError if it is not a window.
    """
    masks = [b[0, 0] for b in module.buffers(recurse=False) if b.dtype is torch.bool and b.dim() == 4]
    shown = [int(mask[-1].sum()) for mask in masks]
    for mask, count in zip(masks, shown, strict=True):
        whole = torch.ones_like(mask).tril()
        if not torch.equal(mask, whole & ~whole.tril(-count)):
            raise BaseModelError(f"{type(module).__name__} has its own mask, which is not a window")
    return min((n for n, mask in zip(shown, masks, strict=True) if n < len(mask)), default=None)


def key_biases(rest: Tensor) -> Tensor | None:
    """t [H, T] with t[:, 0] = 0 from what was added [1, H, S, T], or None if it is something else."""
    last = rest[0, :, -1:]  # sees all keys
    table = last - last[..., :1]
    apart = rest[0] - rest[0, :, :, :1] - table
    seen = rest[0] > HIDDEN
    return table[:, 0] if bool((apart[seen].abs() <= NOISE * max(1.0, float(table.abs().max()))).all()) else None


class _Enough(Exception):
    """Stops a forward pass once the first layer's scores are known."""


def bias_table(model: PreTrainedModel, short: Tensor, scale: float, positions: int) -> Tensor:
    """t [H, positions], from a text with other tokens than the one that gave `short` [H, few] and the scale.

    Raises BaseModelError if it differs there, or if it cannot be determined that far.
    """
    length = min(positions, LONGEST)
    table = _read(model, scale, length)
    few = min(short.shape[1], length)
    if table is None or not _same(table[:, :few], short[:, :few]):
        raise BaseModelError(f"{type(model).__name__} adds biases to its attention scores that depend on the text")
    steps = torch.arange(positions, dtype=torch.float64)
    slopes = table[:, -1:].double() / max(length - 1, 1)
    line = (slopes * steps).float()
    if _same(line[:, :length], table):
        return line
    if positions > length:
        raise BaseModelError(
            f"{type(model).__name__} adds biases to its attention scores that are not a straight line and are "
            f"only known up to {length} tokens: "
            f"set context_length = {length} in [export] (it is {positions})"
        )
    return table


def _same(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-6, atol=NOISE)


def _read(model: PreTrainedModel, scale: float, length: int) -> Tensor | None:
    """From two rows of the first layer's scores, since processing all of them would take too long."""
    found: list[Tensor | None] = []

    def attend(_: nn.Module, q: Tensor, k: Tensor, *__: Any, made: Any = None, **___: Any) -> Any:
        rows = [length // 2, length - 1]
        keys = k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        rest = made.scores[:, :, rows].double() - scale * q[:, :, rows].double() @ keys.transpose(2, 3)
        found.append(key_biases(rest.float()))
        raise _Enough

    AttentionInterface.register(BIASES, attend)
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = (torch.arange(length, device=device_of(model)) * 41 + 3)[None] % vocabulary
    try:
        with attention(model, BIASES), torch.no_grad():
            model(input_ids=ids, use_cache=False)
    except _Enough:
        return found[0]
    except (ValueError, RuntimeError, IndexError) as error:
        raise too_long(model, length, error) from error
    return None


def too_long(model: PreTrainedModel, length: int, error: Exception) -> BaseModelError:
    """The error for a model that fails on a text of this many tokens."""
    return BaseModelError(
        f"{type(model).__name__} does not run on a text of {length} tokens ({first_line(error)}): "
        "set a smaller context_length in [export]"
    )
