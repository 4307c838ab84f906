"""How a token is chosen: greedily, by sampling, or by beam search, as transformers defines them (GenerationMixin and
its logits processors, 5.x); each setting has its name there.

Sampling: logits are divided by `temperature`. Then the `top_k` most likely tokens are kept, of those the smallest set
whose probabilities sum to `top_p`, and of those the ones with at least `min_p` times the highest probability. The
values 0, 1 and 0 keep all.

Beams (beams.py): texts are compared by sum_i log p(token_i) / length^length_penalty, including their end token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qia3.errors import ConfigError
from qia3.runtime.cache import Floats

Shares = NDArray[np.float64]


@dataclass(frozen=True)
class Decoding:
    """`temperature` None: greedy. `seed` None: a new seed each time.

    `early_stopping`: True stops when there are as many finished texts as beams; False when the best running one is
    behind all of them at its present length; "never" when it is behind them at any length.
    """

    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        rules = {
            "beams must be 1 or more": self.beams >= 1,
            "beams cannot be combined with a temperature": self.beams == 1 or self.temperature is None,
            "temperature must be above 0": self.temperature is None or self.temperature > 0,
            "top_k must be 0 (all) or more": self.top_k >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "min_p must be from 0 to 1": 0 <= self.min_p <= 1,
            "a length penalty needs several beams": self.beams > 1 or self.length_penalty == 1,
            "top_k, top_p, min_p and a seed need a temperature": self.temperature is not None
            or (self.top_k, self.top_p, self.min_p, self.seed) == (0, 1, 0, None),
        }
        if broken := [rule for rule, kept in rules.items() if not kept]:
            raise ConfigError("; ".join(broken))


GREEDY = Decoding()


class Chooser:
    """Chooses a token from logits [1, V], with its own random state."""

    def __init__(self, decoding: Decoding) -> None:
        self.decoding, self.random = decoding, np.random.default_rng(decoding.seed)

    def __call__(self, logits: Floats) -> int:
        if self.decoding.temperature is None:
            return int(logits[0].argmax())
        shares = shares_of(logits[0], self.decoding)
        return int(self.random.choice(len(shares), p=shares))


def shares_of(logits: Floats, decoding: Decoding) -> Shares:
    """The probability of each token [V] when sampling."""
    kept = logits.astype(np.float64) / (decoding.temperature or 1.0)
    if 0 < decoding.top_k < len(kept):
        kept[kept < np.partition(kept, -decoding.top_k)[-decoding.top_k]] = -np.inf
    if decoding.top_p < 1:
        order = np.argsort(kept, kind="stable")
        behind = np.cumsum(_softmax(kept)[order]) <= 1 - decoding.top_p
        behind[-1] = False  # the most likely one stays
        kept[order[behind]] = -np.inf
    shares = _softmax(kept)
    if decoding.min_p:
        shares[shares < decoding.min_p * shares.max()] = 0
    return _of_one(shares)


def _softmax(logits: Shares) -> Shares:
    return _of_one(np.exp(logits - logits.max()))


def _of_one(shares: Shares) -> Shares:
    whole: Shares = shares / shares.sum()
    return whole
