"""An encoder's graph, exported and compared with torch before anything is trained (preflight.py).

    row 0    11 tokens    random vectors around one, and a random head with 5 labels
    row 1     5 tokens    vectors of ones: the base, and another head

as one batch, padded on the right, row 0 once more alone, and a longer text if that is cheap. States, embeddings and
logits are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from transformers import PreTrainedModel

from qia3.base.modules import GridLinear
from qia3.bundle.head import Head
from qia3.bundle.ports import HEAD_BIAS, HEAD_WEIGHT
from qia3.errors import BaseModelError, first_line
from qia3.graph.encoder import export_encoder
from qia3.graph.forced_encoder import OrtEncoder, read
from qia3.graph.in_memory import opened
from qia3.graph.passes import AccuracyLevel
from qia3.graph.preflight import CHEAP, LEAST_LIMIT, PROMPTS, USUAL, Floats, around_one, in_turn
from qia3.graph.preflight_seq2seq import LONG
from qia3.graph.watch import sample_ids
from qia3.ia3.vectors import Scaled, set_vectors

LABELS = 5


def preflight_encoder(
    model: PreTrainedModel,
    scaled: Mapping[str, Scaled],
    positions: int,
    accuracy_level: int,
    required: bool,
    limit: float,
) -> ir.Model:
    """The graph with unmerged vectors and head. The vectors are ones afterwards, ready to train.

    Raises BaseModelError, in one line, if the model does not export or the graph differs from the model.
    """
    graph = export_encoder(model, accuracy_level, positions, required)
    AccuracyLevel(0)(graph)
    try:
        session, held = opened(graph, type(model).__name__)
        _compare(model, scaled, OrtEncoder(session), _texts(model, positions), max(limit, LEAST_LIMIT))
        del session, held  # the session before its memory
    finally:
        set_vectors(scaled, None)
        AccuracyLevel(accuracy_level)(graph)
    return graph


def _compare(
    model: PreTrainedModel, scaled: Mapping[str, Scaled], graph: OrtEncoder, texts: Sequence[list[int]], limit: float
) -> None:
    name, vectors, heads = type(model).__name__, [around_one(scaled), {}], _heads(model.config.hidden_size)
    expected: list[dict[str, Floats]] = []
    for i, text in enumerate(texts):
        set_vectors(scaled, vectors[i % 2])
        expected.append(read(model, text, heads[i % 2]))
    cases = {"in a padded batch": [0, 1], "alone": [0]} | ({"on a longer text": [2]} if len(texts) > 2 else {})
    for what, rows in cases.items():
        head = {
            HEAD_WEIGHT: np.stack([heads[i % 2].weight for i in rows]),
            HEAD_BIAS: np.stack([heads[i % 2].bias for i in rows]),
        }
        try:
            found = graph.rows([texts[i] for i in rows], in_turn(scaled, vectors, rows) | head)
        except Exception as error:  # onnxruntime raises many types
            raise BaseModelError(f"ONNX Runtime cannot run the graph of {name}: {first_line(error)}") from error
        for kind, given in found.items():
            pairs = [(given[row][: len(expected[i][kind][0])], expected[i][kind][0]) for row, i in enumerate(rows)]
            difference = float(np.max([np.abs(ours - torch).max() for ours, torch in pairs]))
            largest = max(float(np.abs(torch).max()) for _, torch in pairs)
            if not difference <= limit * max(1.0, largest / USUAL):
                raise BaseModelError(
                    f"{name} cannot be shipped: its graph differs from torch by {difference:.2g} {what} (limit {limit:g}, "
                    f"on {kind} up to {largest:.2g}); no reason was found in its attention"
                )


def _heads(width: int) -> list[Head]:
    draw = np.random.default_rng(1)
    tables = [[draw.standard_normal(shape).astype(np.float32) for shape in ((LABELS, width), (LABELS,))] for _ in "01"]
    return [Head(weight, bias) for weight, bias in tables]


def _texts(model: PreTrainedModel, positions: int) -> list[list[int]]:
    """The texts of the two rows, and a longer one within the context if that is cheap."""
    products = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, GridLinear))
    longer = min(LONG, positions)
    lengths = [*PROMPTS, *([longer] if longer > max(PROMPTS) and longer * products <= CHEAP else [])]
    return [sample_ids(model, n)[0].tolist() for n in lengths]
