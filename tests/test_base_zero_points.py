"""A symmetric grid's zero points, written out for kernels that would round its scales."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from test_graph import fed
from tiny import ids, random_vectors, tiny

from qia3.base.modules import grid_linears
from qia3.base.quantise import Grid, quantise_model
from qia3.base.zero_points import write_zero_points
from qia3.bundle.layout import GRAPH
from qia3.graph.export import export_decoder
from qia3.graph.external import write_graph
from qia3.graph.forced import OrtDecoder, torch_logits
from qia3.ia3.mix import named
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, detach, fold, set_vectors

BLOCK = 32  # an odd number of blocks in some rows


def symmetric(eight_bit=()):
    model, grid = tiny("llama"), Grid(BLOCK, symmetric=True)
    quantise_model(model, Grid(BLOCK, True, own=named(eight_bit).find(model, grid, None).own))
    return model


def shipped(model, folder):
    folder.mkdir(exist_ok=True)
    write_graph(export_decoder(model, 0, 48, "last"), folder, ["model.embed_tokens", "lm_head"])
    return ir.load(folder / GRAPH).graph


def test_the_weights_stay_what_they_were():
    model = symmetric(("value",))
    before = {name: layer.store.dense(torch.float32) for name, layer in grid_linears(model)}
    write_zero_points(model, 4)
    for name, layer in grid_linears(model):
        assert torch.equal(layer.store.dense(torch.float32), before[name])
        assert (layer.store.zero_points is None) == (layer.store.bits == 8), name


@pytest.mark.parametrize("level", [0, 1])
def test_products_in_float32_need_none(level):
    model = symmetric()
    write_zero_points(model, level)
    assert all(layer.store.zero_points is None for _, layer in grid_linears(model))


def test_every_product_of_the_graph_has_eights(tmp_path):
    model = symmetric()
    write_zero_points(model, 4)
    products = [n for n in shipped(model, tmp_path) if n.op_type == "MatMulNBits"]
    assert products
    for node in products:
        zeros = node.inputs[3].const_value.numpy()
        rows, blocks = node.attributes["N"].value, -(-node.attributes["K"].value // BLOCK)
        both = np.stack((zeros & 15, zeros >> 4), axis=-1).reshape(rows, -1)
        assert (both[:, :blocks] == 8).all()


def test_side_and_merged_are_the_model(tmp_path):
    """Law 2 on a symmetric grid with its zero points written: the side graph, and the vectors in the scales."""
    prompt, forced, model = ids(1, 11)[0].tolist(), [7, 9], symmetric()
    write_zero_points(model, 4)
    scaled = attach(model, find_roles(model).sites)
    vectors = random_vectors(scaled)
    set_vectors(scaled, vectors)
    shipped(model, tmp_path / "side")
    side = OrtDecoder(tmp_path / "side" / GRAPH).logits(prompt, forced, fed(vectors))
    np.testing.assert_allclose(side, torch_logits(model, prompt, forced), atol=1e-3)
    fold(scaled)
    detach(model, scaled)
    shipped(model, tmp_path / "merged")
    np.testing.assert_allclose(OrtDecoder(tmp_path / "merged" / GRAPH).logits(prompt, forced, {}), side, atol=1e-3)
