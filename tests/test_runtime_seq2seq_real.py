"""The engine over the graphs that the exporter makes of a T5: transformers' own logits, tokens, beams and scores on the
dequantised weights, with a vector in every place of both stacks.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import tiny_bundle as tiny
import torch
from tiny import random_vectors
from tiny_seq2seq import ALL, T5S, tiny_seq2seq
from torch import nn

from qia3.base.modules import GridEmbedding, grid_linears
from qia3.base.quantise import Grid, quantise_model
from qia3.bundle.adapter import as_inputs
from qia3.bundle.layout import DECODER_GRAPH, ENCODER_GRAPH, SHARED_DATA
from qia3.bundle.manifest import Architecture
from qia3.bundle.opened import Bundle
from qia3.config import Export
from qia3.describe import _graphs, places
from qia3.graph.export_seq2seq import export_seq2seq
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach
from qia3.runtime.decoding import Decoding
from qia3.runtime.generate import generate
from qia3.runtime.load import open_engine
from qia3.runtime.score import rank_batch

ROWS = [[5, 9, 25, 17, 33, 80, 4, 61, 12, 99, 7], [8, 44, 3, 90], [77], [6, 20, 31, 45, 12, 9, 2]]
CHOICES = [[4, 1], [4, 9, 1], [60, 1], [61, 62, 63, 1], [4, 9]]
STOP = (7, 11, 50)
PLAN = SimpleNamespace(export=Export(target="ort-exact"))


class Made:
    """A bundle's engine, and transformers' model of the same weights, whose layers' outputs are multiplied."""

    def __init__(self, name: str, folder) -> None:
        model, self.oracle = tiny_seq2seq(name), tiny_seq2seq(name)
        quantise_model(model, Grid(32, False))
        with torch.no_grad():
            for key, layer in grid_linears(model):
                self.oracle.get_submodule(key).weight = nn.Parameter(layer.weight.clone())
            for key, table in model.named_modules(remove_duplicate=False):
                if isinstance(table, GridEmbedding):
                    self.oracle.get_submodule(key).weight = nn.Parameter(table.weight.float().clone())
        self.scaled = attach(model, find_roles(model).sites)
        self.vectors: dict[str, np.ndarray] = {}
        for key, layer in self.scaled.items():
            self._multiply(key, layer.site)
        self.engine = open_engine(Bundle.open(self._written(model, folder)), threads=1)

    def _multiply(self, name: str, site) -> None:
        def times(x):
            return x * torch.from_numpy(self.vectors[name]) if name in self.vectors else x

        target = self.oracle.get_submodule(site.module)
        if site.placement == "input":
            target.register_forward_pre_hook(lambda _, inputs: (times(inputs[0]),))
        else:
            target.register_forward_hook(lambda _, __, out: times(out))

    def _written(self, model, folder):
        graphs = export_seq2seq(model, 0, 48, "last")
        (folder / ENCODER_GRAPH).parent.mkdir()
        for key, file in (("encoder", ENCODER_GRAPH), ("decoder", DECODER_GRAPH)):
            ir.save(graphs[key], folder / file)
        (folder / SHARED_DATA).touch()
        words = tiny.tokenizer()
        words.save(str(folder / "tokenizer.json"))
        manifest = replace(
            tiny.manifest_of(words, "side", {}),
            linears=(),
            architecture=Architecture(3, 5, 5, 16, 96, 101, 48, False, 2, (0,)),
            graphs=_graphs(
                PLAN, SimpleNamespace(model=model), [s.site for s in self.scaled.values()], 0, places(model), []
            ),
        )
        tiny.seal(folder, manifest.to_json())
        return folder

    @torch.no_grad()
    def logits(self, prompt, answer, vectors):
        self.vectors = vectors
        ids = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[0, *answer]])}
        return self.oracle(**ids, use_cache=False).logits[0, -1].numpy()

    def generated(self, prompt, vectors, decoding):
        self.vectors = vectors
        settings = {"length_penalty": decoding.length_penalty, "early_stopping": decoding.early_stopping}
        found = self.oracle.generate(
            torch.tensor([prompt]),
            num_beams=decoding.beams,
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=list(STOP),
            use_cache=False,
            **settings,
        )
        tokens = found[0].tolist()[1:]
        return tokens[: next((i for i, token in enumerate(tokens) if token in STOP), None)]


@pytest.fixture(scope="module", params=T5S if ALL else ["umt5"])
def made(request, tmp_path_factory):
    return Made(request.param, tmp_path_factory.mktemp("bundle"))


def each_its_own(made, rows):
    """A set of vectors a row, as the oracle takes them and as the engine does."""
    own = [random_vectors(made.scaled, seed) for seed in range(rows)]
    return own, {name: np.concatenate([as_inputs(v)[name] for v in own]) for name in own[0]}


def test_logits_of_a_padded_batch_with_a_vector_a_row(made):
    own, vectors = each_its_own(made, 4)
    logits, cache = made.engine.prefill(ROWS, vectors, room=2)
    answers: list[list[int]] = [[], [], [], []]
    for step in range(5):
        for row, answer, found, v in zip(ROWS, answers, logits, own, strict=True):
            np.testing.assert_allclose(found, made.logits(row, answer, v), atol=3e-4, rtol=3e-4)
        tokens = [40 + step * 3 + r for r in range(4)]
        for answer, token in zip(answers, tokens, strict=True):
            answer.append(token)
        logits, cache = made.engine.step(tokens, cache, vectors)
    assert np.abs(made.logits(ROWS[0], [], own[0]) - made.logits(ROWS[0], [], own[1])).max() > 0.05


@pytest.mark.parametrize(
    "decoding", [Decoding(), Decoding(4), Decoding(3, 2.0, True), Decoding(4, 0.5, "never")], ids=lambda d: str(d.beams)
)
def test_tokens_are_those_of_transformers(made, decoding):
    vectors = random_vectors(made.scaled, 3)
    for row in ROWS[:2]:
        found = list(generate(made.engine, row, as_inputs(vectors), 12, STOP, decoding))
        assert found == made.generated(row, vectors, decoding)


@pytest.mark.parametrize("rows", [4, 1])
def test_ranking_rows_of_different_tasks_over_one_encoding_each(made, rows):
    own, vectors = each_its_own(made, rows)
    _, cache = made.engine.prefill(ROWS[:rows], vectors)
    several = cache.expand([0, 0, 0]).buffers.fixed.values()
    assert {len(array) for array in several} == {1 if rows == 1 else 3}  # one row of one prompt's serves all
    for row, v, scores in zip(ROWS, own, rank_batch(made.engine, ROWS[:rows], [CHOICES] * rows, vectors), strict=False):
        for choice, score in zip(CHOICES, scores, strict=True):
            total = 0.0
            for i, token in enumerate(choice):
                wide = made.logits(row, choice[:i], v).astype(np.float64)
                total += wide[token] - np.log(np.exp(wide).sum())
            np.testing.assert_allclose(score, total, atol=1e-3)
