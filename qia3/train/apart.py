"""Can several tasks share a pass of this model? Found out once by running both ways, like packing in qia3.train.probe.

A model's code may reorder rows, mix them, or flatten them so that a vector per row does not fit. Two lanes with their
own vectors are run as one batch, and each separately with its own adapter.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from qia3.base.family import is_encoder
from qia3.base.start import start_of
from qia3.batching.trees import Tree
from qia3.ia3.adapted import AdaptedBase
from qia3.ia3.lanes import new_lane, worn
from qia3.ia3.vectors import get_vectors, set_vectors
from qia3.train.batches import padded
from qia3.train.dropout import drops
from qia3.train.headed import TextRows, Texts
from qia3.train.joined import joined
from qia3.train.model import Input, Rows
from qia3.train.pairs import beside
from qia3.train.probe import TOLERANCE

LENGTHS = ((4, 7), (9,), (3, 3, 5))  # lengths of the prompts of three lanes


def why_apart(adapted: AdaptedBase) -> str | None:
    """Why this base's tasks train one by one; None if they can share a pass."""
    model = adapted.model
    if drops(model) and not model.config.is_encoder_decoder and not is_encoder(model.config):
        return f"{type(model).__name__} uses dropout in training, whose random draws would differ"
    try:
        same = _same(adapted)
    except Exception:  # a model that cannot take such a batch can raise anything
        same = False
    return None if same else f"{type(model).__name__} does not compute the same with a vector per row"


@torch.no_grad()
def _same(adapted: AdaptedBase) -> bool:
    model, scaled = adapted.model, adapted.scaled
    training, random = model.training, np.random.default_rng(0)
    lanes = [new_lane(scaled) for _ in LENGTHS]
    for lane in lanes:
        set_vectors(lane, {n: random.uniform(0.5, 1.5, s.site.size).astype(np.float32) for n, s in lane.items()})
    given = [_rows(model, lengths, random) for lengths in LENGTHS]
    model.eval()
    try:
        batch = joined(given)
        with worn(scaled, lanes, batch.owner, batch.encoder_owner):
            ours = batch.cut(batch.given.compute(model))
        for lane, rows, own in zip(lanes, given, ours, strict=True):
            set_vectors(scaled, get_vectors(lane))
            alone: Tensor = rows.compute(model)
            if float((own - alone).abs().max()) > TOLERANCE * float(alone.abs().max()):
                return False
    finally:
        set_vectors(scaled, None)
        model.train(training)
    return True


def _rows(model: PreTrainedModel, lengths: tuple[int, ...], random: np.random.Generator) -> Input:
    """Random texts, each with an answer of three tokens."""
    vocabulary = model.config.get_text_config().vocab_size

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(random.integers(vocabulary, size=count).tolist())

    trees = [Tree(tokens(length), (tokens(3),)) for length in lengths]
    if is_encoder(model.config):
        batch = Texts().lay_out([Tree(tree.prompt, ((0,),)) for tree in trees])
        return TextRows(batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device))
    start = start_of(model)
    batch = beside(trees, start, 1, 1) if start else padded(trees)
    return Rows.of({name: tensor.to(model.device) for name, tensor in batch.items()})
