"""Python in a model's folder never runs, whatever stands on standard input; one line names the file that asks for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_build import write_build

from qia3.base import load
from qia3.base.load import Asked, load_base

CODE = """
from pathlib import Path
Path(__file__).with_name("RAN").touch()
Path({place!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig): model_type = "x9"
class OwnModel(LlamaForCausalLM): config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast): pass
"""
CONFIG = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
TOKENIZER = {"AutoTokenizer": [None, "own.OwnTokenizer"]}


def with_code(folder: Path) -> Path:
    """A build whose base holds own.py; returns the file that it would write."""
    write_build(folder, steps=1)
    (folder / "base/own.py").write_text(CODE.format(place=str(folder / "ran")))
    return folder / "ran"


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"model_type": "x9", "auto_map": CONFIG}),
        ("tokenizer_config.json", {"tokenizer_class": "OwnTokenizer", "auto_map": TOKENIZER}),
    ],
)
def test_a_models_own_python_is_not_run_and_nobody_is_asked(file, changes, tmp_path):
    ran = with_code(tmp_path)
    edit(tmp_path / "base" / file, **changes)
    found = subprocess.run(
        [sys.executable, "-m", "qia3", "train", str(tmp_path / "qia3.toml")],
        input="y\n" * 9,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "HF_MODULES_CACHE": str(tmp_path / "modules"),
            "PYTHONPATH": str(Path(load.__file__).parents[2]),
        },
    )
    assert found.returncode == 2, found.stderr
    line = found.stderr.strip().splitlines()[-1]
    assert file in line
    assert "auto_map" in line
    assert "never run" in line
    assert "[y/N]" not in found.stdout + found.stderr
    assert not ran.exists()
    assert not list(tmp_path.rglob("RAN"))


def test_a_class_that_transformers_has_is_its_own_whatever_the_folder_brings(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", None)  # calling it would fail
    ran = with_code(tmp_path)
    wanted = load_base(Asked(str(tmp_path / "base"), block_size=16)).fingerprint
    edit(tmp_path / "base/config.json", auto_map=CONFIG)
    edit(tmp_path / "base/generation_config.json", auto_map=CONFIG)
    assert load_base(Asked(str(tmp_path / "base"), block_size=16)).fingerprint == wanted
    assert load_base(Asked(str(tmp_path / "base"), block_size=16, calibration="own")).fingerprint
    assert not ran.exists()
