"""Ranking a fixed set of answers: the log-probability of each answer after the prompt, including its end token.

    sum     score(c) = log p(c | prompt) = sum_i log p(c_i | prompt, c_0 .. c_{i-1})          in nats
    mean    score(c) / number of tokens of c

A task says which. The sum is what the language-modelling loss trains, and the end token makes answers of different
lengths comparable. The mean is what the length-normalised loss trains (qia3.train.losses). It is wrong for a model that
was not trained with it: it favours long answers, whose later tokens are certain after the first. On home-intents the
base labels 186 of 240 sentences "locks" (three tokens) by the mean, and scores 26 % instead of 35 %
(benchmarks/LOG.md). So the base without an adapter is always ranked by the sum, and an adapter is ranked as its own
task says, whichever prompt is used (answer.task_of).

The graph returns logits for the last position only, so the answers are walked as a trie: the prompt is run once, and
then one batched step per depth over the distinct prefixes. Eight answers of one token and an end token cost one prompt
and one step of eight rows:

    prompt ──┬── lights ── <end>          depth 0: the prompt's logits score lights, play, lock
             ├── play ──┬── music <end>   depth 1: one step of three rows scores <end>, music, song, <end>
             │          └── song  <end>   depth 2: one step of two rows scores <end>, <end>
             └── lock ── <end>

Several prompts are processed together, each with its own answers and adapter. A step has at most MAX_ROWS rows: a
thousand answers must not need a thousand copies of the prompt's cache.

For the label alone (`best`), not every score is needed. Tokens never increase a score, so the score of an answer's
first tokens is an upper bound. If the prompt's logits prefer one beginning clearly, only the answers with that
beginning are walked, usually one row; the others follow only if they could still win. The label is the same as with
`rank`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qia3.errors import QIA3Error
from qia3.runtime.cache import Cache, Floats
from qia3.runtime.engine import Engine, select_rows

MAX_ROWS = 32
SURE = 1.0  # nats between the first tokens of the two best, from which one row is likely to be enough
Path = tuple[int, tuple[int, ...]]  # row of the prompt, tokens after it
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """A label, and the probability of each choice, given that one of them is right."""

    label: str
    scores: dict[str, float]


def chosen(choices: Sequence[str], scores: NDArray[Any]) -> Answer:
    """The answer for scores [choices], which are log-probabilities or logits."""
    shares = np.exp(scores.astype(np.float64) - scores.max())
    shares /= shares.sum()
    return Answer(choices[int(scores.argmax())], {c: round(float(s), 6) for c, s in zip(choices, shares, strict=True)})


def rank(
    engine: Engine,
    prompt: Sequence[int],
    choices: Sequence[Sequence[int]],
    vectors: Mapping[str, Floats],
    by: str = "sum",
) -> Scores:
    """Scores [choices] of one prompt; the highest wins."""
    return rank_batch(engine, [prompt], [choices], vectors, by)[0]


def rank_batch(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    vectors: Mapping[str, Floats],
    by: str = "sum",
) -> list[Scores]:
    """Scores of each prompt's own choices, by "sum" or "mean".

    Vectors are [1, 1, d] for all prompts or [prompts, 1, d].
    """
    if any(not len(c) for row in choices for c in row) or not all(choices):
        raise QIA3Error("there is nothing to rank: a prompt has no choices, or a choice has no tokens")
    paths = sorted({(row, tuple(c)) for row, cs in enumerate(choices) for c in cs})
    logits, cache = engine.prefill(prompts, vectors, room=max(len(c) for _, c in paths))
    found = _walks(engine, paths, logits, cache, vectors)
    return [
        np.array([found[row, tuple(c)] / (len(c) if by == "mean" else 1) for c in cs]) for row, cs in enumerate(choices)
    ]


def best(
    engine: Engine,
    prompt: Sequence[int],
    choices: Sequence[Sequence[int]],
    vectors: Mapping[str, Floats],
    by: str = "sum",
) -> int:
    """The index of the choice that `rank` puts first; the first of equal ones."""
    return best_batch(engine, [prompt], [choices], vectors, by)[0]


def best_batch(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    vectors: Mapping[str, Floats],
    by: str = "sum",
) -> list[int]:
    """`best` for several prompts with the same vectors [1, 1, d]. Prompts are run one at a time, after their common
    beginning if it has been run (Engine.begin), and their answers together.
    """
    if not prompts or any(not len(c) for row in choices for c in row) or not all(choices):
        raise QIA3Error("there is nothing to rank: a prompt has no choices, or a choice has no tokens")
    room = max(len(c) for row in choices for c in row)
    run = [engine.prefill([prompt], vectors, room) for prompt in prompts]
    logits = np.concatenate([first for first, _ in run])
    cache = Cache.joined([cache for _, cache in run], room, engine.context_length)
    rows = [_Row(logits[i], [tuple(c) for c in given], by) for i, given in enumerate(choices)]
    for missing in (_Row.likely, _Row.possible):
        wanted = {(i, row.answers[a]) for i, row in enumerate(rows) for a in missing(row)}
        found = _walks(engine, sorted(wanted), logits, cache, vectors) if wanted else {}
        for i, row in enumerate(rows):
            row.scores |= {a: found[i, c] / row.sizes[a] for a, c in enumerate(row.answers) if (i, c) in found}
    return [min(row.scores, key=lambda a: (-row.scores[a], a)) for row in rows]


class _Row:
    """What is known about one prompt's answers: their scores, and before that the most that each can reach."""

    def __init__(self, logits: Floats, answers: Sequence[tuple[int, ...]], by: str) -> None:
        self.answers, self.scores = answers, dict[int, float]()
        self.sizes = [len(a) if by == "mean" else 1 for a in answers]
        normaliser = float(log_sum_exp(logits[None])[0])
        self.most = [(float(logits[a[0]]) - normaliser) / size for a, size in zip(answers, self.sizes, strict=True)]
        self.order = sorted(range(len(answers)), key=lambda i: (-self.most[i], i))

    def likely(self) -> list[int]:
        """The answers that begin like the likeliest, if that is well ahead; otherwise all."""
        first = [i for i in self.order if self.answers[i][0] == self.answers[self.order[0]][0]]
        rest = [i for i in self.order if i not in first]
        return first if rest and self.most[first[0]] - self.most[rest[0]] > SURE else self.order

    def possible(self) -> list[int]:
        """The others that could still be as good as the best."""
        highest = max(self.scores.values())
        return [i for i in self.order if i not in self.scores and self.most[i] >= highest]


def _walks(
    engine: Engine, paths: Sequence[Path], logits: Floats, cache: Cache, vectors: Mapping[str, Floats]
) -> dict[Path, float]:
    """Log-probability of each path. Paths are sorted, so neighbours share prefixes and splitting the list repeats few."""
    found: dict[Path, float] = {}
    for start in range(0, len(paths), MAX_ROWS):
        found |= _walk(engine, paths[start : start + MAX_ROWS], logits, cache, vectors)
    return found


def _walk(
    engine: Engine, paths: Sequence[Path], logits: Floats, cache: Cache, vectors: Mapping[str, Floats]
) -> dict[Path, float]:
    """Log-probability of each path, one batched step per depth."""
    total = dict.fromkeys(paths, 0.0)
    places: dict[Path, int] = {(row, ()): row for row, _ in paths}
    for depth in range(max(len(tokens) for _, tokens in paths)):
        if depth:
            nodes = sorted({(row, tokens[:depth]) for row, tokens in paths if len(tokens) > depth})
            cache = cache.expand([places[row, tokens[:-1]] for row, tokens in nodes])
            chosen = select_rows(vectors, [row for row, _ in nodes])
            logits, cache = engine.step([tokens[-1] for _, tokens in nodes], cache, chosen)
            places = {node: i for i, node in enumerate(nodes)}
        normaliser = log_sum_exp(logits)
        for row, tokens in paths:
            if len(tokens) > depth:
                place = places[row, tokens[:depth]]
                total[row, tokens] += float(logits[place, tokens[depth]]) - float(normaliser[place])
    return total


def log_sum_exp(logits: Floats) -> NDArray[np.float64]:
    """log sum exp over the last axis, in float64; a token's log-probability is its logit minus this."""
    wide = logits.astype(np.float64)
    peak = wide.max(-1, keepdims=True)
    result: NDArray[np.float64] = np.log(np.exp(wide - peak).sum(-1)) + peak[..., 0]
    return result
