"""A base on the NF4 grid: bitsandbytes' own modules as the oracle, the same bytes in the graph, and folding where it is
exact.
"""

from __future__ import annotations

import bitsandbytes as bnb
import numpy as np
import onnx_ir as ir
import pytest
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from tiny import ALL, ids, random_vectors, tiny
from tiny_build import write_base
from torch import nn

from qia3.base import load
from qia3.base.modules import GridLinear
from qia3.base.nf4 import Nf4Weight
from qia3.base.quantise import Grid, quantise_model
from qia3.bundle.layout import GRAPH
from qia3.errors import AdapterError
from qia3.graph.export import export_decoder
from qia3.graph.external import write_graph
from qia3.graph.forced import OrtDecoder, torch_logits
from qia3.grids import nf4
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, detach, fold, set_vectors

FAMILIES = ["llama", "qwen2", "phi3", "gpt_neox"]


def on_nf4(family: str, block: int = 32):
    model = tiny(family)
    quantise_model(model, Grid(block, True, name="nf4"))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_the_one_that_bitsandbytes_makes(family):
    """Every linear layer but the head, with the very weights of bitsandbytes' Linear4bit; embeddings and head stay
    float.
    """
    ours, floats = on_nf4(family, 64), tiny(family)
    head = floats.get_output_embeddings()
    for name, layer in floats.named_modules():
        if isinstance(layer, nn.Linear) and layer is not head:
            packed, state = bnb.functional.quantize_4bit(layer.weight.detach(), blocksize=64, quant_type="nf4")
            mine = ours.get_submodule(name)
            assert isinstance(mine, GridLinear)
            np.testing.assert_array_equal(mine.store.codes.numpy(), packed.numpy().reshape(-1))
            np.testing.assert_array_equal(mine.store.scales.numpy(), state.absmax.numpy())
            # not bnb.functional.dequantize_4bit: 0.50's AVX-512 code lets every row begin a block, which is wrong for
            # 96 inputs in blocks of 64
            layer.weight.data = _dequantize_4bit_compute(
                packed.reshape(-1), state.absmax, state.code, 64, layer.weight.shape, torch.float32
            )
    assert not isinstance(ours.get_output_embeddings(), GridLinear)
    torch.testing.assert_close(ours(input_ids=ids()).logits, floats(input_ids=ids()).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inputs", [50, 64, 96])
def test_rows_and_a_held_weight_are_the_grids_numbers(inputs):
    store = Nf4Weight.from_float(torch.randn(7, inputs), 32)
    dense = nf4.dequantise(store.grid)
    np.testing.assert_array_equal(store.dense(torch.float32).numpy(), dense)
    np.testing.assert_array_equal(store.rows(torch.tensor([3, 0, 6]), torch.float32).numpy(), dense[[3, 0, 6]])
    store.hold_dense(torch.float32)
    np.testing.assert_array_equal(store.dense(torch.float32).numpy(), dense)


@pytest.mark.parametrize("family", FAMILIES if ALL else ["phi3", "gpt_neox"])  # fused
def test_the_graph_is_the_model_and_ships_its_bytes(family, tmp_path):
    model = on_nf4(family)
    scaled = attach(model, find_roles(model).sites)
    vectors = random_vectors(scaled)
    set_vectors(scaled, vectors)
    write_graph(export_decoder(model, 0, 48, "last"), tmp_path, [])
    graph = ir.load(tmp_path / GRAPH).graph
    products = [n for n in graph if n.op_type == "MatMulBnb4"]
    assert len(products) == sum(isinstance(m, GridLinear) for m in model.modules())
    shipped = {v.const_value.tobytes() for n in products for v in n.inputs[1:3]}
    assert shipped == {
        t.numpy().tobytes() for m in model.modules() if isinstance(m, Nf4Weight) for t in (m.codes, m.scales)
    }
    decoder, prompt = OrtDecoder(tmp_path / GRAPH), ids(1, 11)[0].tolist()
    fed = {n: v.reshape(1, 1, -1) for n, v in vectors.items()}
    np.testing.assert_allclose(decoder.logits(prompt, [7, 9], fed), torch_logits(model, prompt, [7, 9]), atol=1e-3)


def test_folding_is_exact_where_rows_are_whole_blocks_and_refused_elsewhere(tmp_path):
    model = on_nf4("llama")  # 96 and 160 inputs in blocks of 32
    scaled = attach(model, find_roles(model).sites)
    vectors = random_vectors(scaled)
    set_vectors(scaled, vectors)
    before = model(input_ids=ids()).logits
    codes = {n: t.clone() for n, t in model.state_dict().items() if n.endswith("codes")}
    fold(scaled)
    detach(model, scaled)
    torch.testing.assert_close(model(input_ids=ids()).logits, before, rtol=1e-4, atol=1e-4)
    folded = {n: t for n, t in model.state_dict().items() if n.endswith("codes")}
    assert {n.replace(".base.", "."): t.tolist() for n, t in codes.items()} == {
        n: t.tolist() for n, t in folded.items()
    }
    wide = on_nf4("llama", 64)  # 96 inputs are a block and a half
    scaled = attach(wide, find_roles(wide).sites)
    with pytest.raises(AdapterError, match="a block spans two rows"):
        fold(scaled)


@pytest.mark.parametrize("tied", [True, False])
def test_a_base_on_nf4_is_kept_and_read_as_it_is(tied, tmp_path, monkeypatch):
    """Its embedding is float, and where the head is the same tensor it stays the same one."""
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(load, "LEAST_KEPT", 0)
    folder = str(write_base(tmp_path / "base", tied=tied))
    made = load.load_base(load.Asked(folder, block_size=32, grid="nf4"))
    monkeypatch.setattr(load, "quantise_model", None)  # calling it again would fail
    read = load.load_base(load.Asked(folder, block_size=32, grid="nf4"))
    assert (read.fingerprint, read.grid, read.block_size) == (made.fingerprint, "nf4", 32)
    head, embedding = read.model.get_output_embeddings(), read.model.get_input_embeddings()
    assert (head.weight is embedding.weight) == tied
    torch.testing.assert_close(read.model(input_ids=ids()).logits, made.model(input_ids=ids()).logits)
