"""Device profiles have a source for each figure, and estimates are ranges that follow the roofline."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from test_footprint_account import write_bundle

from qia3.errors import ConfigError
from qia3.footprint.devices import Device, estimate, load_device, load_devices, parse_device
from qia3.footprint.kernels import KernelBytes
from qia3.footprint.render_devices import devices_text, estimates_text, speed
from qia3.footprint.report import Report, build_report

FOLDER = Path(__file__).parents[1] / "devices"
FILES = sorted(FOLDER.glob("*.toml"))
EXPECTED = {
    *("raspberry-pi-4", "raspberry-pi-5", "orange-pi-5", "jetson-orin-nano", "pixel-8a"),
    *("galaxy-s24", "iphone-15-pro", "intel-n100", "avx2-laptop", "browser-tab"),
}
UNMEASURED = {"title", "family", "notes"}
MINIMAL = 'title = "t"\nfamily = "arm"\nram_bytes = {value = 1, source = "a source"}\nisa = {value = ["neon"], source = "a source"}\n'


@pytest.fixture
def report(tmp_path) -> Report:
    return build_report(tmp_path, write_bundle(tmp_path))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_each_figure_has_a_source(file):
    """Read as plain TOML, so that a new key without a source cannot slip past the model."""
    for key, entry in tomllib.loads(file.read_text(encoding="utf-8")).items():
        if key not in UNMEASURED:
            assert set(entry) == {"value", "source"}, key
            assert len(entry["source"]) >= 8, key


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_figures_agree_with_each_other(file):
    device = load_device(file.stem)
    assert device.usable_ram_bytes is None or device.usable_ram_bytes.value < device.ram_bytes.value
    peak = device.bandwidth_peak_bytes_per_second
    for measured in ("copy", "fill", "sustained"):
        figure = getattr(device, f"bandwidth_measured_{measured}_bytes_per_second")
        assert figure is None or (peak is not None and figure.value < peak.value)
    low, high = device.efficiency_low, device.efficiency_high
    assert (low is None) is (high is None)
    assert low is None or low.value <= high.value < 1


def test_the_devices_that_are_promised():
    assert {d.name for d in load_devices()} >= EXPECTED
    assert {f.stem for f in FILES} == {d.name for d in load_devices()}


def test_an_unknown_device_is_told_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'raspberry-pi-5'"):
        load_device("rasberry-pi-5")
    with pytest.raises(ConfigError, match=r"there are .*browser-tab"):
        load_device("zzz")


@pytest.mark.parametrize(
    "text",
    [MINIMAL + "ram = 1\n", MINIMAL.replace(', source = "a source"', "", 1), MINIMAL + "[", MINIMAL.replace("1", "-1")],
)
def test_a_malformed_profile_is_refused(text):
    assert parse_device("d", MINIMAL).ram_bytes.value == 1
    with pytest.raises(ConfigError, match=r"d\.toml is malformed"):
        parse_device("d", text)


def test_the_estimate_is_the_roofline(report):
    """raspberry-pi-5: 17.1 GB/s, ARM kernel at 4 + 32/b bits, 4 microseconds a node; written out."""
    device = load_device("raspberry-pi-5")
    report = replace(
        report,
        memory=replace(
            report.memory, kernels={**report.memory.kernels, "float32": KernelBytes(10**9, 10**9)}, nodes=1000
        ),
    )
    found = estimate(device, report)
    at_low, at_high = (1 / (1e9 / (share * 17.1e9) + 1000 * 4e-6) for share in (0.55, 0.61))
    assert found.kind == "estimate"
    assert found.decode_tokens_per_second_low == pytest.approx(0.6 * at_low, rel=0.05)
    assert found.decode_tokens_per_second_high == pytest.approx(1.4 * at_high, rel=0.05)
    assert found.decode_tokens_per_second_ceiling == pytest.approx(1 / (1 / 17.1 + 0.004), rel=0.05)


def test_published_speeds_lie_in_their_range(report):
    """llama3.2:3b Q4_K_M, 2.02 GB: 1.60 tokens/s on a Pi 400, 4.61 to 5.55 on a Pi 5, 9.06 on an N150 (geerlingguy
    ai-benchmarks).
    """
    streamed = KernelBytes(2_020_000_000, 2_020_000_000)
    memory = replace(report.memory, kernels=dict.fromkeys(("float32", "x64-int8"), streamed), nodes=700)
    for name, speeds in {"raspberry-pi-4": (1.60,), "raspberry-pi-5": (4.61, 5.55), "intel-n100": (9.06,)}.items():
        found = estimate(load_device(name), replace(report, memory=memory))
        assert all(found.decode_tokens_per_second_low < s < found.decode_tokens_per_second_high for s in speeds)


def test_what_is_too_large_does_not_fit(report):
    device = load_device("browser-tab")
    assert estimate(device, report).fits
    large = replace(report, memory=replace(report.memory, mapped_bytes=2 * 10**9))
    assert not estimate(device, large).fits
    unknown = device.model_copy(update={"usable_ram_bytes": None})
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
    assert speed(found).startswith("below ")
    assert speed(estimate(load_device("browser-tab"), report)) == "unknown"


def test_arm_runs_kleidiai_on_a_symmetric_grid_only(tmp_path):
    read = {}
    for symmetric in (False, True):
        folder = tmp_path / str(symmetric)
        folder.mkdir()
        report = build_report(folder, write_bundle(folder, symmetric=symmetric))
        read[symmetric] = {
            n: estimate(load_device(n), report).streamed_bytes_per_token for n in ("raspberry-pi-4", "raspberry-pi-5")
        }
    assert read[False]["raspberry-pi-5"] == read[False]["raspberry-pi-4"] == read[True]["raspberry-pi-4"]
    assert read[True]["raspberry-pi-5"] < read[True]["raspberry-pi-4"]


def test_text_names_every_device_and_says_that_it_estimates(report):
    devices = load_devices()
    text, estimated = devices_text(devices), estimates_text([estimate(d, report) for d in devices])
    assert all(d.name in text and d.name in estimated for d in devices)
    assert "Estimates, not measurements" in estimated


def test_a_device_is_frozen():
    assert Device.model_config["frozen"]
