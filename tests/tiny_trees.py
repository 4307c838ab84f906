"""Prompts and answers of random lengths, for the layouts of a training batch."""

from __future__ import annotations

import numpy as np

from qia3.batching.trees import Tree


def forest(seed: int, examples: int = 5, longest: int = 9, answer: int = 5, begin: int = 0) -> list[Tree]:
    """Prompts of fewer tokens than `longest` after `begin` that are the same, answers of fewer than `answer`; the third
    example has one answer, as generation has.
    """
    rng = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(3, 101, rng.integers(low, high)).tolist())

    trees, same = [], tokens(begin, begin + 1)
    for i in range(examples):
        answers = tuple(tokens(1, answer) for _ in range(1 if i == 2 else int(rng.integers(2, 6))))
        trees.append(Tree((*same, *tokens(1, longest)), answers, int(rng.integers(len(answers)))))
    return trees
