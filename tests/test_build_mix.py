"""The whole road with layers at 8 bits and in other blocks: graphs, and bundles with vectors unmerged and in the
scales.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from test_build import QUANTISED, qia3, tensors
from test_graph import exported, fed
from tiny import ids
from tiny_build import write_build

from qia3 import cli
from qia3.base.load import Asked, load_base
from qia3.base.weights import GridWeight
from qia3.bundle.layout import GRAPH
from qia3.bundle.opened import Bundle
from qia3.graph.forced import OrtDecoder, torch_logits
from qia3.ia3.mix import named
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.engine import Engine

ROLES = ("head", "down")
BLOCKS = 'blocks = { 32 = ["value", "up@1"] }'


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("family", "roles"),
    [("llama", ROLES), ("llama", ("value", "up")), ("gemma3_text", ROLES), ("gpt2", ("value", "down"))],
)
def test_the_graph_is_the_model(family, roles, symmetric, tmp_path):
    model, _, vectors, _ = exported(family, tmp_path, eight_bit=roles, symmetric=symmetric)
    prompt, forced = ids(1, 11)[0].tolist(), [7, 9, 11]
    found = OrtDecoder(tmp_path / GRAPH).logits(prompt, forced, fed(vectors))
    np.testing.assert_allclose(found, torch_logits(model, prompt, forced), atol=1e-3)


def test_vectors_fold_into_layers_at_eight_bits(tmp_path):
    _, _, vectors, _ = exported("llama", tmp_path / "side", eight_bit=("key", "value", "up"))
    exported("llama", tmp_path / "merged", eight_bit=("key", "value", "up"), folded=True)
    side, merged = (OrtDecoder(tmp_path / mode / GRAPH) for mode in ("side", "merged"))
    prompt = ids(1, 11)[0].tolist()
    np.testing.assert_allclose(merged.logits(prompt, [7, 9], {}), side.logits(prompt, [7, 9], fed(vectors)), atol=1e-3)


@pytest.mark.parametrize(
    "layers",
    [
        (((), 5), (("query", "key", "value"), 5)),
        ((("value",), 6), (("key",), 7)),
        ((("query", "value"), 7), (("query",), 6)),
        ((("query", "key"), 6), ((), 5)),
    ],
)
@pytest.mark.parametrize("folded", [False, True])
def test_projections_that_are_neighbours_of_the_same_bits_are_packed(layers, folded, tmp_path):
    """`layers`: which of each layer's are at 8 bits, and how many products it then has."""
    eight_bit = tuple(f"{role}@{i}" for i, (roles, _) in enumerate(layers) for role in roles)
    model, _, vectors, _ = exported("llama", tmp_path, eight_bit=eight_bit, folded=folded)
    products = [n for n in ir.load(tmp_path / GRAPH).graph if n.op_type == "MatMulNBits"]
    counts = Counter(n.inputs[1].name.partition("layers.")[2].partition(".")[0] for n in products)
    assert counts == {"0": layers[0][1], "1": layers[1][1], "": 1}  # and the head
    prompt = ids(1, 11)[0].tolist()
    found = OrtDecoder(tmp_path / GRAPH).logits(prompt, [7, 9], {} if folded else fed(vectors))
    np.testing.assert_allclose(found, torch_logits(model, prompt, [7, 9]), atol=1e-3)


@pytest.fixture(scope="module")
def place(tmp_path_factory, kept_graphs) -> Path:
    """Bundles `side` and `merged` of one training, with their build file."""
    folder = tmp_path_factory.mktemp("build")
    file = write_build(folder, steps=4)
    file.write_text(
        file.read_text(encoding="utf-8").replace("[train]", f"eight_bit = {json.dumps(ROLES)}\n{BLOCKS}\n[train]"),
        encoding="utf-8",
    )
    for mode, options in (
        ("side", []),
        ("merged", ["--mode", "merged", "--task", "topics", "--work", str(folder / "side.work")]),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["build", str(file), "--output", str(folder / mode), *options])
        assert ended.value.code == 0
    return folder


def test_a_build_within_a_budget_says_what_it_chose(tmp_path, capsys):
    """The manifest names the layers, and all of them together take no more bits than asked for."""
    file = write_build(tmp_path, steps=1)
    file.write_text(
        file.read_text(encoding="utf-8").replace('calibration = "none"', 'calibration = "own"\nbits = 8.0'),
        encoding="utf-8",
    )
    code, out, told = qia3(capsys, "build", file, "--output", tmp_path / "out")
    assert code == 0, out + told
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    chosen = manifest["base"]["grid"]["eight_bit"]
    assert chosen
    assert f"at 8 bits: {', '.join(chosen)}" in told
    weights = sum(
        layer["outputs"] * layer["inputs"] for layer in manifest["linears"]
    )  # the embedding is tied to the head
    size = sum(t["bytes"] for t in manifest["tensors"] if t["name"].rpartition(".")[2] in QUANTISED)
    assert 7.0 < 8 * size / weights <= 8.0


def base_of(place: Path):
    return load_base(Asked(str(place / "base"), block_size=16, mix=named(ROLES, [(32, ("value", "up@1"))])))


@pytest.mark.parametrize("mode", ["side", "merged"])
def test_law_1_what_is_trained_is_what_ships(place, mode):
    """Merged, the folded layers have other scales and nothing else."""
    base = base_of(place)
    assert base.fingerprint == Bundle.open(place / mode).fingerprint
    trained = {
        hashlib.sha256(b.numpy().tobytes()).hexdigest()
        for m in base.model.modules()
        if isinstance(m, GridWeight)
        for b in m.buffers()
    }
    shipped = {
        hashlib.sha256(data).hexdigest(): name
        for name, (part, data) in tensors(place / mode).items()
        if part in QUANTISED
    }
    new = {shipped[digest] for digest in shipped.keys() - trained}
    assert all(name.endswith(".scales") for name in new)
    assert len(new) == len(trained - shipped.keys()) == (0 if mode == "side" else 6)


@pytest.mark.parametrize("mode", ["side", "merged"])
def test_law_5_bytes_add_up_and_are_the_grids_arithmetic(place, mode, capsys):
    code, out, _ = qia3(capsys, "report", place / mode, "--json")
    account = json.loads(out)["account"]
    assert code == 0
    assert account["total"] == sum(f.stat().st_size for f in (place / mode).rglob("*") if f.is_file())
    assert account["bits_per_weight"] == account["grid_bits_per_weight"] > 7.0  # 6.5 at 4 bits, blocks of 16
    linears = json.loads((place / mode / "manifest.json").read_text())["linears"]
    assert {entry["role"] for entry in linears if entry["bits"] == 8} == {"head", "feed_forward_down"}
    assert {e["role"] for e in linears if e["bits"] == 4 and e["block_size"] == 32} == {
        "value",
        "feed_forward",
        "feed_forward_up",
    }
    text = (place / mode / "report.md").read_text(encoding="utf-8")
    assert "In blocks of 32: up@1; value. At 8 bits: down; head." in text
    assert "4-bit codes" not in text


def test_parity_was_checked_at_level_0_and_the_runtime_agrees(place):
    manifest = json.loads((place / "side" / "manifest.json").read_text())
    assert all(case["exact"]["max_difference"] < 1e-3 for case in manifest["parity"].values())
    side, merged = Bundle.open(place / "side"), Bundle.open(place / "merged")
    rows = [Engine(side).encode("turn the lights off"), Engine(side).encode("lock up")]
    ours, _ = Engine(side).prefill(rows, AdapterBank(side).vectors("topics"))
    theirs, _ = Engine(merged).prefill(rows, {})
    np.testing.assert_allclose(theirs, ours, atol=1e-3)
    plain, _ = Engine(side).prefill(rows[:1], {})
    np.testing.assert_allclose(plain, torch_logits(base_of(place).model, rows[0], []), atol=1e-3)
