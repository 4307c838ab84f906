"""Batches (qia3.batching.rows) as tensors, and the mask that separates the branches of a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qia3.batching import rows
from qia3.batching.rows import Totals
from qia3.batching.trees import Piece, Tree

Batch = dict[str, Tensor]


def padded(trees: Sequence[Tree], totals: Totals | None = None) -> Batch:
    """One row per answer."""
    return _tensors(rows.padded(trees, totals))


def packed(trees: Sequence[Tree], limit: int, hidden_size: int, totals: Totals | None = None) -> Batch:
    """Prompts run once; several trees share a row of at most `limit` slots if that is cheaper."""
    return _tensors(rows.packed(trees, limit, hidden_size, totals))


def lay_out(
    trees: Sequence[Tree], pieces: Sequence[Sequence[Piece]], totals: Totals | None = None, shares: bool = True
) -> Batch:
    """`pieces`, row by row, hold every answer of every tree once; the rest as in qia3.batching.rows."""
    return _tensors(rows.lay_out(trees, pieces, totals, shares))


def _tensors(batch: rows.Batch) -> Batch:
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def tree_mask(tree: Tensor, branch: Tensor, dtype: torch.dtype) -> Tensor:
    """[R, 1, L, L], zero if row i sees column j, else the lowest number of `dtype`.

    Padding sees itself and what is before it.
    """
    length = tree.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=tree.device).tril()
    same = (tree[:, :, None] == tree[:, None, :]) & (
        (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    )
    kin = same | (tree[:, None, :] == rows.BEGINNING)
    hidden = torch.zeros((), dtype=dtype, device=tree.device).masked_fill(~(kin & before), torch.finfo(dtype).min)
    return hidden[:, None]
