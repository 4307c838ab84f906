"""The graph that will ship, exported and compared with torch before anything is trained.

A graph with unmerged vectors does not depend on their values, so it is exported once, right after the vectors are
attached, and this very graph is published later. ONNX Runtime opens it at accuracy_level 0 from the modules' own bytes
(no file is written and the weights are not copied), and it is compared with torch in float32:

    row 0    11 tokens and 3 steps with a cache    random vectors around one
    row 1     5 tokens and 3 steps                 vectors of ones: the base

as one batch, padded on the right, and row 0 once more alone. If the graph has a sliding window shorter than its
context, a text longer than the window follows, if that is cheap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from qia3.base.modules import GridLinear
from qia3.bundle.sites import Vectors
from qia3.errors import BaseModelError, first_line
from qia3.graph.export import export_decoder
from qia3.graph.in_memory import opened
from qia3.graph.passes import AccuracyLevel
from qia3.graph.watch import other_states, sample_ids
from qia3.ia3.roles import device_of
from qia3.ia3.vectors import Scaled, set_vectors

Floats = NDArray[np.float32]
PROMPTS, STEPS = (11, 5), 3
BEYOND = 6  # tokens beyond a window
CHEAP = 2e11  # multiplications that a longer text may cost: a few seconds
LEAST_LIMIT = 1e-3  # the build file's limit may raise this; the gate applies a lower one on its own prompts
USUAL = 30.0  # the logit size that the limit is meant for


def preflight(
    model: PreTrainedModel,
    scaled: Mapping[str, Scaled],
    positions: int,
    accuracy_level: int,
    logits: str,
    required: bool,
    limit: float,
) -> ir.Model:
    """The graph with unmerged vectors. The vectors are ones afterwards, ready to train.

    Raises BaseModelError, in one line, if the model does not export or the graph differs from the model.
    """
    graph = export_decoder(model, accuracy_level, positions, logits, required)
    AccuracyLevel(0)(graph)
    try:
        session = _Session(graph, model)
        _compare(model, scaled, session, _texts(model, graph, positions), max(limit, LEAST_LIMIT))
    finally:
        set_vectors(scaled, None)
        AccuracyLevel(accuracy_level)(graph)
    return graph


def _compare(
    model: PreTrainedModel, scaled: Mapping[str, Scaled], session: _Session, texts: Sequence[list[int]], limit: float
) -> None:
    name, vectors = type(model).__name__, [around_one(scaled), {}]
    split = [(text[:-STEPS], text[-STEPS:]) for text in texts]
    expected = []
    for i, (prompt, forced) in enumerate(split):
        set_vectors(scaled, vectors[i % 2])
        expected.append(_torch(model, prompt, forced))
    cases = {"in a padded batch": [0, 1], "alone": [0]} | ({"past the window": [2]} if len(texts) > 2 else {})
    for what, rows in cases.items():
        fed = in_turn(scaled, vectors, rows)
        found = session.logits([split[i][0] for i in rows], [split[i][1] for i in rows], fed)
        reference = np.stack([expected[i] for i in rows])
        difference = float(np.abs(found - reference).max())
        if not difference <= limit * max(1.0, float(np.abs(reference).max()) / USUAL):
            states = other_states(model)
            reason = (
                "the graph keeps keys and values only, but its layers also carry a state of "
                f"{', '.join(states)} from token to token"
                if states
                else "no reason was found in its attention"
            )
            raise BaseModelError(
                f"{name} cannot be shipped: its graph differs from torch by {difference:.2g} {what} (limit {limit:g}, on logits up to "
                f"{np.abs(reference).max():.2g}); {reason}"
            )


def _texts(model: PreTrainedModel, graph: ir.Model, positions: int) -> list[list[int]]:
    """The texts of the two rows, and one longer than the longest window within the context, if that is cheap."""
    windows = {n.attributes.get_int("local_window_size", 0) for n in graph.graph if n.op_type == "GroupQueryAttention"}
    products = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, GridLinear))
    lengths = [n + STEPS for n in PROMPTS]
    past = [w + BEYOND + STEPS for w in windows if w > 0 and w + BEYOND + STEPS <= positions]
    past = [n for n in past if n * products <= CHEAP and n > max(lengths)]
    return [sample_ids(model, n)[0].tolist() for n in (*lengths, *sorted(past)[-1:])]


def around_one(scaled: Mapping[str, Scaled]) -> Vectors:
    """Random vectors that differ from one by about a tenth, in the rows that train."""
    generator = np.random.default_rng(0)
    found = {}
    for name, layer in scaled.items():
        rows = slice(None) if layer.site.rows is None else list(layer.site.rows)
        found[name] = np.ones(layer.site.size, np.float32)
        found[name][rows] += 0.1 * generator.standard_normal(layer.site.parameters).astype(np.float32)
    return found


def in_turn(scaled: Mapping[str, Scaled], vectors: Sequence[Vectors], texts: Sequence[int]) -> dict[str, Floats]:
    """[rows, 1, d] by input name: each of these texts, by number, uses the vectors in turn."""
    ones = {name: np.ones(layer.site.size, np.float32) for name, layer in scaled.items()}
    turns = [ones | vectors[i % len(vectors)] for i in texts]
    return {name: np.stack([turn[name][None] for turn in turns]) for name in scaled}


def _torch(model: PreTrainedModel, prompt: Sequence[int], forced: Sequence[int]) -> Floats:
    """[1 + len(forced), V]: after the prompt and after each forced token, from one pass."""
    ids = torch.tensor([[*prompt, *forced]], device=device_of(model))
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=1 + len(forced)).logits[0, -1 - len(forced) :]
    found: Floats = logits.float().cpu().numpy()
    return found


class _Session:
    """The graph in ONNX Runtime, on the memory of its tensors."""

    def __init__(self, graph: ir.Model, model: PreTrainedModel) -> None:
        self.name = type(model).__name__
        self.session, self.held = opened(graph, self.name)
        self.past = {i.name: i.shape for i in self.session.get_inputs() if i.name.startswith("past_key_values.")}
        self.outputs = [o.name for o in self.session.get_outputs()]

    def logits(
        self, prompts: Sequence[Sequence[int]], forced: Sequence[Sequence[int]], vectors: Mapping[str, Floats]
    ) -> Floats:
        """[rows, 1 + steps, V] of rows padded on the right, then one forced token per step."""
        lengths = np.array([len(p) for p in prompts])
        tokens = np.zeros((len(prompts), lengths.max()), np.int64)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        cache: dict[str, Any] = {
            n: np.zeros((len(prompts), shape[1], 0, shape[3]), np.float32) for n, shape in self.past.items()
        }
        found = []
        for step in range(1 + len(forced[0])):
            mask = (np.arange(lengths.max())[None] < lengths[:, None]).astype(np.int64)
            results = self._run({"input_ids": tokens, "attention_mask": mask, **cache, **vectors})
            logits = results["logits"]  # [rows, 1, V], or at each token
            last = np.minimum(lengths - 1, tokens.shape[1] - 1) if logits.shape[1] > 1 else 0
            found.append(logits[np.arange(len(prompts)), last])
            cache = {n: results[n.replace("past_key_values", "present")] for n in self.past}
            if step < len(forced[0]):
                tokens, lengths = np.array([[f[step]] for f in forced], np.int64), lengths + 1
        return np.stack(found, axis=1)

    def _run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return dict(zip(self.outputs, self.session.run(None, feeds), strict=True))
        except Exception as error:  # onnxruntime raises many types
            raise BaseModelError(f"ONNX Runtime cannot run the graph of {self.name}: {first_line(error)}") from error
