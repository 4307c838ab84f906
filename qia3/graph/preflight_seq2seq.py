"""An encoder-decoder's two graphs, exported and compared with torch before anything is trained (preflight.py).

    row 0    11 tokens in the encoder and 8 steps of the decoder with a cache    random vectors around one
    row 1     5 tokens and 8 steps                                               vectors of ones: the base

as one batch, padded on the right, row 0 once more alone, and a longer text if that is cheap. The encoder's states are
compared first, so that the message says which of the two graphs is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from transformers import PreTrainedModel

from qia3.base.modules import GridLinear
from qia3.base.start import start_of
from qia3.errors import BaseModelError, first_line
from qia3.graph.export_seq2seq import export_seq2seq
from qia3.graph.forced_seq2seq import OrtPair, logits, states_of
from qia3.graph.in_memory import opened
from qia3.graph.passes import AccuracyLevel
from qia3.graph.preflight import CHEAP, LEAST_LIMIT, PROMPTS, USUAL, Floats, around_one, in_turn
from qia3.graph.watch import sample_ids
from qia3.ia3.vectors import Scaled, set_vectors

STEPS = 8
LONG = 140  # tokens, beyond the distances that T5 distinguishes


def preflight_seq2seq(
    model: PreTrainedModel,
    scaled: Mapping[str, Scaled],
    positions: int,
    accuracy_level: int,
    logits_at: str,
    required: bool,
    limit: float,
) -> dict[str, ir.Model]:
    """The graphs "encoder" and "decoder" with unmerged vectors. The vectors are ones afterwards, ready to train.

    Raises BaseModelError, in one line, if the model does not export or a graph differs from the model.
    """
    graphs = export_seq2seq(model, accuracy_level, positions, logits_at, required)
    try:
        for graph in graphs.values():
            AccuracyLevel(0)(graph)
        (encoder, one), (decoder, two) = (opened(graphs[n], type(model).__name__) for n in ("encoder", "decoder"))
        pair, held = OrtPair(encoder, decoder, start_of(model)), (one, two)
        _compare(model, scaled, pair, _texts(model, positions), max(limit, LEAST_LIMIT))
        del encoder, decoder, pair, held  # the sessions before their memory
    finally:
        set_vectors(scaled, None)
        for graph in graphs.values():
            AccuracyLevel(accuracy_level)(graph)
    return graphs


def _compare(
    model: PreTrainedModel, scaled: Mapping[str, Scaled], pair: OrtPair, texts: Sequence[list[int]], limit: float
) -> None:
    name, vectors = type(model).__name__, [around_one(scaled), {}]
    forced = sample_ids(model, STEPS + 1)[0, 1:].tolist()
    expected: list[tuple[Floats, Floats]] = []
    for i, text in enumerate(texts):
        set_vectors(scaled, vectors[i % 2])
        expected.append((states_of(model, text)[0].float().cpu().numpy(), logits(model, text, forced)))
    cases = {"in a padded batch": [0, 1], "alone": [0]} | ({"on a longer text": [2]} if len(texts) > 2 else {})
    for what, rows in cases.items():
        try:
            found = pair.rows([texts[i] for i in rows], [forced] * len(rows), in_turn(scaled, vectors, rows))
        except Exception as error:  # onnxruntime raises many types
            raise BaseModelError(f"ONNX Runtime cannot run the graphs of {name}: {first_line(error)}") from error
        for part, (kind, unit) in enumerate((("encoder", "states"), ("decoder", "logits"))):
            pairs = [(found[part][row][: len(expected[i][part])], expected[i][part]) for row, i in enumerate(rows)]
            difference = float(np.max([np.abs(graph - torch).max() for graph, torch in pairs]))
            largest = max(float(np.abs(torch).max()) for _, torch in pairs)
            if not difference <= limit * max(1.0, largest / USUAL):
                raise BaseModelError(
                    f"{name} cannot be shipped: its {kind}'s graph differs from torch by {difference:.2g} {what} (limit "
                    f"{limit:g}, on {unit} up to {largest:.2g}); no reason was found in its attention"
                )


def _texts(model: PreTrainedModel, positions: int) -> list[list[int]]:
    """The texts of the two rows, and a longer one within the context if that is cheap."""
    products = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, GridLinear))
    longer = min(LONG, positions)
    lengths = [*PROMPTS, *([longer] if longer > max(PROMPTS) and longer * products <= CHEAP else [])]
    return [sample_ids(model, n)[0].tolist() for n in lengths]
