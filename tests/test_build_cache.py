"""`cache = "int8"` on the whole road, with a tiny base: built, run, batched, reported, and adapters held to its range."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_build import complaint, qia3
from tiny_build import write_build

from qia3 import cli
from qia3.bundle.cache_range import RANGE
from qia3.bundle.opened import Bundle
from qia3.footprint.report import build_report
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.engine import Engine
from qia3.runtime.slots import Slots


@pytest.fixture(scope="module")
def place(tmp_path_factory, kept_graphs) -> Path:
    """Bundles `plain` and `int8` of one training."""
    folder = tmp_path_factory.mktemp("cache")
    file = write_build(folder)
    file.write_text(file.read_text().replace("[parity]", "[parity]\nmax_kl = 0.05"))
    for words in (["build", "--output", "plain"], ["export", "--output", "int8", "--cache", "int8"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(
                [words[0], str(file), "--output", str(folder / words[2]), "--work", str(folder / "work"), *words[3:]]
            )
        assert ended.value.code == 0
    return folder


def test_a_report_and_a_manifest_say_so(place):
    plain, small = (json.loads((place / n / "manifest.json").read_text()) for n in ("plain", "int8"))
    assert "cache" not in plain["architecture"]
    assert small["architecture"]["cache"] == "int8"
    for name, both in small["parity"].items():
        assert "float_cache" not in plain["parity"][name]
        assert both["float_cache"] == plain["parity"][name]["shipped"]
        assert both["exact"] == plain["parity"][name]["exact"]
        assert both["shipped"]["max_difference"] > both["float_cache"]["max_difference"]
    reports = [build_report(place / n, Bundle.open(place / n).manifest) for n in ("plain", "int8")]
    assert reports[0].memory.kv_cache_bytes == 4 * reports[1].memory.kv_cache_bytes
    text = (place / "int8" / "report.md").read_text(encoding="utf-8")
    assert "float32 cache" in text
    assert "(computed, int8)" in text


def test_rows_beside_others_are_each_as_alone(place):
    """Grown, copied, shared and joined caches hold codes, and what is computed of them is what one row alone gives."""
    bundle = Bundle.open(place / "int8")
    engine, bank = Engine(bundle, threads=1), AdapterBank(bundle)
    prompts = [engine.encode(text) for text in ("turn the lights off", "lock up", "play a song now")]
    worn = [bank.vectors(name) for name in ("topics", None, "commands")]
    slots, alone = Slots(engine, 3), []
    for prompt, vectors in zip(prompts, worn, strict=True):
        logits, cache = engine.prefill([prompt], vectors, room=0)
        assert {a.dtype for a in cache.buffers.arrays.values()} == {np.dtype(np.int8)}
        slots.join(cache, vectors)
        rows = [logits]
        for token in (5, 6, 7, 8):
            logits, cache = engine.step([token], cache, vectors)
            rows.append(logits)
        alone.append(np.concatenate(rows))
    assert slots.caches["past_key_values.0.key"].dtype == np.int8
    for i, token in enumerate((5, 6, 7, 8)):
        together = slots.step([token] * 3)
        for row in range(3):
            np.testing.assert_allclose(together[row], alone[row][i + 1], atol=1e-4 * np.abs(alone[row]).max())


def test_it_answers_as_the_float_cache_does(place, capsys):
    for text, adapter in (("lock up", "topics"), ("lights on", "commands")):
        answers = [qia3(capsys, "run", place / n, text, "--adapter", adapter)[:2] for n in ("plain", "int8")]
        assert answers[0] == answers[1]


def test_an_adapter_that_reaches_further_is_refused(place, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    shutil.copytree(place / "int8", bundle)
    limits = load_file(bundle / RANGE)
    assert limits
    assert all((most >= 1).all() for most in limits.values())
    assert not any("up_proj" in name for name in limits)  # the feed-forward's is in no cache
    assert qia3(capsys, "adapter", "export", bundle, "topics", tmp_path / "peft")[0] == 0
    assert qia3(capsys, "adapter", "import", bundle, tmp_path / "peft", "--name", "again")[0] == 0
    file = tmp_path / "peft" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if "k_proj" in n)
    save_file(tensors | {name: tensors[name] * 3}, file)
    told = complaint(capsys, "adapter", "import", bundle, tmp_path / "peft", "--name", "louder")
    assert "times as large as the int8 cache" in told
    assert "k_proj" in told
    assert qia3(capsys, "adapter", "import", place / "plain", tmp_path / "peft", "--name", "louder")[0] == 0


@pytest.mark.parametrize(("changes", "told"), [({"target": "browser"}, "browsers have no kernel for it")])
def test_where_there_is_none_it_is_told_before_anything_is_loaded(place, capsys, monkeypatch, changes, told):
    monkeypatch.setattr("qia3.build.load_base", None)
    words = [word for name, value in changes.items() for word in (f"--{name}", value)]
    assert told in complaint(capsys, "build", place / "qia3.toml", "--output", place / "x", "--cache", "int8", *words)
