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
    answers = [tuple(c) for c in choices]
    if not all(answers) or not answers:
        raise QIA3Error("there is nothing to rank: a prompt has no choices, or a choice has no tokens")
    sizes = [len(a) if by == "mean" else 1 for a in answers]
    logits, cache = engine.prefill([prompt], vectors, room=max(map(len, answers)))
    normaliser = float(log_sum_exp(logits)[0])
    most = [(float(logits[0, a[0]]) - normaliser) / size for a, size in zip(answers, sizes, strict=True)]

    def scores(of: Sequence[int]) -> dict[int, float]:
        found = _walks(engine, sorted({(0, answers[i]) for i in of}), logits, cache, vectors)
        return {i: found[0, answers[i]] / sizes[i] for i in of}

    order = sorted(range(len(answers)), key=lambda i: (-most[i], i))
    first = [i for i in order if answers[i][0] == answers[order[0]][0]]
    rest = [i for i in order if i not in first]
    known: dict[int, float] = {}
    if rest and most[first[0]] - most[rest[0]] > SURE:
        known = scores(first)
        rest = [i for i in rest if most[i] >= max(known.values())]
    else:
        rest = order
    if rest:
        known |= scores(rest)
    return min(known, key=lambda i: (-known[i], i))


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
