"""Batches of several tasks as one: their rows stacked, padded to the longest.

Each task's rows are laid out as for the task alone (packed if the model packs), so only padding is added, on the right,
where nothing looks at it. Places in a row change with its length, from r L + slot to (first + r) L' + slot:

    task 1, rows of 3      task 2, a row of 5      joined, rows of 5      owner
    a b c                  p q r s t               a b c . .              0
    d e .                                          d e . . .              0
                                                   p q r s t              1

The result is split again: each task reads its own places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qia3.batching.rows import PADDING
from qia3.train.headed import TextRows
from qia3.train.model import Input, Rows


@dataclass(frozen=True)
class Joined:
    """`owner` int64 [R]: the task of each row; `encoder_owner` [E]: the task of each prompt of an encoder-decoder."""

    given: Input
    owner: Tensor
    encoder_owner: Tensor | None
    sizes: list[int]  # of each task's share of the result
    lengths: list[int] | None = None  # of each task's own rows, if the result has rows

    def cut(self, computed: Tensor) -> list[Tensor]:
        """Splits the result, one part per task."""
        parts = torch.split(computed, self.sizes)
        return (
            [part[:, :length] for part, length in zip(parts, self.lengths, strict=True)]
            if self.lengths
            else list(parts)
        )


def joined(given: Sequence[Input]) -> Joined:
    """The batches joined, in this order."""
    texts = [rows for rows in given if isinstance(rows, TextRows)]
    return _texts(texts) if texts else _rows([rows for rows in given if isinstance(rows, Rows)])


def _texts(given: Sequence[TextRows]) -> Joined:
    whole = TextRows(_stacked([t.input_ids for t in given], 0), _stacked([t.attention_mask for t in given], 0))
    sizes, lengths = ([t.input_ids.shape[axis] for t in given] for axis in (0, 1))
    return Joined(whole, _owner([t.input_ids for t in given]), None, sizes, lengths)


def _rows(given: Sequence[Rows]) -> Joined:
    length = max(rows.input_ids.shape[1] for rows in given)
    firsts = _starts([len(rows.input_ids) for rows in given])
    places = [_moved(rows, first, length) for rows, first in zip(given, firsts, strict=True)]
    whole = Rows(_stacked([rows.input_ids for rows in given], 0), torch.cat(places), *_trees(given), *_prompts(given))
    sizes = [len(rows.places) for rows in given]
    owner = _owner([rows.input_ids for rows in given])
    prompts = [rows.prompts for rows in given if rows.prompts is not None]
    return Joined(whole, owner, _owner(prompts) if prompts else None, sizes)


def _moved(rows: Rows, first: int, length: int) -> Tensor:
    """The places of a task's rows, which now begin at row `first` and have `length` slots."""
    own = rows.input_ids.shape[1]
    return (first + rows.places // own) * length + rows.places % own


def _trees(given: Sequence[Rows]) -> tuple[Tensor | None, ...]:
    """Positions, trees and branches: None if no task has any; a task without them has one tree per row."""
    if all(rows.tree is None for rows in given):
        return None, None, None
    plain = [torch.zeros_like(rows.input_ids) for rows in given]
    counted = [torch.arange(p.shape[1], device=p.device).expand_as(p) for p in plain]
    positions = [
        rows.position_ids if rows.position_ids is not None else c for rows, c in zip(given, counted, strict=True)
    ]
    trees = [rows.tree if rows.tree is not None else p for rows, p in zip(given, plain, strict=True)]
    branches = [rows.branch if rows.branch is not None else p for rows, p in zip(given, plain, strict=True)]
    beside = given[0].prompts is not None  # a decoder row counts its slots
    return None if beside else _stacked(positions, 0), _stacked(trees, PADDING), _stacked(branches, 0)


def _prompts(given: Sequence[Rows]) -> tuple[Tensor | None, ...]:
    """For an encoder-decoder: prompts, their mask, and which prompt's states each row reads."""
    prompts = [rows.prompts for rows in given if rows.prompts is not None]
    masks = [rows.prompt_mask for rows in given if rows.prompt_mask is not None]
    sources = [rows.source for rows in given if rows.source is not None]
    if not prompts:
        return None, None, None
    moved = [source + start for source, start in zip(sources, _starts([len(p) for p in prompts]), strict=True)]
    return _stacked(prompts, 0), _stacked(masks, 0), torch.cat(moved)


def _stacked(tensors: Sequence[Tensor], fill: int) -> Tensor:
    """Stacks [R_i, L_i], padded on the right."""
    length = max(t.shape[1] for t in tensors)
    return torch.cat([torch.nn.functional.pad(t, (0, length - t.shape[1]), value=fill) for t in tensors])


def _owner(tensors: Sequence[Tensor]) -> Tensor:
    counts = torch.tensor([len(t) for t in tensors])
    return torch.repeat_interleave(torch.arange(len(tensors)), counts).to(tensors[0].device)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:i]) for i in range(len(sizes))]
