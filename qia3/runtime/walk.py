"""A prompt's choices ranked in rows that other texts share: depth first, and back by one number.

score.py walks the choices' trie a depth at a time, with a copy of the prompt's cache for each prefix. In a batch whose
rows are others' too (slots.py) that is much at once. So here a row walks depth first: it runs a prefix's tokens one
a step, and to go on with another prefix it takes its length back to where both part, whatever stands behind it being
written over. No cache is copied on the way, and a step costs what one more row costs:

    choices  play music <end>   play song <end>   lock <end>         prefixes  lock   play   play music   play song

    row      prompt lock        score <end>
             prompt play        score music, song         (back by one, then one step)
             prompt play music  score <end>
             prompt play song   score <end>               (back by one, then one step)

Several rows take a share of the prefixes each; what a row needs of another's share it runs again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from qia3.runtime.cache import Floats
from qia3.runtime.score import Scores, log_sum_exp

Prefix = tuple[int, ...]


class Walk:
    """What is known of one prompt's choices. `logits` [1, V] come after the prompt; `by` is "sum" or "mean"."""

    def __init__(self, choices: Sequence[Sequence[int]], logits: Floats, by: str = "sum") -> None:
        self.choices, self.by = [tuple(choice) for choice in choices], by
        self.total = dict.fromkeys(self.choices, 0.0)
        self.behind: dict[Prefix, list[Prefix]] = {}  # the choices that go on from a prefix
        for choice in self.total:
            for depth in range(len(choice)):
                self.behind.setdefault(choice[:depth], []).append(choice)
        self.left = sorted(self.behind)[1:]  # the order in which a row walks them: each before what it begins
        self.open = len(self.left)
        self._score((), logits[0])

    def take(self, prefix: Prefix, logits: Floats) -> None:
        """Logits [V] after the prompt and `prefix`, which is one of `left`, each once."""
        self._score(prefix, logits)
        self.open -= 1

    def _score(self, prefix: Prefix, logits: Floats) -> None:
        normaliser, depth = float(log_sum_exp(logits)), len(prefix)
        for choice in self.behind[prefix]:
            self.total[choice] += float(logits[choice[depth]]) - normaliser

    @property
    def scores(self) -> Scores:
        """Of each choice, once nothing is `open`."""
        return np.array([self.total[c] / (len(c) if self.by == "mean" else 1) for c in self.choices])


class Walker:
    """One row of a walk: `path` stands in it behind the prompt's `start` positions, `prefixes` are still to be scored."""

    def __init__(self, walk: Walk, prefixes: Sequence[Prefix], start: int) -> None:
        self.walk, self.start, self.path = walk, start, Prefix()
        self.prefixes = list(reversed(prefixes))  # the next one last

    @property
    def newest(self) -> int:
        """The token that the row runs next."""
        return self.prefixes[-1][len(self.path)]

    def take(self, logits: Floats) -> int | None:
        """Logits [V] after the `newest`. How many positions of the row are good; None when its share is done."""
        goal = self.prefixes[-1]
        self.path = goal[: len(self.path) + 1]
        if self.path == goal:
            self.walk.take(goal, logits)
            self.prefixes.pop()
        if not self.prefixes:
            return None
        self.path = _shared(self.path, self.prefixes[-1][:-1])
        return self.start + len(self.path)

    def give(self, other: Walker) -> None:
        """Leaves what is still to be scored to another row of the same walk."""
        other.prefixes[:0] = self.prefixes


def shares(prefixes: Sequence[Prefix], rows: int) -> list[list[Prefix]]:
    """As many runs of neighbours, of nearly equal lengths and none empty."""
    rows = min(rows, len(prefixes))
    bounds = [len(prefixes) * row // rows for row in range(rows + 1)]
    return [list(prefixes[low:high]) for low, high in pairwise(bounds)]


def _shared(one: Prefix, other: Prefix) -> Prefix:
    """What both begin with."""
    count = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:count]
