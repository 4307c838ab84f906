"""The graph that learns on a device: made from the model that trains here, and held against it before it ships.

Torch's own training step (qia3.train.model, its three losses) is the judge: on a batch of random trees, with vectors around
one, ONNX Runtime's losses and gradients have to be torch's. A graph that is off by more is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor
from transformers import PreTrainedModel

from qia3.batching.tables import NAMES, fed
from qia3.batching.trees import Tree
from qia3.bundle.ports import GRADIENT, LOSSES, TREES
from qia3.config import Build
from qia3.errors import ConfigError, ParityError
from qia3.graph.trainable import check_trainable, export_trainable
from qia3.ia3.adapted import AdaptedBase
from qia3.ia3.vectors import Scaled, get_vectors, set_vectors
from qia3.train.batches import Batch, packed, padded
from qia3.train.compute import computing
from qia3.train.model import Rows, VectorModel, answer_logits
from qia3.train.probe import packs

TOLERANCE = 1e-3  # of a vector's largest gradient; measured: 2e-6 on tiny models, 1e-4 on 30 layers


def learning_graph(adapted: AdaptedBase, positions: int) -> ir.Model:
    """The graph for texts of up to `positions` tokens. Raises BaseModelError for a model that has none."""
    set_vectors(adapted.scaled, None)
    return export_trainable(adapted.model, adapted.scaled, read_logits, packs(adapted.model, positions))


def check_learns(plan: Build, adapted: AdaptedBase) -> None:
    """Raises, before long work, where a plan asks for a graph that learns and there is none for its base."""
    if not plan.export.trainable:
        return
    if plan.export.mode == "merged":
        raise ConfigError(
            "trainable in [export] needs vectors as inputs of the graph (mode = 'side'); a merged model has none"
        )
    check_trainable(adapted.model)


def read_logits(model: PreTrainedModel, rows: Sequence[Tensor], places: Tensor) -> Tensor:
    """As training reads them."""
    return answer_logits(model, Rows(rows[0], places, *rows[1:]))


def check_gradients(file: Path, model: PreTrainedModel, scaled: Mapping[str, Scaled]) -> float:
    """The largest difference of a gradient from torch's, as a share of its vector's largest. Leaves the vectors ones.

    Raises ParityError where the graph in `file` does not compute torch's losses or gradients.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    takes = {i.name for i in session.get_inputs()}
    trees = _trees(model.config.get_text_config().vocab_size)
    packs = set(TREES) <= takes
    batch = packed(trees, 40, 1) if packs else padded(trees)
    given = fed({name: tensor.numpy() for name, tensor in batch.items()}, packs)
    try:
        _wear_random(scaled)
        found = dict(
            zip([o.name for o in session.get_outputs()], session.run(None, given | _worn(scaled)), strict=True)
        )
        loss, gradients = _by_torch(model, scaled, batch)
    finally:
        set_vectors(scaled, None)
    apart = _apart(found[LOSSES], loss)
    for name, gradient in gradients.items():
        ours = found[f"{name}{GRADIENT}"].reshape(-1)
        rows = scaled[name].rows
        apart = max(apart, _apart(ours if rows is None else ours[rows.numpy()], gradient))
    if not apart <= TOLERANCE:
        raise ParityError(
            f"the graph that learns differs from torch by {apart:.2g} of the gradients (limit {TOLERANCE:g}): "
            "a defect of "
            "the export; leave out trainable in [export]"
        )
    return apart


def _worn(scaled: Mapping[str, Scaled]) -> dict[str, Any]:
    """The vectors as the graph takes them."""
    return {name: vector[None, None] for name, vector in get_vectors(scaled).items()}


def _by_torch(model: PreTrainedModel, scaled: Mapping[str, Scaled], batch: Batch) -> tuple[Any, dict[str, Any]]:
    task = VectorModel(model, scaled, NAMES)
    before = [layer.delta.requires_grad for layer in scaled.values()]
    try:
        for layer in scaled.values():
            layer.delta.requires_grad_(True)
        with torch.enable_grad(), computing(model, torch.float32):
            out = task(**batch)
            found = torch.autograd.grad(out["loss"], [layer.delta for layer in scaled.values()])
    finally:
        for layer, wanted in zip(scaled.values(), before, strict=True):
            layer.delta.requires_grad_(wanted)
    return out["parts"].numpy(), {name: g.numpy() for name, g in zip(scaled, found, strict=True)}


def _wear_random(scaled: Mapping[str, Scaled]) -> None:
    random = np.random.default_rng(0)
    vectors = {}
    for name, layer in scaled.items():
        vectors[name] = np.ones(layer.site.size, np.float32)
        rows = slice(None) if layer.rows is None else layer.rows.numpy()
        vectors[name][rows] = random.uniform(0.5, 1.5, vectors[name][rows].shape)
    set_vectors(scaled, vectors)


def _trees(vocabulary: int) -> list[Tree]:
    """Three examples with the same first tokens: two with a choice, one without, of several lengths."""
    random = np.random.default_rng(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(random.integers(vocabulary, size=count).tolist())

    same = tokens(2)
    return [
        Tree((*same, *tokens(5)), (tokens(2), tokens(3), tokens(1)), 1),
        Tree((*same, *tokens(2)), (tokens(4),)),
        Tree((*same, *tokens(7)), (tokens(1), tokens(3))),
    ]


def _apart(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))
