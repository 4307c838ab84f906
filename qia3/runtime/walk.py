"""Ranks a prompt's choices in rows of a shared batch: depth first, going back by lengths.

score.py walks the choices' trie one depth at a time, with a copy of the prompt's cache per prefix. In a batch shared
with other jobs (slots.py) that would be too much at once. So here a row walks depth first: it runs a prefix's tokens
one per step. To continue with another prefix, it sets its length back to where the two part; what follows is
overwritten. No cache is copied, and a step costs as much as one more row:

    choices  play music <end>   play song <end>   lock <end>         prefixes  lock   play   play music   play song

    row      prompt lock        score <end>
             prompt play        score music, song         (back by one, then one step)
             prompt play music  score <end>
             prompt play song   score <end>               (back by one, then one step)

Several rows take a share of the prefixes each; a row runs again what it needs from another's share.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from qia3.runtime.cache import Floats
from qia3.runtime.score import Scores, log_sum_exp

Prefix = tuple[int, ...]


class Walk:
    """The state of ranking one prompt's choices. `logits` [1, V] follow the prompt; `by` is "sum" or "mean"."""

    def __init__(self, choices: Sequence[Sequence[int]], logits: Floats, by: str = "sum") -> None:
        self.choices, self.by = [tuple(choice) for choice in choices], by
        self.total = dict.fromkeys(self.choices, 0.0)
        self.behind: dict[Prefix, list[Prefix]] = {}  # the choices that continue a prefix
        for choice in self.total:
            for depth in range(len(choice)):
                self.behind.setdefault(choice[:depth], []).append(choice)
        self.left = sorted(self.behind)[1:]  # in walking order: each prefix before its continuations
        self.open = len(self.left)
        self._score((), logits[0])

    def take(self, prefix: Prefix, logits: Floats) -> None:
        """Takes logits [V] after the prompt and `prefix`, which is one of `left`; once for each."""
        self._score(prefix, logits)
        self.open -= 1

    def _score(self, prefix: Prefix, logits: Floats) -> None:
        normaliser, depth = float(log_sum_exp(logits)), len(prefix)
        for choice in self.behind[prefix]:
            self.total[choice] += float(logits[choice[depth]]) - normaliser

    @property
    def scores(self) -> Scores:
        """The score of each choice, once nothing is `open`."""
        return np.array([self.total[c] / (len(c) if self.by == "mean" else 1) for c in self.choices])


class Walker:
    """One row of a walk: `path` follows the prompt's `start` positions in it, `prefixes` are still to be scored."""

    def __init__(self, walk: Walk, prefixes: Sequence[Prefix], start: int) -> None:
        self.walk, self.start, self.path = walk, start, Prefix()
        self.prefixes = list(reversed(prefixes))  # the next one last

    @property
    def newest(self) -> int:
        """The token that the row runs next."""
        return self.prefixes[-1][len(self.path)]

    def take(self, logits: Floats) -> int | None:
        """Takes logits [V] after `newest`. Returns how many positions of the row stay valid; None when its share is
        done.
        """
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
        """Hands its remaining prefixes to another row of the same walk."""
        other.prefixes[:0] = self.prefixes


def shares(prefixes: Sequence[Prefix], rows: int) -> list[list[Prefix]]:
    """Splits prefixes into up to `rows` runs of neighbours, of nearly equal length, none empty."""
    rows = min(rows, len(prefixes))
    bounds = [len(prefixes) * row // rows for row in range(rows + 1)]
    return [list(prefixes[low:high]) for low, high in pairwise(bounds)]


def _shared(one: Prefix, other: Prefix) -> Prefix:
    """The common prefix of both."""
    count = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:count]
