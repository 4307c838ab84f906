"""The graph that learns: its losses and gradients are torch's, and it reads the bytes that the decoder reads."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from tiny import ALL, DECODERS, tiny
from tiny_trees import forest

from qia3.base.quantise import Grid, quantise_model
from qia3.batching.tables import NAMES, fed, tables
from qia3.bundle.layout import DATA, GRAPH, TRAIN_GRAPH
from qia3.bundle.ports import GRADIENT, LOSSES
from qia3.errors import BaseModelError, ParityError
from qia3.gradients import check_gradients, read_logits
from qia3.graph import backward
from qia3.graph.export import export_decoder
from qia3.graph.external import write_graphs
from qia3.graph.trainable import check_trainable, export_trainable
from qia3.ia3.mix import named
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, get_vectors, set_vectors
from qia3.train.batches import packed, padded
from qia3.train.model import VectorModel

SAME = 1e-4  # of a vector's largest gradient
# odd rows of zero points; rows that do not fill their blocks, without zero points; heads and experts of other shapes
CASES = [("llama", 32, False, True), ("gpt2", 64, True, False)]
CASES += [(f, 32, False, f not in ("mistral", "gemma2", "gemma3_text")) for f in DECODERS] if ALL else []


def adapted(family, block, symmetric, eight_bit=()):
    model = tiny(family).requires_grad_(False)
    own = named(eight_bit).find(model, Grid(block, symmetric), None).own
    quantise_model(model, Grid(block, symmetric, own=own))
    return model, attach(model, find_roles(model).sites)


def worn(scaled):
    random = np.random.default_rng(1)
    vectors = {}
    for name, layer in scaled.items():
        vectors[name] = np.ones(layer.site.size, np.float32)
        rows = np.arange(layer.site.size) if layer.rows is None else layer.rows.numpy()
        vectors[name][rows] = random.uniform(-0.5, 1.5, len(rows))
    set_vectors(scaled, vectors)


def session(file):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(file, options)


def made_early(graph):
    """Weights that follow from constants alone: ONNX Runtime would make them all during the forward pass, and hold them."""
    waiting = {value.name for value in graph.graph.inputs}
    found = []
    for node in graph.graph:
        if any(value is not None and value.name in waiting for value in node.inputs):
            waiting |= {value.name for value in node.outputs}
        elif node.op_type in ("DequantizeLinear", "GatherBlockQuantized"):
            found.append(node)
    return found


@pytest.mark.parametrize(("family", "block", "symmetric", "trees"), CASES)
def test_losses_and_gradients_are_torchs(family, block, symmetric, trees, tmp_path, monkeypatch):
    monkeypatch.setattr(backward, "LARGE", 4 * 96 * -(-96 // block) * block)  # larger ones, the heads too, go in pieces
    model, scaled = adapted(family, block, symmetric, ("head",) if family == "gpt2" else ())
    graph = export_trainable(model, scaled, read_logits, trees)
    assert not any(layer.chosen for layer in scaled.values())
    assert not made_early(graph)
    decoder = export_decoder(model, 4, 48, "last")
    alone = write_graphs({GRAPH: decoder.clone()}, DATA, tmp_path / "alone", [])
    both = write_graphs({GRAPH: decoder, TRAIN_GRAPH: graph}, DATA, tmp_path, [])
    learner = session(tmp_path / TRAIN_GRAPH)
    for seed, names in ((0, NAMES), (1, NAMES[:1])):
        worn(scaled)
        forest_ = forest(seed, begin=2)
        batch = packed(forest_, 40, 96) if trees else padded(forest_)
        vectors = {name: vector[None, None] for name, vector in get_vectors(scaled).items()}
        given = fed({n: t.numpy() for n, t in batch.items()}, trees, names) | vectors
        found = dict(zip([o.name for o in learner.get_outputs()], learner.run(None, given), strict=True))
        out = VectorModel(model, scaled, names)(**batch)
        np.testing.assert_allclose(found[LOSSES][: len(names)], out["parts"].numpy(), rtol=1e-4, atol=1e-6)
        assert not found[LOSSES][len(names) :].any()
        for (name, layer), expected in zip(
            scaled.items(), torch.autograd.grad(out["loss"], [s.delta for s in scaled.values()]), strict=True
        ):
            ours = found[f"{name}{GRADIENT}"].reshape(-1)
            ours = ours if layer.rows is None else ours[layer.rows.numpy()]
            assert np.abs(ours - expected.numpy()).max() <= SAME * float(expected.abs().max()), name
    more = sum(region.bytes for region in both) - sum(region.bytes for region in alone)
    codes = sum(region.bytes for region in alone if "codes" in region.name)
    assert more < codes / 4, [region for region in both if region not in alone]
    spoilt = ir.load(tmp_path / TRAIN_GRAPH)
    product = next(n for n in spoilt.graph if n.op_type == "DequantizeLinear")
    product.replace_input_with(2, None)  # zero points
    product.resize_inputs(2)
    ir.save(spoilt, tmp_path / "onnx" / "spoilt.onnx")
    assert check_gradients(tmp_path / TRAIN_GRAPH, model, scaled) < SAME
    with pytest.raises(ParityError, match="differs from torch by"):
        check_gradients(tmp_path / "onnx" / "spoilt.onnx", model, scaled)


def test_a_base_that_cannot_learn_is_told_in_one_line():
    with pytest.raises(BaseModelError, match=r"T5ForConditionalGeneration cannot learn on a device: .* decoders alone"):
        check_trainable(tiny("t5"))


def test_tables_are_the_losses_sums():
    """The header's worked example."""
    found = tables(np.array([0, 0, 1, 1, 1]), np.array([0, 0]), np.array([True, False]), (2, 3, 1))
    np.testing.assert_allclose(found["mean"], [[1 / 2, 1 / 2, 0, 0, 0], [0, 0, 1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(found["right"], [1 / 2, 1 / 2, 0, 0, 0])
    np.testing.assert_allclose(found["wrong"], [0, 0, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_array_equal(found["member"], [[1, 1]])
    np.testing.assert_array_equal(found["chosen"], [[1, 0]])
    only = tables(np.array([0]), np.array([0]), np.array([True]), (1, 0, 0))
    assert not only["chosen"].any()
    assert not only["wrong"].any()
