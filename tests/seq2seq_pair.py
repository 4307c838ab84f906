"""Tiny encoder-decoders on a grid, the same weights in a plain transformers model, and the two graphs run by feeds that are
written out here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from tiny import random_vectors
from tiny_seq2seq import tiny_seq2seq
from torch import nn
from transformers import PreTrainedModel

from qia3.base.modules import GridEmbedding, grid_linears
from qia3.base.quantise import Grid, quantise_model
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import Scaled, attach


def quantised(name: str, block: int = 32) -> tuple[PreTrainedModel, dict[str, Scaled]]:
    """The model on the grid, `wo` in float where transformers keeps it so, and vectors unmerged."""
    model = tiny_seq2seq(name)
    quantise_model(model, Grid(block, False))
    return model, attach(model, find_roles(model).sites)


class Oracle:
    """transformers' own model in float32 with the dequantised weights, its layers' outputs multiplied by hooks."""

    def __init__(self, name: str, grid: PreTrainedModel, scaled: dict[str, Scaled]) -> None:
        self.model, self.scaled = tiny_seq2seq(name), scaled
        self.vectors: dict[str, np.ndarray] = {}
        with torch.no_grad():
            for key, module in grid_linears(grid):
                layer = self.model.get_submodule(key)
                layer.weight = nn.Parameter(module.weight.clone())
            for key, module in grid.named_modules(remove_duplicate=False):
                if isinstance(module, GridEmbedding):
                    self.model.get_submodule(key).weight = nn.Parameter(module.store.dense(torch.float32).clone())
        for key, layer in scaled.items():
            self._hook(key, layer)

    def _hook(self, name: str, layer: Scaled) -> None:
        def after(module: nn.Module, inputs: Any, out: torch.Tensor) -> torch.Tensor:
            return out * torch.from_numpy(self.vectors[name]) if name in self.vectors else out

        def before(module: nn.Module, inputs: Any) -> Any:
            return (inputs[0] * torch.from_numpy(self.vectors[name]),) if name in self.vectors else inputs

        target = self.model.get_submodule(layer.site.module)
        if layer.site.placement == "input":
            target.register_forward_pre_hook(before)
        else:
            target.register_forward_hook(after)

    @torch.no_grad()
    def states(self, ids: np.ndarray, mask: np.ndarray, vectors: dict[str, np.ndarray]) -> np.ndarray:
        self.vectors = vectors
        encoder = self.model.get_encoder()
        return encoder(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))[0].numpy()

    @torch.no_grad()
    def logits(
        self, ids: np.ndarray, mask: np.ndarray, decoder_ids: np.ndarray, vectors: dict[str, np.ndarray]
    ) -> np.ndarray:
        """[B, S, V] in one pass without a cache."""
        self.vectors = vectors
        ids, mask, decoder_ids = (torch.from_numpy(a) for a in (ids, mask, decoder_ids))
        return self.model(
            input_ids=ids,
            attention_mask=mask,
            decoder_input_ids=decoder_ids,
            decoder_attention_mask=torch.ones_like(decoder_ids),
            use_cache=False,
        ).logits.numpy()


class Pair:
    """The two graphs in ONNX Runtime."""

    def __init__(self, graphs: dict[str, ir.Model] | dict[str, str]) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.encoder, self.decoder = (
            ort.InferenceSession(_opened(graphs[name]), options, providers=["CPUExecutionProvider"])
            for name in ("encoder", "decoder")
        )
        self.names = {s: {i.name for i in s.get_overridable_initializers()} for s in (self.encoder, self.decoder)}
        self.past = {i.name: i.shape for i in self.decoder.get_inputs() if i.name.startswith("past_key_values.")}

    def vectors(self, session: ort.InferenceSession, vectors: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Those that this graph has, a row each."""
        keys = [k for k in vectors[0] if k in self.names[session]]
        return {k: np.stack([v[k][None] for v in vectors]) for k in keys}

    def states(self, ids: np.ndarray, mask: np.ndarray, vectors: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
        return self.encoder.run(
            ["last_hidden_state"], {"input_ids": ids, "attention_mask": mask} | self.vectors(self.encoder, vectors)
        )[0]

    def empty(self, rows: int, size: int | None = None) -> dict[str, np.ndarray]:
        """As a stock loader makes it."""
        return {
            n: np.zeros((rows, shape[1], 0, size or (shape[3] if isinstance(shape[3], int) else 16)), np.float32)
            for n, shape in self.past.items()
        }

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [o.name for o in self.decoder.get_outputs()]
        return dict(zip(names, self.decoder.run(None, feeds), strict=True))


def _opened(graph: ir.Model | str) -> bytes | str:
    return graph if isinstance(graph, str) else ir.to_proto(graph).SerializeToString()


def batch(lengths: Sequence[int], left: bool = False, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of texts of these lengths, padded on a side, and their mask."""
    generator, longest = np.random.default_rng(seed), max(lengths)
    ids, mask = np.zeros((len(lengths), longest), np.int64), np.zeros((len(lengths), longest), np.int64)
    for row, length in enumerate(lengths):
        place = slice(longest - length, None) if left else slice(0, length)
        ids[row, place], mask[row, place] = generator.integers(3, 101, length), 1
    return ids, mask


def vector_rows(scaled: dict[str, Scaled], rows: int) -> list[dict[str, np.ndarray]]:
    """One set a row, around one; the second row has ones."""
    found = [random_vectors(scaled, seed) for seed in range(rows)]
    if rows > 1:
        found[1] = {name: np.ones_like(v) for name, v in found[1].items()}
    return found
