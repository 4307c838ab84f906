"""Device profiles: each figure has its source and a word on trust, and what is wrong with one is told in one line."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from qia3 import cli
from qia3.errors import ConfigError
from qia3.footprint.device import Device, Figure, parse_device
from qia3.footprint.devices import load_device, load_devices
from qia3.footprint.devices_page import device_text, devices_section
from qia3.footprint.here import probe
from qia3.printers.markdown import body_text
from qia3.targets import load_target

FOLDER = Path(__file__).parents[1] / "devices"
FILES = sorted(FOLDER.glob("*.toml"))
PROMISED = {
    *("raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-5-4gb", "raspberry-pi-5-16gb", "raspberry-pi-zero-2-w"),
    *("orange-pi-5", "radxa-rock-5b", "jetson-orin-nano", "pixel-8a", "pixel-9", "pixel-10", "galaxy-s24"),
    *("galaxy-s25", "iphone-15-pro", "iphone-16", "iphone-17", "ipad-8gb", "intel-n100", "intel-n150", "avx2-laptop"),
    *("avx512-laptop", "snapdragon-x", "apple-m4", "macbook-neo", "browser-tab", "browser-tab-ios"),
}
PLAIN = {"title", "family", "target", "notes"}
PRODUCT = re.compile(r"(\d[\d.]*e\d+) x ([\d.]+)(?: / ([\d.]+))?$")  # how an arithmetic is written: "2.019e9 x 4.61"
MINIMAL = """title = "My board"
family = "arm"
target = "ort-arm"
[memory_bytes]
value = 8_589_934_592
confidence = "reported"
source = "the label on the box"
[isa]
value = ["neon"]
confidence = "measured"
source = ["lscpu on my desk", "https://example.org"]
"""


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_each_figure_has_an_address_and_a_word_on_trust(file):
    """Read as plain TOML, so that a new key without a source cannot slip past the model."""
    for key, entry in tomllib.loads(file.read_text(encoding="utf-8")).items():
        if key in PLAIN:
            continue
        assert {"value", "confidence", "source"} <= set(entry) <= {"value", "confidence", "source", "how"}, key
        sources = [entry["source"]] if isinstance(entry["source"], str) else entry["source"]
        assert all(re.fullmatch(r"https://\S+\.\S+/\S*", source) for source in sources), key
        assert entry["confidence"] in ("specified", "reported") or entry["how"], key


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_an_arithmetic_that_is_written_out_is_right(file):
    for key, entry in tomllib.loads(file.read_text(encoding="utf-8")).items():
        written = PRODUCT.search(entry.get("how", "") if isinstance(entry, dict) else "")
        if written:
            left, right, below = (float(group or 1) for group in written.groups())
            assert entry["value"] == pytest.approx(left * right / below, rel=0.005), key


def test_the_devices_that_are_promised():
    assert {d.name for d in load_devices()} == {f.stem for f in FILES} == PROMISED


def test_a_device_is_built_for_a_target_that_suits_it():
    assert {(d.family, d.isa is not None and "dotprod" in d.isa.value, d.target) for d in load_devices()} == {
        ("arm", True, "ort-arm"),
        ("arm", False, "ort-arm-v8"),
        ("x64", False, "ort-cpu"),
        ("wasm", False, "browser"),
        ("wasm", False, "browser-wasm"),
    }


def test_one_application_never_gets_all_of_a_device():
    """But of a browser's tab, whose memory is one application's."""
    for device in load_devices():
        assert device.usable_bytes is not None
        assert device.family == "wasm" or device.usable_bytes.value < 0.97 * device.memory_bytes.value, device.name


def test_an_unknown_device_is_told_the_nearest_and_the_other_ways():
    with pytest.raises(ConfigError, match=r"did you mean 'raspberry-pi-5'.*'here'.*\./my\.toml"):
        load_device("rasberry-pi-5")
    with pytest.raises(ConfigError, match=r"known: .*browser-tab"):
        load_device("zzz")


def test_a_profile_of_ones_own_is_taken_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)
    for path in ("mine.toml", "./mine.toml", str(tmp_path / "mine.toml")):
        device = load_device(path)
        assert (device.name, device.memory_bytes.value) == ("mine", 2**33)
        assert device.isa.source == ("lscpu on my desk", "https://example.org")
    with pytest.raises(ConfigError, match=r"^the device profile: cannot read none\.toml: ") as told:
        load_device("./none.toml")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('title = "My board"\n', "", "'title' is missing"),
        ('family = "arm"', 'family = "riscv"', r"family \(line 2\): 'x64', 'arm' or 'wasm' is expected, not 'riscv'"),
        ('target = "ort-arm"', 'target = "arm"', r"target \(line 3\): there is no export target 'arm'; known: "),
        ("[isa]", "[memory_gb]\nvalue = 8\n[isa]", r"unknown key 'memory_gb' \(line 8\); did you mean 'memory_bytes'"),
        ("[isa]", "ram = 1\n[isa]", r"unknown key 'memory_bytes.ram' \(line 8\)"),
        ('source = "the label on the box"\n', "", "'memory_bytes.source' is missing in the table of line 4"),
        ('"the label on the box"', '"box"', "memory_bytes.*source must say where the figure was found"),
        ('"the label on the box"', "[]", "source.*a list of at least 1"),
        ('confidence = "reported"\n', "", "'memory_bytes.confidence' is missing"),
        ('"reported"', '"guessed"', "'measured', 'specified', 'derived' or 'reported' is expected, not 'guessed'"),
        ('"reported"', '"derived"', "memory_bytes.*needs `how`"),
        ("8_589_934_592", "8", r"memory_bytes.*: 8 is out of range; give it in bytes: 8 GB are 8_589_934_592"),
        ("8_589_934_592", "-1", r"memory_bytes.value \(line 5\): more than 0.* is expected, not -1"),
        ("8_589_934_592", "nan", "memory_bytes.value"),
        ("8_589_934_592", "true", "a number is expected, not true"),
        ("8_589_934_592", '"8 GB"', "a number is expected, not '8 GB'"),
        ('["neon"]', '"neon"', "isa.value.*a list is expected"),
        ("[isa]", "[isa", "is not valid TOML"),
        ('title = "My board"', 'title = "My board"\nname = "x"', "unknown key 'name'"),
    ],
)
def test_what_is_wrong_with_a_profile_is_one_line(before, after, said):
    assert before in MINIMAL
    with pytest.raises(ConfigError, match=said) as told:
        parse_device("d", MINIMAL.replace(before, after, 1))
    assert "d.toml" in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def more(key: str, value: object) -> str:
    return f'[{key}]\nvalue = {value}\nconfidence = "reported"\nsource = "a bird in a tree"\n'


@pytest.mark.parametrize(
    ("added", "said"),
    [
        (more("usable_bytes", 2**34), "usable_bytes is more than memory_bytes"),
        (more("entitled_bytes", 2**34), "entitled_bytes is more than memory_bytes"),
        (more("peak_bandwidth_bytes_per_second", 17.1), r"17.1 is out of range; give it in bytes per second"),
        (
            more("peak_bandwidth_bytes_per_second", 10**10) + more("copy_bandwidth_bytes_per_second", 2 * 10**10),
            "copy_bandwidth_bytes_per_second is more than peak_bandwidth_bytes_per_second",
        ),
        (more("decode_bandwidth_low_bytes_per_second", 10**10), "_low and _high must be given together"),
        (more("cores", 4.5), r"4.5 is not a number of cores"),
    ],
)
def test_figures_that_contradict_each_other_are_refused(added, said):
    with pytest.raises(ConfigError, match=said) as told:
        parse_device("d", MINIMAL + added, "./d.toml")
    assert str(told.value).startswith("the device profile ./d.toml: ")
    assert len(str(told.value).splitlines()) == 1


def test_a_device_is_frozen_and_goes_out_as_it_came_in():
    device = parse_device("d", MINIMAL + more("cores", 4))
    assert Device.model_config["frozen"]
    assert Device.model_validate_json(device.model_dump_json()) == device
    assert '"value":8589934592}' in device.model_dump_json()


@pytest.fixture(scope="module")
def here() -> Device:
    return probe()


def test_this_machine_is_probed(here):
    assert 2**26 < here.usable_bytes.value <= here.memory_bytes.value
    assert 10**8 < here.copy_bandwidth_bytes_per_second.value < 10**12
    assert 1 <= here.cores.value <= 4096
    assert here.family in ("x64", "arm")
    assert all(entry.source == ("measured here",) and entry.how for entry in here.sourced.values())


def test_what_is_shown_of_a_device_is_every_figure_with_source_and_trust(here):
    for device in (*load_devices(), here):
        text = device_text(device, load_target(device.target))
        assert text.startswith(f"{device.name}: {device.title}\n")
        for entry in device.sourced.values():
            value = f"{entry.value:,.0f}" if isinstance(entry, Figure) and entry.value > 1e7 else ""
            assert all(f"\n  {source}" in text for source in entry.source)
            assert f"  {entry.confidence}" in text
            assert entry.how in text
            assert value in text or "GB/s" in text
    text = device_text(load_device("pixel-9"), load_target("ort-arm"))
    assert "not known: peak memory bandwidth" in text
    assert "entitlement" not in text
    assert all(d.name in body_text(devices_section([here, *load_devices()])) for d in (here, *load_devices()))


@dataclass
class Ran:
    code: int
    out: str
    err: str


def run(*words: str) -> Ran:
    """`qia3 WORDS` as the command line runs it."""
    found = CliRunner().invoke(cli.qia3, list(words))
    return Ran(found.exit_code, found.stdout, str(found.exception or ""))


def test_the_command_lists_shows_and_narrows(tmp_path):
    (tmp_path / "mine.toml").write_text(MINIMAL)
    mine = str(tmp_path / "mine.toml")
    assert {d["name"] for d in json.loads(run("devices", "--json").out)} == PROMISED | {"here"}
    assert [d["name"] for d in json.loads(run("devices", "--device", mine, "--json").out)] == ["mine"]
    shown = run("devices", "show", "intel-n150", mine)
    assert shown.code == 0
    assert "peak memory bandwidth: 25.6 GB/s\n  derived: lshw: one DDR4 module" in shown.out
    assert "mine: My board" in shown.out
    assert [d["name"] for d in json.loads(run("devices", "show", "pixel-9", "--json").out)] == ["pixel-9"]


@pytest.mark.parametrize(
    ("words", "said"),
    [(("show",), "name a device"), (("a", "b"), "takes one bundle"), (("show", "zzz"), "unknown device 'zzz'")],
)
def test_what_the_command_cannot_do_is_one_line(words, said):
    assert said in run("devices", *words).err
