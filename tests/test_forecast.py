"""What torch counted is kept: the same answer a second time, without torch; and counted anew where anything changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_printers import LLAMA

from qia3 import counting, forecast
from qia3.errors import BaseModelError

FUSED = {"model_type": "gpt2", "vocab_size": 480, "n_embd": 96, "n_layer": 2, "n_head": 6, "n_positions": 64}


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tiny-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def refuse(reference: str) -> counting.Counted:
    raise BaseModelError("counted again")


@pytest.mark.parametrize("config", [LLAMA, FUSED], ids=["llama", "gpt2"])
def test_the_second_answer_is_the_first(model, monkeypatch, config):
    (model / "config.json").write_text(json.dumps(config))
    first = forecast.counted(str(model))
    assert first[0] == counting.count(str(model)).shapes
    monkeypatch.setattr(counting, "count", refuse)
    assert forecast.counted(str(model)) == first
    assert forecast.counted(str(model / "config.json"))[0].matrices == first[0].matrices
    assert 32 in [one.context for one in forecast.forecast(str(model), [32], 2, []).needs]


def test_what_changed_is_counted_anew(model, monkeypatch):
    forecast.counted(str(model))
    monkeypatch.setattr(counting, "count", refuse)
    (kept,) = (model.parent / "cache" / "forecasts").iterdir()
    for change in (
        lambda: (model / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": 4})),
        lambda: (model / "model.safetensors").write_bytes(b"0" * 8),
        lambda: kept.write_text(kept.read_text()[:-9]),
    ):
        change()
        with pytest.raises(BaseModelError, match="counted again"):
            forecast.counted(str(model))
        (model / "config.json").write_text(json.dumps(LLAMA))
        (model / "model.safetensors").unlink(missing_ok=True)


def test_a_second_report_needs_no_torch(model):
    forecast.counted(str(model))
    code = "import sys; sys.modules.update(torch=None, transformers=None); from qia3.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "report", str(model)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "tiny-llama" in run.stdout
