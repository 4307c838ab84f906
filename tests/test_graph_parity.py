"""The gate between torch and ONNX Runtime, on logits made here: a defect is refused, a taste is told."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from qia3.bundle.records import (
    FLOATS,
    INT8_ACTIVATIONS,
    INT8_CACHE,
    INT8_PRODUCTS,
    INT8_PROMPTS,
    approximations,
    change,
)
from qia3.config import Parity
from qia3.errors import ParityError
from qia3.graph.parity import ROUNDED, Agreement, check, compare, remedy

LIMITS = Parity()
EIGHT = [INT8_ACTIVATIONS]
FINE = Agreement(2e-5, 1e-11, 1.0, 40, 8.3)


def logits(sharpness: float = 3.0, seed: int = 0) -> np.ndarray:
    return (sharpness * np.random.default_rng(seed).standard_normal((40, 101))).astype(np.float32)


def oracle(reference: np.ndarray, candidate: np.ndarray) -> tuple[float, float]:
    """KL divergence in nats to the candidate and to all tokens alike, position by position."""
    near, known = [], []
    for r, c in zip(reference.tolist(), candidate.tolist(), strict=True):
        p, q = ([math.exp(x) / sum(map(math.exp, row)) for x in row] for row in (r, c))
        near.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        known.append(sum(a * math.log(a * len(p)) for a in p))
    return float(np.mean(near)), float(np.mean(known))


def test_what_is_compared_is_the_textbook_divergence():
    reference = logits()
    candidate = reference + 0.3 * logits(1.0, 1)
    found = compare(reference, candidate)
    assert (found.kl, found.known) == pytest.approx(oracle(reference, candidate), rel=1e-5)
    assert found.top1 == np.mean(reference.argmax(1) == candidate.argmax(1))
    assert found.max_difference == np.abs(reference - candidate).max()
    assert compare(reference, reference).kl == 0


def test_law_4_a_defect_of_the_exact_graph_is_refused():
    wrong = Agreement(0.02, 1e-6, 1.0, 40, 8.3)
    with pytest.raises(
        ParityError, match=r"adapter x.* 0\.02 .*max_difference in \[parity\].*kept in dist/x\.work"
    ) as told:
        check(wrong, FINE, LIMITS, "adapter x", "dist/x.work", EIGHT)
    assert "\n" not in str(told.value)
    with pytest.raises(ParityError):
        check(Agreement(math.nan, math.nan, 0, 40, math.nan), FINE, LIMITS, "adapter x", "w", EIGHT)


def test_law_4_a_taste_is_told_and_not_refused():
    """A base of 262,144 words once ended here after six minutes, as accurate as at level 0."""
    shipped = Agreement(2.5, 0.0232, 0.875, 40, 9.1)
    found = check(FINE, shipped, LIMITS, "adapter x", "w", EIGHT)
    assert found == ["KL divergence 0.0232 nats (max_kl 0.02)", "same top token 87.5% (min_top1 90.0%)"]
    assert check(FINE, FINE, LIMITS, "adapter x", "w", EIGHT) == []


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0, 9.0])
def test_law_4_a_broken_graph_is_refused_however_sure_the_model_is(sharpness):
    """Logits of other tokens, of other positions, turned round, or none at all; rounding of 2 % is not refused."""
    reference = logits(sharpness)
    spread = reference.std()
    near = compare(reference, reference + 0.02 * spread * logits(1.0, 1))
    check(FINE, near, LIMITS, "adapter x", "w", EIGHT)
    for broken in (np.roll(reference, 1, axis=1), reference[::-1], reference * np.nan, -reference):
        with pytest.raises(ParityError, match=re.escape('target = "ort-exact"')) as told:
            check(FINE, compare(reference, broken), LIMITS, "adapter x", "dist/x.work", EIGHT)
        assert "the training is kept in dist/x.work" in str(told.value)


def test_a_model_that_knows_nothing_has_nothing_to_lose():
    flat = np.zeros((5, 101), np.float32)
    found = check(FINE, compare(flat, flat + np.float32(1e-6) * logits(1.0)[:5]), LIMITS, "adapter x", "w", EIGHT)
    assert not any("KL" in remark for remark in found)


@pytest.mark.parametrize(
    ("level", "compared", "rounded", "said"),
    [
        (4, (), [INT8_ACTIVATIONS], "int8 activations change"),
        (0, ("float_cache",), [INT8_CACHE], "the int8 cache changes"),
        (4, ("float_cache",), [INT8_ACTIVATIONS, INT8_CACHE], "int8 activations and the int8 cache change"),
        (4, ("four_bit_products",), [INT8_PRODUCTS], "int8 products change"),
        (
            4,
            ("prompts_like_steps", "float_cache"),
            [INT8_ACTIVATIONS, INT8_PROMPTS, INT8_CACHE],
            "int8 activations, int8 products for prompts and the int8 cache change",
        ),
        (1, (), [], "the order of float operations changes"),
    ],
)
def test_a_difference_is_put_down_to_what_is_rounded(level, compared, rounded, said):
    found = approximations(level, ("exact", "shipped", *compared))
    assert (found, change(found)) == (rounded, said)
    keys = {
        INT8_ACTIVATIONS: "ort-exact",
        INT8_CACHE: 'without cache = "int8"',
        INT8_PROMPTS: 'without prompts = "int8"',
    }
    advice = remedy(found)
    assert all((key in advice) == (cause in rounded) for cause, key in keys.items() if INT8_PRODUCTS not in rounded)
    assert (advice == ROUNDED) == (change(found) == f"{FLOATS} changes")
