"""A base that wears vectors is itself again afterwards, whatever happens in between."""

from __future__ import annotations

import pytest
import torch
from tiny import ids, random_vectors, tiny

from qia3.base.frozen import BaseModel
from qia3.base.quantise import Grid, quantise_model
from qia3.errors import AdapterError
from qia3.ia3.adapted import AdaptedBase


@pytest.fixture
def adapted() -> AdaptedBase:
    model = tiny("llama")
    quantise_model(model, Grid(16, False))
    base = BaseModel(
        reference="tiny",
        model=model,
        tokenizer=None,
        fingerprint="0" * 64,
        block_size=16,
        symmetric=False,
        parameters=1,
    )
    return AdaptedBase.of(base)


def logits(adapted: AdaptedBase) -> torch.Tensor:
    with torch.no_grad():
        return adapted.model(input_ids=ids()).logits


def test_vectors_are_worn_within_the_block_and_taken_off_after_it(adapted):
    plain, vectors = logits(adapted), random_vectors(adapted.scaled)
    with adapted.wearing(vectors):
        worn = logits(adapted)
        with adapted.wearing({}):
            torch.testing.assert_close(logits(adapted), plain, rtol=0, atol=0)
        torch.testing.assert_close(logits(adapted), worn, rtol=0, atol=0)
    assert (worn - plain).abs().max() > 0.1
    torch.testing.assert_close(logits(adapted), plain, rtol=0, atol=0)


def test_what_was_being_trained_goes_on_after_a_failure(adapted):
    for layer in adapted.scaled.values():
        layer.delta.data.fill_(0.3)
        layer.delta.requires_grad_(True)
    before = logits(adapted)
    with pytest.raises(ZeroDivisionError), adapted.wearing(random_vectors(adapted.scaled)):
        _ = 1 // 0
    torch.testing.assert_close(logits(adapted), before, rtol=0, atol=0)
    assert all(layer.delta.requires_grad and layer.precision == torch.bfloat16 for layer in adapted.scaled.values())


def test_vectors_that_do_not_fit_leave_it_as_it_was(adapted):
    before = logits(adapted)
    with (
        pytest.raises(AdapterError, match="this base has no such vector"),
        adapted.wearing({"elsewhere.ia3_l": torch.ones(3).numpy()}),
    ):
        pass
    torch.testing.assert_close(logits(adapted), before, rtol=0, atol=0)


def test_law_2_merged_is_what_was_worn(adapted):
    vectors = random_vectors(adapted.scaled)
    with adapted.wearing(vectors):
        worn = logits(adapted)
    adapted.merge(vectors)
    assert not adapted.scaled
    torch.testing.assert_close(logits(adapted), worn, rtol=1e-4, atol=1e-4)
