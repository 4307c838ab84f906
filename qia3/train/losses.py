r"""The three losses of the T-Few recipe (Liu et al. 2022, arXiv:2205.05638, section 3.2), summed with weight 1.

Let an example have a right answer y of T tokens and wrong answers ŷ(n) of T(n) tokens, all including the end token, and
let p(.) be the probability of a token given the prompt and the earlier tokens of its answer.

    language modelling      L_LM = -1/T sum_t log p(y_t)
    unlikelihood            L_UL = - sum_n sum_t log(1 - p(ŷ(n)_t)) / sum_n T(n)
    length-normalised       L_LN = - log exp β(y) / (exp β(y) + sum_n exp β(ŷ(n))),     β(y) = 1/T sum_t log p(y_t)

The first makes the right answer likely, the second makes each token of the wrong ones unlikely, and the third puts the
right answer first when ranking by the mean (ranking = "mean"). Over a batch the first is the mean over right tokens,
the second over wrong tokens, the third over examples, as in T-Few's code. An example without wrong answers (generation)
only contributes to the first.

A worked example. Two answers: right "on <end>" with p = 1/2, 1/2, and wrong "off <end>" with p = 1/4, 1.

    L_LM = -(ln 1/2 + ln 1/2) / 2 = 0.693        L_UL = -(ln 3/4 + ln(1 - 1)) / 2, which is infinite
    β = -0.693 and -0.693                        L_LN = ln 2 = 0.693

The infinity is real: an end token is often certain once its answer has begun. T-Few's code uses log(1 - p + 0.01),
which is a different function (at p = 0 it is -0.00995, and its gradient is too small for tokens that are nearly
certain). Here it is the paper's, plus what float32 cannot distinguish from zero: log(1 - p + 2^-23), so the term is at
most 15.9. It is computed as log1p(2^-23 - p), which does not lose small p. The gradient that reaches the logits is p (1
- p) / (1 - p + 2^-23), at most one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from qia3.batching.rows import Totals
from qia3.batching.tables import LANGUAGE_MODELLING, LENGTH_NORMALISED, UNLIKELIHOOD


@dataclass(frozen=True)
class Answers:
    """Every answer of a batch, concatenated. T tokens, A answers, E examples.

    `log_p` float [T]: each token's log-probability; `answer` int64 [T]: its answer; `example` int64 [A]: each answer's
    example; `right` bool [A]. Examples are numbered from 0, and each has exactly one right answer.
    """

    log_p: Tensor
    answer: Tensor
    example: Tensor
    right: Tensor

    def mean_log_p(self) -> Tensor:
        """Mean log-probability per token of each answer (β), [A]."""
        count = torch.bincount(self.answer, minlength=len(self.right))
        return self.sum_log_p() / count

    def sum_log_p(self) -> Tensor:
        """log p of each answer, [A]."""
        return self.log_p.new_zeros(len(self.right)).index_add(0, self.answer, self.log_p)


def language_modelling(answers: Answers, total: float) -> Tensor:
    """Mean over the tokens of right answers."""
    return -answers.log_p[answers.right[answers.answer]].sum() / (total or 1)


def unlikelihood(answers: Answers, total: float) -> Tensor:
    """Mean over the tokens of wrong answers."""
    log_p = answers.log_p[~answers.right[answers.answer]]
    return -torch.log1p(torch.finfo(torch.float32).eps - log_p.exp()).sum() / (total or 1)


def length_normalised(answers: Answers, total: float) -> Tensor:
    """Mean over examples of the cross-entropy of β; an example with one answer has none."""
    beta, examples = answers.mean_log_p(), len(answers.right) and int(answers.example[-1]) + 1
    highest = beta.new_full((examples,), -torch.inf).scatter_reduce(0, answers.example, beta.detach(), "amax")
    summed = beta.new_zeros(examples).index_add(0, answers.example, (beta - highest[answers.example]).exp())
    right = beta[answers.right]  # one per example, in the order of examples
    return (highest + summed.log() - right).sum() / (total or 1)


LOSSES = {LANGUAGE_MODELLING: language_modelling, UNLIKELIHOOD: unlikelihood, LENGTH_NORMALISED: length_normalised}


def losses(answers: Answers, totals: Totals, names: Collection[str]) -> Tensor:
    """The losses of `names`, in that order, [len(names)]; their sum is what is trained."""
    divisors = {LANGUAGE_MODELLING: totals.right, UNLIKELIHOOD: totals.wrong, LENGTH_NORMALISED: totals.chosen}
    return torch.stack([LOSSES[name](answers, divisors[name]) for name in names])
