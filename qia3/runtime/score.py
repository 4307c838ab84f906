"""Ranking a fixed set of answers: the mean log-probability of each answer's tokens after the prompt, its end token included.

The graph gives logits for the last position only, so the answers are walked as a trie: the prompt is run once, and then one batched step a
depth over the distinct prefixes. Eight answers of one token and an end cost one prompt and one step of eight rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qia3.runtime.engine import Engine, Floats

Prefix = tuple[int, ...]


def rank(engine: Engine, prompt: Sequence[int], choices: Sequence[Sequence[int]], vectors: Mapping[str, Floats]) -> NDArray[np.float64]:
    """Scores [choices], in nats a token; the highest is the answer."""
    logits, cache = engine.prefill([prompt], vectors)
    known: dict[Prefix, NDArray[np.float64]] = {(): log_softmax(logits)[0]}
    rows: dict[Prefix, int] = {(): 0}
    for depth in range(1, max(map(len, choices))):
        prefixes = sorted({tuple(c[:depth]) for c in choices if len(c) > depth})
        logits, cache = engine.step([p[-1] for p in prefixes], cache.expand([rows[p[:-1]] for p in prefixes]), vectors)
        known.update(zip(prefixes, log_softmax(logits), strict=True))
        rows = {p: i for i, p in enumerate(prefixes)}
    return np.array([np.mean([known[tuple(c[:i])][token] for i, token in enumerate(c)]) for c in choices])


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    result: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return result
