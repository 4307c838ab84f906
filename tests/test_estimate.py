"""Estimates for devices are ranges that follow the roofline, and published speeds lie in them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_footprint_account import write_bundle

from qia3.footprint.devices import load_device, load_devices
from qia3.footprint.devices_page import estimates_section, speed
from qia3.footprint.estimate import NODE_SECONDS, estimate
from qia3.footprint.kernels import KernelBytes
from qia3.footprint.report import Report, build_report
from qia3.printers.markdown import body_text


@pytest.fixture
def report(tmp_path) -> Report:
    return build_report(tmp_path, write_bundle(tmp_path))


def test_the_estimate_is_the_roofline(report):
    """raspberry-pi-5: 17.0 GB/s, 9.31 to 10.55 in decoding, 4 microseconds a node; written out."""
    device = load_device("raspberry-pi-5")
    kernels = {**report.memory.kernels, "arm-dotprod": KernelBytes(10**9, 10**9)}
    report = replace(report, memory=replace(report.memory, kernels=kernels, nodes=1000))
    found = estimate(device, report)
    at_low, at_high = (1 / (1 / rate + 1000 * 4e-6) for rate in (9.31, 10.55))
    assert found.kind == "estimate"
    assert found.decode_tokens_per_second_low == pytest.approx(0.6 * at_low, rel=0.05)
    assert found.decode_tokens_per_second_high == pytest.approx(1.4 * at_high, rel=0.05)
    assert found.decode_tokens_per_second_ceiling == pytest.approx(1 / (1 / 17.0 + 0.004), rel=0.05)


def test_published_speeds_lie_in_their_range(report):
    """llama3.2:3b Q4_K_M, 2.02 GB: 1.60 tokens/s on a Pi 400, 4.61 to 5.55 on a Pi 5, 9.06 on an N150 (geerlingguy
    ai-benchmarks); 11.05 on a Framework 12 (sbc-reviews 107).
    """
    streamed = KernelBytes(2_020_000_000, 2_020_000_000)
    memory = replace(report.memory, kernels=dict.fromkeys(("float32", "arm-dotprod", "x64-int8"), streamed), nodes=700)
    published = {
        "raspberry-pi-4": (1.60,),
        "raspberry-pi-5": (4.61, 5.55),
        "intel-n100": (9.06,),
        "intel-n150": (9.06,),
    }
    for name, speeds in {**published, "avx2-laptop": (11.05,)}.items():
        found = estimate(load_device(name), replace(report, memory=memory))
        assert all(found.decode_tokens_per_second_low < s < found.decode_tokens_per_second_high for s in speeds), name


def test_machines_of_the_readme_lie_in_their_range(report):
    """One Xeon decodes Llama-3.2-1B's shapes (772 MB, 229 nodes) at 20 tokens/s, which tells its bandwidth, and SmolLM2-135M
    at 190 in blocks of 32 (101 MB, 411 nodes), 192 to 212 of 64 (84 MB), 239 of 128 (76 MB).
    """
    rate = 772e6 / (1 / 20 - 229 * NODE_SECONDS["x64"])
    known = load_device("avx2-laptop")
    figure = known.decode_bandwidth_low_bytes_per_second.model_copy(update={"value": rate})
    both = dict.fromkeys(("decode_bandwidth_low_bytes_per_second", "decode_bandwidth_high_bytes_per_second"), figure)
    for megabytes, speeds in ((101, (190,)), (84, (192, 212)), (76, (239,))):
        kernels = {"x64-int8": KernelBytes(megabytes * 10**6, megabytes * 10**6)}
        small = replace(report, memory=replace(report.memory, kernels=report.memory.kernels | kernels, nodes=411))
        found = estimate(known.model_copy(update=both), small)
        assert all(found.decode_tokens_per_second_low < s < found.decode_tokens_per_second_high for s in speeds)
    assert 411 * NODE_SECONDS["x64"] < 1 / 305  # an EPYC's whole token


def test_what_is_too_large_does_not_fit(report):
    device = load_device("browser-tab-ios")
    assert estimate(device, report).fits
    large = replace(report, memory=replace(report.memory, mapped_bytes=2 * 10**9))
    assert not estimate(device, large).fits
    unknown = device.model_copy(update={"usable_bytes": None})
    assert estimate(unknown, large).fits
    assert estimate(unknown, large).usable_ram_bytes == 4 * 2**30


def test_needed_memory_has_the_measured_process_in_it(report):
    n100 = load_device("intel-n100")
    bare = estimate(n100, replace(report, measured=None)).needed_ram_bytes
    kernel = report.memory.kernels["x64-int8"].held_bytes
    assert bare == kernel + report.memory.mapped_bytes + report.memory.kv_cache_bytes
    assert estimate(n100, report).needed_ram_bytes == 235048960 + report.memory.kv_cache_bytes


def test_where_nothing_was_published_there_is_no_range(report):
    found = estimate(load_device("orange-pi-5"), report)
    assert found.decode_tokens_per_second_low is found.decode_tokens_per_second_high is None
    assert speed(found).text.startswith("below ")
    assert speed(estimate(load_device("pixel-9"), report)).text == "unknown"
    assert speed(estimate(load_device("browser-tab"), report)).text == "unknown"


def test_arm_runs_the_kernel_of_its_instructions(tmp_path):
    report = build_report(tmp_path, write_bundle(tmp_path))
    pi4, pi5 = load_device("raspberry-pi-4"), load_device("raspberry-pi-5")
    kernels = {"pi4": "float32", "pi5": "arm-dotprod", "i8mm": "arm-i8mm"}
    i8mm = pi5.model_copy(update={"isa": pi5.isa.model_copy(update={"value": ("neon", "dotprod", "i8mm")})})
    distinct = {name: KernelBytes(n, n) for n, name in enumerate(("x64-int8", *kernels.values()))}
    marked = replace(report, memory=replace(report.memory, kernels=distinct))
    for name, device in (("pi4", pi4), ("pi5", pi5), ("i8mm", i8mm)):
        assert estimate(device, marked).streamed_bytes_per_token == distinct[kernels[name]].streamed_bytes
        exact = replace(marked, graphs={"decoder": replace(marked.graph, accuracy_level=0)})
        assert estimate(device, exact).streamed_bytes_per_token == distinct["float32"].streamed_bytes


def test_text_names_every_device_and_says_that_it_estimates(report):
    devices = load_devices()
    text = body_text(estimates_section([estimate(d, report) for d in devices]))
    assert all(d.name in text for d in devices)
    assert "Estimates, not measurements" in text


def test_layers_at_8_bits_are_dequantised_on_a_board_without_a_kernel_unless_the_graph_has_int8_weights(report):
    board = load_device("raspberry-pi-4")
    report = replace(report, account=replace(report.account, code_bits=(4, 8)))
    assert any("dequantised for every token" in remark for remark in estimate(board, report).remarks)
    report = replace(report, account=replace(report.account, code_bits=()))
    assert not any("dequantised" in remark for remark in estimate(board, report).remarks)
