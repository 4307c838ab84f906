"""Rank classification in torch: the same scores as the device's (qia3.runtime.score), from the batches that training
uses.

For looking at vectors that are in no bundle yet. At accuracy_level 0 the scores differ from ONNX Runtime's by rounding,
about 1e-5 nats a token; at level 4, as shipped, by what the parity gate measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from qia3.batching.trees import Tree
from qia3.train.collator import Collator
from qia3.train.losses import Answers
from qia3.train.model import Rows, answer_logits, log_probabilities


@dataclass(frozen=True)
class Ranked:
    """Scores float64 [answers] of each example in nats, and how many were right."""

    scores: tuple[NDArray[np.float64], ...]
    accuracy: float


@torch.no_grad()
def rank_trees(
    model: PreTrainedModel, trees: Sequence[Tree], collator: Collator, by: str = "sum", batch: int = 8
) -> Ranked:
    """Ranks every tree's answers `by` the "sum" or the "mean" of their tokens' log-probabilities, with the vectors that
    the model has now.
    """
    scores = [
        s
        for start in range(0, len(trees), batch)
        for s in _scores(model, list(trees[start : start + batch]), collator, by)
    ]
    right = [int(s.argmax()) == tree.right for s, tree in zip(scores, trees, strict=True)]
    return Ranked(tuple(scores), sum(right) / len(right))


def _scores(model: PreTrainedModel, trees: list[Tree], collator: Collator, by: str) -> Iterator[NDArray[np.float64]]:
    batch = {name: tensor.to(model.device) for name, tensor in collator.lay_out(trees).items()}
    logits = answer_logits(model, Rows.of(batch))
    answers = Answers(
        log_probabilities(logits, batch["read"], batch["targets"]), batch["answer"], batch["example"], batch["right"]
    )
    each = (answers.mean_log_p() if by == "mean" else answers.sum_log_p()).double().cpu().numpy()
    ends = np.cumsum([len(tree.answers) for tree in trees])
    yield from np.split(each, ends[:-1])
