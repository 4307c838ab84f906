"""64-bit ARM, emulated: the numbers of its kernels beside this machine's. Emulation computes what the instructions define,
so numbers are a device's; time is not, and nothing is timed.

`make arm` sets it up and runs this, `make test` all but the last test; QIA3_ARM is the folder (tests/arm/setup.sh). A
cortex-a72 has no dot products: level 4 is silently level 0 there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_build
import tiny_bundle
import torch
from onnx import TensorProto, helper, numpy_helper, save
from places import whole
from torch import nn

from qia3 import cli
from qia3.base.modules import GridLinear
from qia3.base.weights import Int4Weight
from qia3.base.zero_points import write_zero_points
from qia3.batching.log import read_log
from qia3.bundle.adapter import read_adapter

ARM, SCRIPTS, REPOSITORY = (
    os.environ.get("QIA3_ARM"),
    Path(__file__).parent / "arm",
    Path(__file__).parent.parent,
)
pytestmark = pytest.mark.skipif(not ARM, reason="QIA3_ARM names no emulated ARM (make arm)")
DOTTED, PLAIN = ("cortex-a76", "neoverse-v1"), "cortex-a72"
INPUTS, OUTPUTS = 576, 256
GRIDS = {"zeros": False, "written": True, "none": True}  # a symmetric grid with zero points written, and without


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """By processor, this machine's first ("here")."""
    folder = tmp_path_factory.mktemp("arm")
    tiny_bundle.write_bundle(folder / "bundle")
    write_products(folder)
    found = {"here": asked([sys.executable], folder)}
    for cpu in (*DOTTED, PLAIN):
        found[cpu] = asked([f"{ARM}/arm", cpu], folder)
    return found


def asked(python, folder):
    output = folder / "answers.npz"
    run(python, "answers.py", folder, output)
    return dict(np.load(output))


def run(python, script, *given):
    path = f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"PYTHONPATH": path, "SITE": str(REPOSITORY)}
    subprocess.run([*python, SCRIPTS / script, *given], check=True, env=environment)


def write_products(folder):
    """x [16, 576] with four large activations, and each grid's product, beside itself with a vector in its scales."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, INPUTS)).astype(np.float32)
    x[:, :: INPUTS // 4] *= 60
    np.save(folder / "x.npy", x)
    for block in (32, 64):
        for name, symmetric in GRIDS.items():
            store = Int4Weight.from_float(torch.from_numpy(rng.standard_normal((OUTPUTS, INPUTS))), block, symmetric)
            if name == "written":
                write_zero_points(nn.ModuleList([GridLinear(store, None)]), 4)
            for level in (0, 4):
                save(product(store, level), folder / f"{name}-{block}-{level}-side.onnx")
            store.fold(torch.from_numpy(factors()))
            save(product(store, 4), folder / f"{name}-{block}-4-folded.onnx")


def factors():
    return np.random.default_rng(1).uniform(0.7, 1.3, OUTPUTS).astype(np.float32)


def product(store, level):
    """One MatMulNBits, written without the exporter."""
    held = {"codes": store.codes, "scales": store.scales}
    held |= {} if store.zero_points is None else {"zeros": store.zero_points}
    node = helper.make_node(
        "MatMulNBits", ["x", *held], ["y"], domain="com.microsoft",
        K=INPUTS, N=OUTPUTS, bits=4, block_size=store.block_size, accuracy_level=level,
    )  # fmt: skip
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [16, d]) for n, d in (("x", INPUTS), ("y", OUTPUTS))]
    constants = [numpy_helper.from_array(t.numpy(), n) for n, t in held.items()]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def off(found, expected):
    """The root mean square of the difference, divided by that of the answer."""
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))


@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("grid", ["zeros", "written"])
@pytest.mark.parametrize("cpu", DOTTED)
def test_a_product_is_the_same_with_dot_products(answers, cpu, grid, block):
    name = f"{grid}-{block}-4-side"
    assert off(answers[cpu][name], answers["here"][name]) < 4e-6


@pytest.mark.parametrize("grid", GRIDS)
def test_a_product_is_exact_without_dot_products(answers, grid):
    assert off(answers[PLAIN][f"{grid}-64-4-side"], answers["here"][f"{grid}-64-0-side"]) < 4e-6


@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("grid", ["zeros", "written"])
@pytest.mark.parametrize("cpu", [*DOTTED, PLAIN, "here"])
def test_law_2_a_fold_is_the_vector_beside(answers, cpu, grid, block):
    side, folded = (answers[cpu][f"{grid}-{block}-4-{how}"] for how in ("side", "folded"))
    assert off(folded, side * factors()) < 4e-6


@pytest.mark.parametrize("cpu", DOTTED)
def test_zero_points_are_written_because_scales_are_truncated_without(answers, cpu):
    side, folded = (answers[cpu][f"none-64-4-{how}"] for how in ("side", "folded"))
    assert off(folded, side * factors()) > 1e-3, "ONNX Runtime has mended it: zero_points.py has no reason any more"


@pytest.mark.parametrize("cpu", [*DOTTED, PLAIN])
def test_the_runtime_has_the_same_logits(answers, cpu):
    np.testing.assert_allclose(answers[cpu]["bundle"], answers["here"]["bundle"], atol=1e-4, rtol=1e-4)


@whole
def test_steps_of_learning_are_the_same(tmp_path):
    """Losses of three steps, and the vectors: the optimiser divides by roots of tiny gradients, so a few may differ."""
    file = tiny_build.write_build(tmp_path)
    file.write_text(file.read_text().replace("[parity]", "trainable = true\n[parity]"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(file), "--output", str(tmp_path / "b")])
    assert ended.value.code == 0
    learned = {}
    for name, python in (("here", [sys.executable]), *((cpu, [f"{ARM}/arm", cpu]) for cpu in (PLAIN, DOTTED[0]))):
        shutil.copytree(tmp_path / "b", tmp_path / name)
        run(python, "learning.py", tmp_path / name, tmp_path / "topics.jsonl")
        losses = [entry["loss"] for entry in read_log(tmp_path / f"{name}.learn" / "mine" / "log.jsonl")]
        vectors = read_adapter(tmp_path / name / "adapters" / "mine.onnx_adapter").vectors
        learned[name] = losses, np.concatenate([vectors[key] for key in sorted(vectors)])
    losses, vectors = learned.pop("here")
    assert np.abs(vectors - 1).max() > 0.01
    for theirs, others in learned.values():
        np.testing.assert_allclose(theirs, losses, rtol=1e-4)
        assert off(others, vectors) < 1e-3
