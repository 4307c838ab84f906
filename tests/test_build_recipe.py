"""The recipe on the whole road, with a tiny base: t-few, several prompts, demonstrations, own choices, a mixture, and
starting from an adapter.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_build import complaint, qia3, tree
from tiny_build import SAID, write_base, write_lines

from qia3 import cli
from qia3.bundle.opened import Bundle
from qia3.bundle.peft import open_peft
from qia3.runtime.adapters import AdapterBank

FILE = """
name = "recipe"
[base]
model = "base"
block_size = 16
calibration = "none"
[train]
preset = "t-few"
steps = 4
batch_size = 4
checkpoint_every = 2
compute = "float32"
validation = 0.4
[[task]]
name = "topics"
kind = "classify"
prompt = ["Topic of {text}?", "{text} Topic?"]
eval_prompt = "{text}: which?"
shots = 1
train = ["topics-a.jsonl", "topics-b.jsonl"]
test = "topics-test.jsonl"
[[task]]
name = "quiz"
kind = "classify"
train = "quiz.jsonl"
test = "quiz-test.jsonl"
training = { losses = ["length-normalised"] }
ranking = "sum"
[[task]]
name = "general"
kind = "classify"
mixture = ["topics", "quiz"]
choices = ["lights", "music"]
test = "general-test.jsonl"
[export]
target = "ort-exact"
context_length = 96
[parity]
prompts = 3
decode_steps = 1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the build file, and its bundle."""
    folder = tmp_path_factory.mktemp("recipe")
    write_base(folder / "base")
    topics = [{"text": text, "label": label} for label, texts in SAID.items() for text in texts]
    quiz = [
        {"text": f"more than {i}", "label": str(i + 1), "choices": [str(i), str(i + 1), "0"][: 2 + i % 2]}
        for i in range(1, 9)
    ]
    for name, rows in {
        "topics-a": topics[::3], "topics-b": topics[1::3], "topics-test": topics[2::3], "quiz": quiz[:6], "quiz-test": quiz[6:],
        "general-test": [{"text": "lights on", "label": "lights"}, {"text": "a", "label": "b", "choices": ["b", "c"]}],
    }.items():  # fmt: skip
        write_lines(folder / f"{name}.jsonl", rows)
    (folder / "qia3.toml").write_text(FILE)
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(folder / "qia3.toml"), "--output", str(folder / "out")])
    assert ended.value.code == 0
    return folder


def test_the_bundle_s_tasks_are_what_was_asked_for(place):
    manifest = json.loads((place / "out" / "manifest.json").read_text())
    topics, quiz, general = (manifest["tasks"][name] for name in ("topics", "quiz", "general"))
    assert [t["ranking"] for t in (topics, quiz, general)] == ["mean", "sum", "mean"]
    assert [t["choices"] for t in (topics, quiz, general)] == [sorted(SAID), None, ["lights", "music"]]
    shown = {
        f"u:{text}: which? {label}\n\n{{text}}: which?<|end|>a:" for label, texts in SAID.items() for text in texts
    }
    assert topics["prompt"].removeprefix("s:<|end|>") in shown
    assert quiz["prompt"].removeprefix("s:<|end|>") == "u:{text}<|end|>a:"
    assert (
        manifest["training"]["general"]["examples"]
        == manifest["training"]["topics"]["examples"] + manifest["training"]["quiz"]["examples"]
    )
    assert all(manifest["training"][name]["best_step"] in (2, 4) for name in ("topics", "quiz", "general"))
    assert manifest["config"]["task"][0]["train"] == ["topics-a.jsonl", "topics-b.jsonl"]
    assert str(place) not in json.dumps(manifest)


def test_questions_with_their_own_answers_are_scored_and_asked(place, capsys):
    code, out, _ = qia3(capsys, "eval", place / "out", place / "quiz-test.jsonl", "--adapter", "quiz", "--json")
    found = json.loads(out)
    assert (code, found["n"], found["kind"]) == (0, 2, "classify")
    assert "labels" not in found
    code, out, _ = qia3(
        capsys, "run", place / "out", "more than 3", "--adapter", "quiz", "--choice", "4", "--choice", "9", "--json"
    )
    assert (code, set(json.loads(out)["scores"])) == (0, {"4", "9"})
    assert "give them with each text" in complaint(capsys, "run", place / "out", "more than 3", "--adapter", "quiz")
    assert qia3(capsys, "eval", place / "out", place / "general-test.jsonl", "--adapter", "general")[0] == 0


def test_one_adapter_serves_another_task_s_prompt(place, capsys):
    code, out, _ = qia3(capsys, "run", place / "out", "lights on", "--adapter", "general", "--task", "topics", "--json")
    assert (code, set(json.loads(out)["scores"])) == (0, set(SAID))


@pytest.mark.parametrize("form", ["topics.onnx_adapter", "topics"])
def test_training_starts_from_an_adapter_in_either_form(place, tmp_path, capsys, monkeypatch, form):
    monkeypatch.setattr("qia3.build.exported", lambda *_: {})  # the graph's trial takes longer than the training
    start = place / "out" / "adapters" / form
    slow = (place / "qia3.toml").read_text().replace("steps = 4", "steps = 1\nlearning_rate = 1e-12")
    (place / "slow.toml").write_text(slow)
    assert qia3(capsys, "train", place / "slow.toml", "--output", tmp_path / "o", "--init-adapter", start)[0] == 0
    expected = AdapterBank(Bundle.open(place / "out")).vectors("topics")
    tensors = open_peft(tmp_path / "o.work" / "general" / "adapter").tensors
    for name, vector in expected.items():
        np.testing.assert_array_equal(tensors[f"base_model.model.{name}"].reshape(-1), vector.reshape(-1))
    before, ledger = tree(tmp_path), tmp_path / "o.work" / "runs.jsonl"
    told = len(ledger.read_text().splitlines())
    again = qia3(capsys, "train", place / "slow.toml", "--output", tmp_path / "o", "--init-adapter", start)
    assert again[2].count("already trained with the same plan") == 3
    # nothing is written but that all three are kept
    assert {n: d for n, d in tree(tmp_path).items() if n != "o.work/runs.jsonl"} == {
        n: d for n, d in before.items() if n != "o.work/runs.jsonl"
    }
    assert [json.loads(line)["event"] for line in ledger.read_text().splitlines()[told:]] == ["kept"] * 3
    other = qia3(capsys, "train", place / "slow.toml", "--output", tmp_path / "o")  # from ones: another plan
    assert "already trained" not in other[2]


def test_a_start_that_does_not_fit_is_refused(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("qia3.build.exported", lambda *_: {})  # the graph's trial, which is not looked at
    write_base(tmp_path / "base", seed=9)
    for file in place.glob("*.jsonl"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "qia3.toml").write_text(FILE)
    for form in ("topics.onnx_adapter", "topics"):
        start = place / "out" / "adapters" / form
        assert "another base" in complaint(
            capsys, "train", tmp_path / "qia3.toml", "--output", tmp_path / "o", "--init-adapter", start
        )
    line = complaint(
        capsys, "train", place / "qia3.toml", "--output", tmp_path / "o", "--init-adapter", tmp_path / "nowhere"
    )
    assert "there is no adapter file" in line
    assert not (tmp_path / "o.work").exists()


def test_a_start_that_is_no_adapter_is_told_before_anything_is_loaded(place, tmp_path, capsys, monkeypatch):
    for name in ("load", "read_base_text"):
        monkeypatch.setattr(f"qia3.build.{name}", None)  # calling it would be a defect
    (tmp_path / "text.onnx_adapter").write_text("no adapter")
    (tmp_path / "folder").mkdir()
    words = ["--output", tmp_path / "o", "--init-adapter"]
    for start, said in (
        ("nope", "there is no adapter file"),
        ("text.onnx_adapter", "cannot be read as an .onnx_adapter"),
        ("folder", "is not a PEFT checkpoint"),
    ):
        for verb in ("train", "build", "export"):
            assert said in complaint(capsys, verb, place / "qia3.toml", *words, tmp_path / start)
    own = '{ losses = ["length-normalised"], init_adapter = "nope" }'
    (place / "nope.toml").write_text(FILE.replace('{ losses = ["length-normalised"] }', own))
    assert f"there is no adapter file {place / 'nope'}" in complaint(capsys, "train", place / "nope.toml", *words[:2])


def test_one_label_alone_is_told_before_anything_is_loaded(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("qia3.build.read_base_text", None)
    for file in place.glob("*.jsonl"):
        (tmp_path / file.name).write_text(file.read_text())
    write_lines(tmp_path / "one.jsonl", [{"text": f"text {i}", "label": "lamp"} for i in range(9)])
    text = FILE.replace('["topics-a.jsonl", "topics-b.jsonl"]', '"one.jsonl"')
    (tmp_path / "qia3.toml").write_text(text)
    told = complaint(capsys, "train", tmp_path / "qia3.toml")
    assert f"task 'topics': every example has the same answer 'lamp' ({tmp_path / 'one.jsonl'})" in told
    (tmp_path / "qia3.toml").write_text(FILE.replace('["lights", "music"]', '["lights"]'))
    assert "choices must be two or more different" in complaint(capsys, "train", tmp_path / "qia3.toml")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "a", "label": "b", "choices": ["c", "d"]}], "line 1: label 'b' is not one of c, d"),
        ([{"text": "a", "label": "b"}], "line 1: 'choices' is missing: this task has none"),
    ],
)
def test_bad_choices_are_told_before_anything_is_loaded(place, capsys, rows, said):
    file = place / "quiz-test.jsonl"
    whole = file.read_text()
    try:
        write_lines(file, rows)
        assert said in complaint(capsys, "train", place / "qia3.toml", "--output", place / "bad")
    finally:
        file.write_text(whole)
