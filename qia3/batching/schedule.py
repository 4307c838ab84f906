"""Which example is trained when: a pure function of the seed.

The run is one long list of slots, `batch` per step. Slot by slot it goes through the examples in random order, all of
them before any is repeated; each slot has its own random generator for what is drawn (prompt, demonstrations). Nothing
depends on what ran before, so a resumed run continues as if it had never stopped, and processes that share a step need
not communicate:

    steps of 4, 2 processes       step 0: slots 0 1 | 2 3      step 1: slots 4 5 | 6 7

Losses are means over a whole step. A process, or a part of an accumulated step, has only a share of the sums, so each
slot comes with the step's totals, scaled so that the mean over the parts' losses is the step's loss.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from qia3.batching.examples import Examples
from qia3.batching.rows import Totals, count
from qia3.batching.trees import Tree


@dataclass(frozen=True)
class Slot:
    """One example of a step, and the divisors of the whole step's losses."""

    tree: Tree
    totals: Totals
    batch: int


class Schedule:
    """The slots of a run, as a dataset: len() and [index]."""

    def __init__(self, examples: Examples, steps: int, batch: int, seed: int) -> None:
        self.examples, self.batch, self.seed = examples, batch, seed
        self.order = order(len(examples), steps * batch, seed)
        self.step = lru_cache(2)(self._step)  # the current step, and the next if batches are prefetched

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Slot:
        trees, totals = self.step(index // self.batch)
        return Slot(trees[index % self.batch], totals, self.batch)

    def _step(self, step: int) -> tuple[list[Tree], Totals]:
        slots = range(step * self.batch, (step + 1) * self.batch)
        trees = [self.examples.tree(int(self.order[s]), random.Random(f"{self.seed}/{s}")) for s in slots]
        return trees, count(trees)


def order(examples: int, slots: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """int64 [slots]: shuffles of 0 .. examples - 1, concatenated."""
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(examples) for _ in range(-(-slots // examples))]
    return np.concatenate(rounds)[:slots]
