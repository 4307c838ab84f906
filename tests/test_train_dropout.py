"""An encoder-decoder in training computes what it computes in evaluation, and its rates come back."""

from __future__ import annotations

import pytest
import torch
from tiny_pairs import PAIRS, START
from tiny_seq2seq import tiny_seq2seq

from qia3.batching.trees import Tree
from qia3.train.batches import Batch
from qia3.train.dropout import without_dropout
from qia3.train.model import read_logits
from qia3.train.pairs import beside


def batch() -> Batch:
    return beside([Tree((5, 6, 7, 1), ((8, 9, 1), (10, 1))), Tree((11, 1), ((12, 1),))], START, 1, 96)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in PAIRS if name != "t5gemma"])  # which drops nothing by default
def test_nothing_is_dropped_within_and_something_is_outside(name):
    model = tiny_seq2seq(name)
    expected = read_logits(model, batch())
    model.train()
    with without_dropout(model):
        torch.testing.assert_close(read_logits(model, batch()), expected, rtol=0, atol=0)
        assert model.training
    assert (read_logits(model, batch()) - expected).abs().max() > 1e-2


def test_a_model_that_skips_layers_skips_none_within():
    model = tiny_seq2seq("bart")
    expected = read_logits(model, batch())
    model.get_decoder().layerdrop = 1.0
    model.train()
    with without_dropout(model):
        torch.testing.assert_close(read_logits(model, batch()), expected, rtol=0, atol=0)
    assert model.get_decoder().layerdrop == 1.0
