"""Relative position biases (T5) as tables over the distance of two tokens.

    scores[h, i, j] += b[h, j - i]

transformers' models compute them by a method `compute_bias(query_length, key_length, device, past_seen_tokens)` [1, H,
S, T]: buckets of distances, by a logarithm, with a learned row for each bucket. The result for many distances is
computed once, here, and must depend on the distance only. Beyond some distance it no longer changes (128 in T5), so the
table ends there and serves texts of any length:

    table [2 n + 1, H]    row n + d is the bias of distance d, -n <= d <= n, and the ends hold beyond

The graph looks up distances in it. It computes no logarithm, which would round differently at bucket edges in every
runtime, and its positions come from the number of earlier tokens, which the model's own method does not see here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from qia3.errors import BaseModelError

METHOD = "compute_bias"
TABLE = "relative_bias"  # the buffer that a module has while it is exported


@contextmanager
def tabulated(stack: nn.Module, span: Any, positions: int) -> Iterator[None]:
    """Every module of `stack` with its own bias looks it up in a table computed for `positions`.

    `span` gives the number of earlier tokens (a 0-d Tensor), and of all tokens, as a Tensor and as a length. Raises
    BaseModelError if a bias does not depend on distances only.
    """
    found = [(name, m, table) for name, m in stack.named_modules() if (table := _table(name, m, positions)) is not None]
    try:
        for _, module, table in found:
            module.register_buffer(TABLE, table, persistent=False)
            module.__dict__[METHOD] = _lookup(module, span)
        yield
    finally:
        for _, module, _ in found:
            delattr(module, TABLE)
            module.__dict__.pop(METHOD, None)


def _lookup(module: nn.Module, span: Any) -> Any:
    def compute_bias(
        query_length: int, key_length: int, device: Any = None, past_seen_tokens: Any = 0
    ) -> Tensor:  # [1, H, S, T]
        table = getattr(module, TABLE)
        reach, heads = table.shape[0] // 2, table.shape[1]
        before, total, length = span()
        keys = symbolic(
            "Range",
            (torch.tensor(0), total, torch.tensor(1)),
            {},
            dtype=torch.long,
            shape=(length,),
            version=11,
        )
        queries = before + torch.arange(query_length)
        distance = (keys[None] - queries[:, None]).clamp(-reach, reach) + reach  # [S, T]
        # gathers a row of all heads, then transposes: gathering 512 x 512 single numbers per head takes three times as long
        rows: Tensor = symbolic(
            "Gather", (table, distance), {"axis": 0}, dtype=table.dtype, shape=(query_length, length, heads), version=13
        )
        return rows.permute(2, 0, 1)[None]

    return compute_bias


@torch.no_grad()
def _table(name: str, module: nn.Module, positions: int) -> Tensor | None:
    """The table [2 n + 1, H], or None if the module has no bias of its own."""
    try:
        full = getattr(module, METHOD)(positions, positions)
    except (AttributeError, TypeError):
        return None
    if not isinstance(full, Tensor) or full.dim() != 4:
        return None
    # the first row holds distances 0 to n, the first column 0 to -n
    line = torch.cat([full[0, :, 1:, 0].flip(-1), full[0, :, 0]], -1).float()  # [H, 2 positions - 1]
    for i in {0, positions // 3, positions - 1}:
        if not torch.equal(full[0, :, i].float(), line[:, positions - 1 - i : 2 * positions - 1 - i]):
            raise BaseModelError(
                f"{name} adds biases to its attention scores that depend on more than the distance of two tokens"
            )
    middle = positions - 1
    changes = (line[:, 1:] != line[:, :-1]).any(0).nonzero().flatten()
    ends = [middle - int(changes.min()), int(changes.max()) + 1 - middle] if len(changes) else [0]
    reach = max(*ends, 1) if len(ends) > 1 else 1
    reach = min(reach, middle) if middle else 0
    return line[:, middle - reach : middle + reach + 1].T.contiguous()
