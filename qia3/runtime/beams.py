"""Beam search over one prompt, as transformers has it (GenerationMixin._beam_search, 5.x).

B texts run in parallel, each a row of a batch. A step considers the (1 + end tokens) B most likely continuations of all
of them. Those among the first B that end are finished, and enter the list of the B best by

    score = sum_i log p(token_i) / length^length_penalty

where the end token counts in sum and length; a token that the model is forced to start with (Seq2Seq.start) counts in
the length, with probability one. The B most likely ones that do not end continue:

    rows   a b         a b c  -2.1  continues       rows   a b c
           a d         a d E  -2.4  finished               a d f
                       a d f  -2.7  continues
                       a b E  -3.9  not finished: not among the first B

The cache follows the rows: each step keeps those whose continuations continue.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qia3.runtime.cache import Floats
from qia3.runtime.decoding import Decoding
from qia3.runtime.engine import Engine
from qia3.runtime.score import log_sum_exp


@dataclass(frozen=True)
class Text:
    """Tokens after the prompt, and the sum of their log-probabilities; divided by the length term once finished."""

    tokens: tuple[int, ...]
    score: float


def beam_search(
    engine: Engine,
    prompt: Sequence[int],
    vectors: Mapping[str, Floats],
    max_new_tokens: int,
    stop: Collection[int],
    decoding: Decoding,
) -> list[int]:
    """Token ids of the best text, without its end token; at most `max_new_tokens`, within the context."""
    logits, cache = engine.prefill([prompt], vectors, room=min(max_new_tokens, 256))
    most = min(max_new_tokens, engine.context_length - int(cache.lengths[0]))
    running, finished = [Text((), 0.0)], list[Text]()
    for count in range(1, most + 1):
        found, rows = _continuations(logits, running, max(2, 1 + len(stop)) * decoding.beams)
        ends = [count == most or text.tokens[-1] in stop for text in found]
        length = count + engine.forced
        done = [t for t, end in zip(found[: decoding.beams], ends, strict=False) if end]
        finished += [Text(t.tokens, t.score / length**decoding.length_penalty) for t in done]
        finished = sorted(finished, key=lambda text: -text.score)[: decoding.beams]
        on = [i for i, end in enumerate(ends) if not end][: decoding.beams]
        running = [found[i] for i in on]
        if not running or _over(running[0], finished, length, most + engine.forced, decoding):
            break
        cache = cache.expand([rows[i] for i in on])
        logits, cache = engine.step([text.tokens[-1] for text in running], cache, vectors)
    best = finished[0].tokens if finished else ()
    return list(best[:-1] if best and best[-1] in stop else best)


def _continuations(logits: Floats, running: Sequence[Text], keep: int) -> tuple[list[Text], list[int]]:
    """The `keep` most likely texts with one more token, best first, and the row that each continues."""
    scores = logits.astype(np.float64) - log_sum_exp(logits)[:, None] + np.array([[text.score] for text in running])
    flat: NDArray[np.float64] = scores.reshape(-1)
    keep = min(keep, flat.size)
    likeliest = np.argpartition(-flat, keep - 1)[:keep]
    likeliest = likeliest[np.argsort(-flat[likeliest], kind="stable")]
    rows, tokens = np.divmod(likeliest, scores.shape[1])
    texts = [
        Text((*running[r].tokens, int(t)), float(flat[i])) for i, r, t in zip(likeliest, rows, tokens, strict=True)
    ]
    return texts, [int(row) for row in rows]


def _over(best: Text, finished: Sequence[Text], length: int, most: int, decoding: Decoding) -> bool:
    """Whether no running text can beat the finished ones, or the search may stop."""
    if len(finished) < decoding.beams:
        return False
    if decoding.early_stopping is True:
        return True
    hoped = most if decoding.early_stopping == "never" and decoding.length_penalty > 0 else length
    return bool(best.score / hoped**decoding.length_penalty <= finished[-1].score)
