"""Several processes train what one does: the same batch, shared out; gradients averaged over gloo on CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_build import UNTRIED, qia3
from tiny_build import write_build

from qia3 import cli

ROOT = Path(__file__).parents[1]
# --multi_gpu is accelerate's way to ask for torch's launcher, and the only one that starts processes where there are
# CPUs alone
LAUNCH = [
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
]


def train(folder: Path, output: str, program: Sequence[str]) -> subprocess.CompletedProcess[str]:
    launched = [*LAUNCH, "--num_processes", "2", "--main_process_port", "0"]
    words = [sys.executable, *launched, *program, "train", str(folder / "qia3.toml"), "--output", str(folder / output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder, timeout=600)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    file = write_build(folder)
    text = file.read_text().replace(
        'compute = "float32"', 'compute = "float32"\nlosses = ["lm", "unlikelihood", "length-normalised"]'
    )
    file.write_text(text.replace("steps = 8", "steps = 6\nvalidation = 0.5"))
    return folder


def losses(folder: Path, task: str) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / task / "log.jsonl").read_text().splitlines()]


def test_two_processes_give_the_loss_of_one(place, capsys, monkeypatch):
    two = train(place, "two", ["-m", "qia3"])
    assert two.returncode == 0, two.stderr
    monkeypatch.setattr("qia3.build.exported", lambda *_: {})  # the graph's trial takes longer than the training
    code, out, err = qia3(capsys, "train", place / "qia3.toml", "--output", place / "one")
    assert code == 0, err
    for task in ("topics", "commands"):
        ours, theirs = (losses(place / f"{n}.work", task) for n in ("two", "one"))
        assert ours[:2] == pytest.approx(theirs[:2], rel=1e-6)  # before and after the first update
        assert ours == pytest.approx(
            theirs, rel=2e-4
        )  # sums in another order may round an offset to the other bfloat16
        records = [json.loads((place / f"{n}.work" / task / "record.json").read_text()) for n in ("one", "two")]
        assert records[0]["validation_loss"] == pytest.approx(records[1]["validation_loss"], rel=1e-4)
    told = [[line for line in said.splitlines() if line.startswith("trained vectors")] for said in (out, two.stdout)]
    assert told == [[f"trained vectors are in {place / name}.work"] for name in ("one", "two")]  # one of them speaks
    assert two.stderr.count("training topics") == 1
    assert "Warning" not in two.stderr
    (place / "untried.py").write_text(f"{UNTRIED}\nfrom qia3.cli import main\nmain()\n")
    again = train(place, "two", [str(place / "untried.py")])
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("already trained with the same plan") == 2


@pytest.mark.parametrize(
    ("verb", "count", "line"),
    [
        ("train", 3, "a batch of 4 cannot be split over 3 processes in 1 parts each; make batch_size a multiple of 3"),
        ("build", 2, "only `qia3 train` can run in several processes"),
    ],
)
def test_what_several_processes_cannot_do_is_told_before_anything_is_loaded(
    place, verb, count, line, monkeypatch, capsys
):
    monkeypatch.setenv("WORLD_SIZE", str(count))  # as launchers say it
    monkeypatch.setattr("qia3.build.load_base", None)
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, str(place / "qia3.toml"), "--output", str(place / "never")])
    assert ended.value.code == 2
    assert line in capsys.readouterr().err
