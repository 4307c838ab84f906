r"""What a learning graph needs of a batch besides its tokens: the sums of the losses as tables (numpy only).

T predicted tokens of A answers to E examples. `answer` int64 [T] is the answer of each token, `example` int64 [A] the
example of each answer, `right` bool [A] whether it is right, and `totals` the divisors of the losses: right tokens,
wrong tokens, examples with a choice. An example: one question with the answers "x <end>" (right) and "y z <end>":

    mean    x-end 1/2 1/2 0 0 0       right  1/2 1/2 0 0 0         member  1 1
            y-z-end 0 0 1/3 1/3 1/3   wrong  0 0 1/3 1/3 1/3       chosen  1 0
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qia3.batching.rows import Batch
from qia3.bundle.ports import TABLES, TOKENS, TREES

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
LANGUAGE_MODELLING, UNLIKELIHOOD, LENGTH_NORMALISED = NAMES = ("lm", "unlikelihood", "length-normalised")


def tables(
    answer: Ints, example: Ints, right: NDArray[np.bool_], totals: Sequence[float], names: Collection[str] = NAMES
) -> dict[str, Floats]:
    """The tables by the names of the graph's inputs. A loss that is not in `names` gets zeros."""
    right_tokens, wrong_tokens, choices = (total or 1 for total in totals)
    count = np.bincount(answer, minlength=len(right))
    of_answer = answer[None] == np.arange(len(right))[:, None]
    member = example[None] == np.arange(int(example[-1]) + 1)[:, None]
    choice = member.sum(axis=1, keepdims=True) > 1
    token_right = right[answer]
    found = (
        of_answer / count[:, None],
        token_right / right_tokens * (LANGUAGE_MODELLING in names),
        ~token_right / wrong_tokens * (UNLIKELIHOOD in names),
        member,
        member * right * choice / choices * (LENGTH_NORMALISED in names),
    )
    return {name: table.astype(np.float32) for name, table in zip(TABLES, found, strict=True)}


def fed(batch: Batch, trees: bool, names: Collection[str] = NAMES) -> dict[str, NDArray[Any]]:
    """A batch by the names of the graph's inputs, all but the vectors. `trees`: the graph packs, so it also gets tree
    and branch numbers if a batch has only one answer per row.
    """
    rows = {name: batch[name] for name in TREES if name in batch}
    if trees and len(rows) < len(TREES):
        ids = batch[TREES[0]]
        position = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        rows |= dict(zip(TREES[1:], (position, np.zeros_like(ids), np.zeros_like(ids)), strict=True))
    told = tables(batch["answer"], batch["example"], batch["right"], batch["totals"].tolist(), names)
    return rows | {name: batch[name] for name in TOKENS} | told
