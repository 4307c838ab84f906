"""On a GPU: bitsandbytes' CUDA code and our NF4 grid are one, training runs in bfloat16 there, and the graph is the one
that a CPU exports.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import ids, random_vectors, tiny

from qia3.base.modules import GridLinear
from qia3.base.quantise import Grid, quantise_model
from qia3.bundle.layout import DATA
from qia3.graph.export import export_decoder
from qia3.graph.external import write_graph
from qia3.grids import nf4
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, get_vectors, set_vectors
from qia3.train.compute import set_compute

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


@pytest.mark.parametrize("shape", [(48, 192), (576, 1536)])
def test_cuda_quantises_to_the_same_codes(shape):
    import bitsandbytes.functional as bnb

    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.05
    packed, state = bnb.quantize_4bit(weight.cuda(), blocksize=64, quant_type="nf4")
    ours = nf4.quantise(weight.numpy())
    np.testing.assert_array_equal(ours.scales, state.absmax.cpu().numpy())
    same = (ours.codes == packed.cpu().numpy().reshape(-1)).mean()
    assert same > 0.9999  # a tie between two levels may fall either way
    np.testing.assert_allclose(
        nf4.dequantise(ours), bnb.dequantize_4bit(packed, state).cpu().numpy(), atol=0.2 * float(weight.abs().max())
    )


@pytest.mark.parametrize("format", ["int4", "nf4"])
def test_a_step_in_bfloat16_is_the_cpus(format):
    """No autocast: products in bfloat16, the rest in float32. The gradients agree to what bfloat16 can tell."""
    gradients = []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        model = tiny("llama")
        quantise_model(model, Grid(32, False, name=format))
        scaled = attach(model, find_roles(model).sites)
        set_vectors(scaled, random_vectors(scaled))
        model.to(device)
        set_compute(model, model.get_output_embeddings(), dtype)
        logits = model(input_ids=ids().to(device)).logits
        assert logits.dtype == torch.float32
        logits.square().mean().backward()
        gradients.append(torch.cat([layer.delta.grad.flatten().cpu() for layer in scaled.values()]))
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert cosine > 0.995


def test_the_graph_is_the_one_that_a_cpu_exports(tmp_path):
    data = []
    for device in ("cpu", "cuda"):
        model = tiny("llama")
        quantise_model(model, Grid(32, True, name="nf4"))
        scaled = attach(model, find_roles(model).sites)
        model.to(device)
        assert all(np.array_equal(v, np.ones_like(v)) for v in get_vectors(scaled).values())
        model.cpu()
        (tmp_path / device).mkdir()
        write_graph(export_decoder(model, 0, 48, "last"), tmp_path / device, [])
        data.append((tmp_path / device / DATA).read_bytes())
        assert any(isinstance(m, GridLinear) for m in model.modules())
    assert data[0] == data[1]
