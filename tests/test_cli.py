"""The command line: quick, quiet about traceback, one line for each mistake."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import qia3.cli as cli
from qia3.cli import making
from qia3.cli.making import plan_of
from qia3.errors import BundleError, ConfigError, Interrupted, ParityError
from qia3.targets import load_target, target_names

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "onnxruntime", "numpy", "onnx", "pydantic", "rich")
GOOD = 'name = "n"\n[base]\nmodel = "m"\n[[task]]\nname = "t"\nkind = "generate"\ntrain = "a.jsonl"\ntest = "b.jsonl"\n'


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command line, in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def one_line(capsys, *arguments: str) -> str:
    """The one line on stderr of a command line that a user got wrong."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("qia3: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


@pytest.fixture
def build_file(tmp_path):
    file = tmp_path / "qia3.toml"
    file.write_text(GOOD)
    return file


def subprocess_of(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.mark.skipif("COVERAGE_PROCESS_CONFIG" in os.environ, reason="whose lines are counted is slower")
def test_help_takes_less_than_half_a_second():
    def seconds() -> float:
        """Of a processor: a busy machine takes longer by the clock."""
        before = sum(os.times()[2:4])
        assert subprocess_of("-m", "qia3", "--help").returncode == 0
        return sum(os.times()[2:4]) - before

    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"], ["run", "--help"], ["build", "nowhere.toml"]])
def test_nothing_heavy_is_imported_before_it_is_needed(arguments):
    heavy = HEAVY if "--help" in arguments else ("torch", "transformers", "onnxruntime")
    code = f"""
import sys
from qia3.cli import main
try:
    main({arguments!r})
except SystemExit:
    print("HEAVY", [m for m in {heavy!r} if m in sys.modules])
"""
    assert subprocess_of("-c", code).stdout.splitlines()[-1] == "HEAVY []"


def test_no_arguments_is_help(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    assert out.startswith("Usage: qia3")


def test_the_module_is_the_command():
    assert subprocess_of("-m", "qia3", "--version").stdout.startswith("qia3, version ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bild"], "No such command 'bild'"),
        (["build"], "Missing argument 'FILE'"),
        (["build", "x.toml", "--mode", "half"], "'half' is not one of"),
        (["build", "x.toml", "--steps", "0"], "--steps"),
        (["build", "x.toml", "--sead", "1"], "--sead"),
        (["adapter"], "See `qia3 adapter --help`"),
        (["eval", "b", "f.jsonl"], "--adapter"),
    ],
)
def test_a_wrong_command_line_is_one_line(capsys, arguments, said):
    assert said in one_line(capsys, *arguments)


@pytest.mark.parametrize("verb", ["build", "train", "export"])
def test_a_missing_build_file_is_one_line(capsys, verb):
    assert "nowhere.toml" in one_line(capsys, verb, "nowhere.toml")


@pytest.mark.parametrize("verb", ["build", "train", "export"])
def test_malformed_toml_is_one_line_that_names_the_line(capsys, build_file, verb):
    build_file.write_text(GOOD.replace('"m"', "m"))
    assert "line 3" in one_line(capsys, verb, str(build_file))


def test_an_unknown_key_is_one_line_with_the_nearest(capsys, build_file):
    build_file.write_text("sed = 1\n" + GOOD)
    assert "did you mean 'seed'?" in one_line(capsys, "build", str(build_file))


def test_several_mistakes_are_still_one_line(capsys, build_file):
    build_file.write_text("sed = 1\n" + GOOD.replace('"generate"', '"wrote"').replace('"t"', '"a b"'))
    line = one_line(capsys, "build", str(build_file))
    assert all(part in line for part in ("sed", "kind", "letters, digits"))


def test_an_unknown_target_is_one_line_with_the_nearest(capsys, build_file):
    assert "did you mean 'ort-cpu'?" in one_line(capsys, "build", str(build_file), "--target", "ort-cup")


def test_a_task_to_merge_without_merging_is_refused(capsys, build_file):
    assert "--mode merged" in one_line(capsys, "build", str(build_file), "--task", "t")
    assert "one of t" in one_line(capsys, "build", str(build_file), "--mode", "merged", "--task", "u")


@pytest.mark.parametrize(
    "line",
    ["run {} hello", "eval {} f.jsonl --adapter none", "bench {}", "report {}", "devices {}", "adapter info {}:a"],
)
@pytest.mark.parametrize("kind", ["missing", "empty", "torn"])
def test_a_folder_that_is_no_bundle_is_one_line(capsys, tmp_path, line, kind):
    folder = tmp_path / "place"
    if kind != "missing":
        folder.mkdir()
    if kind == "torn":
        (folder / "manifest.json").write_text('{"format": 1, ')
    assert str(folder) in one_line(capsys, *(word.replace("{}", str(folder)) for word in line.split()))


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ParityError("they differ\nby 3 at x"), 2, "qia3: they differ; by 3 at x\n"),
        (BundleError("not one"), 2, "qia3: not one\n"),
        (Interrupted("stopped at step 3 of 9"), 130, "qia3: stopped at step 3 of 9\n"),
        (KeyboardInterrupt(), 130, "qia3: stopped\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "qia3: the disk is full"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "gone"),
            2,
            "qia3: gone: No such file or directory\n",
        ),
        (OSError("no network"), 2, "qia3: no network\n"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, 'pip install "qia3[build]"'),
        (ModuleNotFoundError("No module named 'torch.x'", name="torch.x"), 2, 'pip install "qia3[build]"'),
    ],
)
def test_every_failure_has_its_line_and_its_code(capsys, monkeypatch, error, code, said):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(making, "plan_of", fail)
    got, out, err = run(capsys, "build", "x.toml")
    assert (got, out) == (code, "")
    assert said in err
    assert err.strip().count("\n") == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("words", [["targets"], ["targets", "--json"], ["build", "--help"]])
def test_a_result_that_cannot_be_told_is_one_line_about_standard_output(words):
    """Not about the disk that a build writes to, and not twice where Python buffers its output."""
    for buffers in ({}, {"PYTHONUNBUFFERED": "1"}):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | buffers
        with Path("/dev/full").open("w") as full:
            run = subprocess.run(
                [sys.executable, "-m", "qia3", *words], stdout=full, stderr=subprocess.PIPE, text=True, env=environment
            )
        assert run.returncode == 2
        assert run.stderr == "qia3: cannot write to standard output: No space left on device\n"


class Panic(BaseException):
    """As pyo3 makes of a panic in Rust: no Exception."""


@pytest.mark.parametrize(
    "fault", [ZeroDivisionError("\n a b\nc"), KeyError("x"), Panic("index out of range"), RecursionError()]
)
def test_a_fault_of_ours_is_one_line_and_its_traceback_is_kept(capsys, monkeypatch, fault):
    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(making, "plan_of", fail)
    code, out, err = run(capsys, "build", "x.toml")
    assert (code, out, err.count("\n")) == (1, "", 1)
    kept = Path(err.split("report it with ")[1].split(": ")[0])
    assert "Traceback" in kept.read_text()
    assert "in fail" in kept.read_text()
    assert type(fault).__name__ in err
    kept.unlink()


def test_too_little_memory_is_no_defect(capsys, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(making, "plan_of", fail)
    assert "not enough memory" in one_line(capsys, "build", "x.toml")


def test_the_traceback_is_there_when_asked_for(monkeypatch):
    monkeypatch.setenv("QIA3_TRACEBACK", "1")
    with pytest.raises(ConfigError):
        cli.main(["build", "nowhere.toml"])


def test_options_reach_the_plan(build_file):
    plan = plan_of(build_file, Path("there"), Path("before.work"), 3, 5, None, "merged", "t", "ort-exact")
    assert (plan.output_folder, plan.work_folder, plan.seed, plan.train.steps) == (
        Path("there"),
        Path("before.work"),
        3,
        5,
    )
    assert (plan.export.mode, plan.export.merge_task, plan.export.target) == ("merged", "t", "ort-exact")


def test_targets_as_text_and_as_json_say_the_same(capsys):
    _, text, _ = run(capsys, "targets")
    _, out, _ = run(capsys, "targets", "--json")
    found = json.loads(out)
    assert (
        [t["name"] for t in found]
        == target_names()
        == ["browser", "browser-wasm", "nf4-exact", "ort-arm", "ort-arm-v8", "ort-cpu", "ort-exact"]
    )
    for target in found:
        assert target["description"] in text
        assert target["note"] in text
    assert "under QEMU 10.0" in text


def test_levels_of_the_targets():
    assert {name: load_target(name).accuracy_level for name in target_names()} == {
        "ort-cpu": 4,
        "ort-exact": 0,
        "ort-arm": 4,
        "ort-arm-v8": 4,
        "browser": 4,
        "browser-wasm": 4,
        "nf4-exact": 0,
    }
    assert all("QEMU" in place for place in load_target("ort-arm").tested_on)  # no ARM machine yet


def test_targets_say_where_layers_at_eight_bits_are_slow():
    slow = {name: load_target(name).slow_at_eight_bits() for name in target_names()}
    assert {name for name, why in slow.items() if why} == {"ort-exact", "nf4-exact", "ort-arm-v8"}
    assert "have no kernel for layers at 8 bits" in str(slow["ort-arm-v8"])


def test_devices_are_listed(capsys):
    code, out, _ = run(capsys, "devices", "--json")
    assert code == 0
    assert len(json.loads(out)) >= 1
