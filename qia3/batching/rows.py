r"""Rows of trees as arrays.

A prompt appears once, followed by its answers, and positions restart after the prompt for each answer. A slot sees
earlier slots of its own tree that belong to the prompt or to its own answer; trees in one row do not see each other. So
every slot computes what it would in a row of its own. Prompt "a b" with the answers "x <end>" and "y z <end>":

    slot       a  b  x  y  z        sees  a  b  x  y  z        logits read at    b  x  b  y  z
    position   0  1  2  2  3          a   1                    predict           x  <end>  y  z  <end>
    branch     0  0  1  2  2          b   1  1
                                      x   1  1  1              The head runs on b, x, y, z: four slots for five tokens, since both
                                      y   1  1  .  1           answers begin where the prompt ends. <end> itself is never run.
                                      z   1  1  .  1  1

The common prefix of all prompts of a batch appears once, before the trees of a row, as a tree that all others see. "a
b" and "a c", each with an answer "x <end>":

    slot       a  b  x  c  x        sees  a  b  x  c  x
    position   0  1  2  1  2          a   1
    tree      -2  0  0  1  1          b   1  1
    branch     0  0  1  0  1          x   1  1  1
                                      c   1  .  .  1
                                      x   1  .  .  1  1

If every row holds one answer (the plain batch), no mask is needed: padding is on the right, where causal attention
never looks.

A batch is a dict of arrays, with R rows of L slots, P slots for the head, T predicted tokens, A answers, E examples:

    input_ids      int64 [R, L]
    position_ids   int64 [R, L], tree int64 [R, L] (-1: padding, -2: the common prefix), branch int64 [R, L]; absent if no mask is needed
    places         int64 [P]     r * L + slot, of the slots for the head
    read           int64 [T]     index into places      targets   int64 [T]   the token predicted there
    answer         int64 [T]     whose token it is      example   int64 [A]   whose answer it is      right   bool [A]
    totals         float32 [3]   divisors of the losses (Totals)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qia3.batching.trees import Piece, Tree, beginning, plan, singles

Batch = dict[str, NDArray[Any]]
PADDING, BEGINNING = -1, -2  # in the place of a tree's number


@dataclass(frozen=True)
class Totals:
    """The divisors of the losses' sums: right tokens, wrong tokens, and examples with a choice.

    If a batch is computed in parts, they are those of the whole batch.
    """

    right: float
    wrong: float
    chosen: float


def padded(trees: Sequence[Tree], totals: Totals | None = None) -> Batch:
    """One row per answer."""
    return lay_out(trees, singles(trees), totals)


def packed(trees: Sequence[Tree], limit: int, hidden_size: int, totals: Totals | None = None) -> Batch:
    """Prompts run once; several trees share a row of at most `limit` slots if that is cheaper."""
    return lay_out(trees, plan(trees, limit, hidden_size), totals)


def count(trees: Sequence[Tree]) -> Totals:
    """The divisors of the losses over `trees`."""
    right = sum(len(t.answers[t.right]) for t in trees)
    return Totals(right, sum(len(a) for t in trees for a in t.answers) - right, sum(len(t.answers) > 1 for t in trees))


def lay_out(
    trees: Sequence[Tree], rows: Sequence[Sequence[Piece]], totals: Totals | None = None, shares: bool = True
) -> Batch:
    """`rows` hold every answer of every tree once. `totals` default to those of `trees`. `shares`: what all prompts begin
    with stands once in a row; not where a model counts distances by the slot.
    """
    first = [0]
    for tree in trees:
        first.append(first[-1] + len(tree.answers))
    shared = beginning(trees) if shares else 0
    begins = [shared if len(row) > 1 else 0 for row in rows]
    length = max(b + sum(p.slots - b for p in row) for b, row in zip(begins, rows, strict=True))
    ids, positions, owners, branches = ([[fill] * length for _ in rows] for fill in (0, 0, PADDING, 0))
    places: dict[int, int] = {}
    read: list[int] = []
    targets: list[int] = []
    answer: list[int] = []
    for r, (row, ahead) in enumerate(zip(rows, begins, strict=True)):
        end = ahead
        ids[r][:end], positions[r][:end], owners[r][:end] = row[0].tree.prompt[:end], range(end), [BEGINNING] * end
        for number, piece in enumerate(row):  # two pieces of one tree count as two trees here
            start, prompt = end, piece.tree.prompt
            end = start + len(prompt) - ahead
            ids[r][start:end], positions[r][start:end] = prompt[ahead:], range(ahead, len(prompt))
            prompt_end = end - 1
            for branch, index in enumerate(piece.answers, 1):
                tokens = piece.tree.answers[index]
                begin, end = end, end + len(tokens) - 1
                ids[r][begin:end] = tokens[:-1]
                positions[r][begin:end] = range(len(prompt), len(prompt) + len(tokens) - 1)
                branches[r][begin:end] = [branch] * (end - begin)
                for slot in (prompt_end, *range(begin, end)):
                    read.append(places.setdefault(r * length + slot, len(places)))
                targets += tokens
                answer += [first[piece.example] + index] * len(tokens)
            owners[r][start:end] = [number] * (end - start)
    used = totals or count(trees)
    batch = {
        "input_ids": np.array(ids),
        "places": np.array(list(places)),
        "read": np.array(read),
        "targets": np.array(targets),
        "answer": np.array(answer),
        "example": np.array([e for e, tree in enumerate(trees) for _ in tree.answers]),
        "right": np.array([i == tree.right for tree in trees for i in range(len(tree.answers))]),
        "totals": np.array([used.right, used.wrong, used.chosen], np.float32),
    }
    if any(len(row) > 1 or len(row[0].answers) > 1 for row in rows):
        batch |= {
            "position_ids": np.array(positions),
            "tree": np.array(owners),
            "branch": np.array(branches),
        }
    return batch
