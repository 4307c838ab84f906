"""Calibration finds the terms that made the times, on graphs that ONNX itself takes; predictions stand beside measurements."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from test_footprint_account import manifest_of, write_bundle

from qia3 import cli, machine
from qia3.bundle.manifest import Layer
from qia3.errors import ConfigError
from qia3.footprint import calibrated
from qia3.footprint.device import parse_device
from qia3.footprint.devices import load_device
from qia3.footprint.estimate import estimate
from qia3.footprint.kernels import kernel_bytes
from qia3.footprint.report import build_report
from qia3.runtime.calibrate import PLANS, PROMPT, FloatPlan, Floats, Plan, Stack, float_graph, graph

RATE, NODE, OPERATIONS, LOAD = 9e9, 3e-6, 80e9, 5e8
FLOATS, OUTPUT = 14e9, 5e-9


def figures(rate: float = RATE, node: float = NODE) -> dict:
    """As a machine of these terms would have them, by the formulas of the module's header."""
    stacks = []
    for plan in PLANS:
        linears = [Layer("", k, n, "", 4, "int4", 64, False) for _ in range(plan.layers) for k, n in plan.linears()]
        head = (plan.hidden, plan.vocabulary)
        linears.append(Layer("", *head, "", 4, "int4", 64, False))
        found, nodes = kernel_bytes(linears)["x64-int8"], 12 * plan.layers + 3
        operations = 2 * (PROMPT * plan.layers * sum(k * n for k, n in plan.linears()) + head[0] * head[1])
        outputs = PROMPT * plan.layers * sum(n for _, n in plan.linears()) + plan.vocabulary
        stacks.append(
            {
                "name": plan.name,
                "layers": plan.layers,
                "linears": plan.linears(),
                "head": head,
                "nodes": nodes,
                "load_seconds": found.held_bytes / LOAD,
                "token_seconds": found.streamed_bytes / rate + nodes * node,
                "prompt_seconds": operations / OPERATIONS + outputs * OUTPUT + nodes * node,
            }
        )
    floats = {"bytes": 10**8, "nodes": 16, "token_seconds": 1e8 / FLOATS + 16 * node}
    facts = {"threads": 2, "block": 64, "prompt_tokens": PROMPT, "stacks": stacks, "floats": floats}
    return facts | {"process_held_bytes": 30 * 2**20, "process_mapped_bytes": 40 * 2**20}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's folder without a profile, and a machine that runs nothing and answers at once."""
    monkeypatch.setattr(calibrated.platformdirs, "user_data_path", lambda *_, **__: tmp_path / "data")
    answer = SimpleNamespace(returncode=0, stdout=json.dumps(figures()), stderr="")
    monkeypatch.setattr(calibrated.subprocess, "run", lambda *_, **__: answer)
    monkeypatch.setattr(machine, "family", lambda: "x64")
    monkeypatch.setattr(machine, "instruction_sets", lambda: ("avx2",))
    return tmp_path / "data" / "here.toml"


def test_the_terms_that_made_the_times_are_found():
    found = calibrated.fitted(figures(), "x64-int8")
    assert found.bandwidth_bytes_per_second == pytest.approx(RATE)
    assert found.node_seconds == pytest.approx(NODE)
    assert found.float_bandwidth_bytes_per_second == pytest.approx(FLOATS)
    assert found.operations_per_second == pytest.approx(OPERATIONS)
    assert found.output_seconds == pytest.approx(OUTPUT)
    assert found.load_bytes_per_second == pytest.approx(LOAD)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert found.prompt_error == pytest.approx(0, abs=1e-9)


def test_where_small_products_are_as_fast_an_output_takes_nothing():
    told = figures()
    for stack in told["stacks"]:
        stack["prompt_seconds"] *= 0.5 if stack["name"] == "narrow" else 2
    found = calibrated.fitted(told, "x64-int8")
    assert found.output_seconds == calibrated.LEAST
    assert found.operations_per_second < OPERATIONS


def test_figures_that_contradict_each_other_are_refused():
    told = figures()
    told["stacks"][0]["token_seconds"] = 1.0
    with pytest.raises(ConfigError, match="a busy machine"):
        calibrated.fitted(told, "x64-int8")


def test_onnx_takes_the_graphs_and_they_run():
    """Read by the onnx package, which wrote none of it; a layer's answer in numpy, where its products are by ones."""
    plan = Plan("small", 2, 2, 1, 128, 320)
    nodes, content = graph(plan)
    read = onnx.load_from_string(content)
    onnx.checker.check_model(read)
    assert len(read.graph.node) == nodes == 12 * 2 + 3
    assert onnx.numpy_helper.to_array(next(x for x in read.graph.initializer if x.name == "s0")).shape == (256, 2)
    assert {a.name: onnx.helper.get_attribute_value(a) for a in read.graph.node[1].attribute}["block_size"] == 64
    stack = Stack(plan, 1)
    first, again = stack.run(3, 0), stack.run(1, 2)
    assert first.shape == (1, 1, 320)
    assert np.isfinite(first).all()
    np.testing.assert_allclose(first, again, rtol=1e-4, atol=1e-4)


def test_layers_of_a_stack_have_weights_of_their_own():
    """ONNX Runtime shares what it packed by content: layers that are alike would be read from the processor's cache."""
    for content in (graph(Plan("small", 3, 2, 1, 128, 320))[1], float_graph(FloatPlan(4, 64, 96))[1]):
        weights = [i for i in onnx.load_from_string(content).graph.initializer if i.name.startswith("w")]
        assert len({i.raw_data for i in weights}) == len(weights) >= 4


def test_a_small_machine_runs_fewer_layers_and_narrower_ones():
    wide = PLANS[-1]
    assert wide.within(2**40) == wide
    half = wide.within(200 * 2**20)
    assert (half.heads, half.layers) == (32, 1)
    zero = wide.within(58 * 2**20)
    assert (zero.heads, zero.kv_heads, zero.inner, zero.layers) == (8, 2, 2048, 7)
    with pytest.raises(ConfigError, match="not enough to calibrate"):
        PLANS[0].within(2**20)


def test_products_in_float_are_what_their_graph_says():
    floats = Floats(FloatPlan(3, 64, 96), 1)
    weights = onnx.load_from_string(float_graph(floats.plan)[1]).graph.initializer
    expected = np.ones((1, 64), np.float32)
    for one in weights:
        expected = expected @ onnx.numpy_helper.to_array(one)
    (got,) = floats.session.run(None, {"x": np.ones((1, 1, 64), np.float32)})
    np.testing.assert_allclose(got[0], expected, rtol=1e-4, atol=1e-4)
    assert floats.bytes == sum(len(one.raw_data) for one in weights)


def test_the_profile_is_kept_and_here_takes_it(home):
    run = CliRunner().invoke(cli.qia3, ["bench", "--calibrate"])
    assert run.exit_code == 0, run.output
    assert "9.0 GB/s" in run.output
    assert str(home) in run.output
    kept = parse_device("here", home.read_text(encoding="utf-8"))
    rate = kept.decode_bandwidth_low_bytes_per_second
    assert rate.value == pytest.approx(RATE, rel=1e-3)
    assert rate.confidence == "measured"
    assert rate.source[0].startswith("qia3 bench --calibrate, 20")
    here = load_device("here")
    assert here.node_seconds == kept.node_seconds
    assert here.usable_bytes.how.startswith("available now")


def test_a_profile_of_another_processor_is_not_used(home, monkeypatch):
    calibrated.calibrate()
    monkeypatch.setattr(machine, "processor", lambda: "another one")
    here = load_device("here")
    assert here.node_seconds is None
    assert "is for another processor" in here.notes


def test_a_damaged_profile_is_told_in_one_line(home):
    home.parent.mkdir()
    home.write_text("title = 3", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"here\.toml"):
        load_device("here")


def test_one_of_bundle_and_calibrate_is_asked_for(tmp_path):
    for words in ([], [str(tmp_path), "--calibrate"]):
        run = CliRunner().invoke(cli.qia3, ["bench", *words])
        assert run.exit_code != 0
        assert "either a bundle or --calibrate" in str(run.exception)


def test_a_bundle_that_was_measured_has_its_predictions(tmp_path, home, monkeypatch):
    """Written out for the small bundle: 128 tokens and 64, on the machine that its manifest names."""
    manifest = write_bundle(tmp_path)
    report = build_report(tmp_path, manifest)
    rows = {one.name: one for one in report.predicted}
    assert rows["decoding"].predicted is None
    assert rows["layers on disk"].error == 0
    assert rows["memory, resident"].error == pytest.approx(rows["memory, resident"].predicted / 235048960 - 1)
    monkeypatch.setattr(machine, "processor", lambda: "AMD EPYC")
    calibrated.calibrate()
    rows = {one.name: one for one in build_report(tmp_path, manifest).predicted}
    once = report.memory.nodes * NODE
    numbers = sum(x.inputs * x.outputs for x in manifest.linears if x.role != "head")
    head = sum(x.inputs * x.outputs for x in manifest.linears if x.role == "head")
    streamed = report.memory.kernels["x64-int8"].streamed_bytes
    assert rows["decoding"].predicted == pytest.approx(1 / (streamed / RATE + once), rel=1e-3)
    outputs = sum(x.outputs * (1 if x.role == "head" else 128) for x in manifest.linears)
    prompt = 2 * (128 * numbers + head) / OPERATIONS + outputs * OUTPUT + once
    assert rows["prompt"].predicted == pytest.approx(128 / prompt, rel=1e-3)
    assert rows["load"].predicted == pytest.approx(report.memory.kernels["x64-int8"].held_bytes / LOAD, rel=1e-3)


def test_a_calibrated_device_has_a_narrower_range(home, tmp_path):
    report = build_report(tmp_path, write_bundle(tmp_path))
    calibrated.calibrate()
    found = estimate(load_device("here"), report)
    middle = 1 / (report.memory.kernels["x64-int8"].streamed_bytes / RATE + report.memory.nodes * NODE)
    assert found.decode_tokens_per_second_low == pytest.approx(0.7 * middle, rel=0.05)
    assert found.decode_tokens_per_second_high == pytest.approx(1.3 * middle, rel=0.05)


def test_the_kernel_is_that_of_the_machine_that_measured(monkeypatch):
    from dataclasses import replace

    from qia3.footprint.kernels import kernel_here

    manifest = manifest_of()
    assert kernel_here(manifest) == "x64-int8"
    arm = replace(manifest, measured=replace(manifest.measured, machine="Raspberry Pi 5, 4 cores, Linux aarch64"))
    assert kernel_here(arm) == "arm-dotprod"
    monkeypatch.setattr(machine, "family", lambda: "arm")
    monkeypatch.setattr(machine, "instruction_sets", lambda: ("neon",))
    assert kernel_here(arm) == kernel_here(replace(manifest, measured=None)) == "float32"
    assert kernel_here(manifest) == "x64-int8"
