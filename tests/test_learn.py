"""`qia3 learn`: one step on a device is one step of `qia3 train`, and what comes of it is an adapter like any other."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_build import complaint, qia3
from tiny_build import write_build
from tiny_trees import forest
from transformers import get_linear_schedule_with_warmup

from qia3 import cli
from qia3.batching.log import read_log
from qia3.bundle.adapter import read_adapter
from qia3.bundle.cache_range import RANGE
from qia3.bundle.opened import Bundle
from qia3.errors import AdapterError, Interrupted
from qia3.learn import learn as module
from qia3.learn.gradients import Gradients
from qia3.learn.learn import learn, work_folder
from qia3.learn.lesson import Lesson, kind_of_file
from qia3.learn.optimiser import AdamW, bfloat16, rate_at
from qia3.learn.places import Places
from qia3.recipe import T_FEW, Train
from qia3.runtime.adapters import AdapterBank

ASKED = {"steps": 8, "batch_size": 4, "learning_rate": 3e-2, "warmup_steps": 2, "checkpoint_every": 2}
QUESTION = "Topic of {text}?"


@pytest.fixture(scope="module")
def place(tmp_path_factory, kept_graphs) -> Path:
    """A build file's folder with the bundles `b` and `int8`, which learn, and `work`, where `qia3 train` left its vectors."""
    folder = tmp_path_factory.mktemp("learn")
    file = write_build(folder)
    text = file.read_text().replace("[parity]", "trainable = true\n[parity]\nmax_kl = 0.05")
    file.write_text(text)
    for verb, name, *more in (("build", "b"), ("export", "int8", "--cache", "int8")):
        with pytest.raises(SystemExit) as ended:
            cli.main([verb, str(file), "--output", str(folder / name), "--work", str(folder / "work"), *more])
        assert ended.value.code == 0
    return folder


@pytest.fixture
def bundle(place, tmp_path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(place / "b", tmp_path / "b"))


def lesson(place: Path, name: str = "mine", **changes) -> Lesson:
    settings = Train(**ASKED | changes.pop("settings", {}))
    return Lesson(name, place / "topics.jsonl", prompt=QUESTION, settings=settings, **changes)


def vectors(bundle: Path, name: str) -> dict[str, np.ndarray]:
    return read_adapter(bundle / "adapters" / f"{name}.onnx_adapter").vectors


@pytest.mark.parametrize("task", ["topics", "commands"])
def test_law_steps_on_a_device_are_those_of_training_at_float32(place, bundle, task):
    examples = place / f"{task}.jsonl"
    question = QUESTION if task == "topics" else "Do: {text}"
    asked = Lesson("mine", examples, prompt=question, settings=Train(**ASKED))
    learn(bundle, asked)
    ours, theirs = (
        read_log(f) for f in (work_folder(bundle, "mine") / "log.jsonl", place / "work" / task / "log.jsonl")
    )
    assert len(ours) == len(theirs) == 8
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for part in one.keys() & set(T_FEW):
            assert one[part] == pytest.approx(other[part], rel=2e-3, abs=1e-6)
        assert one["learning_rate"] == pytest.approx(other["learning_rate"], abs=1e-12)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-5)
    mine, trained = vectors(bundle, "mine"), vectors(bundle, task)
    moved = max(np.abs(v - 1).max() for v in trained.values())
    assert moved > 0.05
    for name, vector in trained.items():  # a bfloat16's step is 1/256 of an offset at most
        np.testing.assert_allclose(mine[name], vector, atol=0.02 * moved)


def test_law_parts_of_a_step_add_up(place):
    bundle = Bundle.open(place / "b")
    places = Places(bundle.manifest.sites, {})
    worn = {
        n: np.random.default_rng(0).uniform(0.5, 1.5, v.size).astype(np.float32)
        for n, v in places.vectors(places.offsets(None)).items()
    }
    trees = forest(1, examples=7, begin=2)
    trees = [
        type(t)(tuple(i % 40 for i in t.prompt), tuple(tuple(i % 40 for i in a) for a in t.answers), t.right)
        for t in trees
    ]
    whole, parts = (Gradients(bundle, T_FEW, 64, slots=slots, threads=1) for slots in (10**6, 1))
    assert len(list(whole._parts(trees))) == 1
    assert len(list(parts._parts(trees))) == 7
    (loss, pulls), (sums, summed) = whole.step(trees, worn), parts.step(trees, worn)
    np.testing.assert_allclose(sums, loss, rtol=1e-5)
    for name, pull in pulls.items():
        np.testing.assert_allclose(summed[name], pull, atol=1e-5 * np.abs(pull).max())


def test_adamw_is_torchs():
    """With the norm cut and the rate's line, over 30 steps of random gradients, some of them large."""
    random = np.random.default_rng(0)
    start = {n: random.normal(size=size).astype(np.float32) for n, size in (("a", 7), ("b", 3))}
    theirs = [torch.nn.Parameter(torch.from_numpy(v.copy())) for v in start.values()]
    adam = torch.optim.AdamW(theirs, lr=0.02, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(adam, 5, 30)
    ours = AdamW.of(start)
    for step in range(30):
        pulls = {
            n: (random.normal(size=v.size) * 10.0 ** random.integers(-4, 2)).astype(np.float32)
            for n, v in start.items()
        }
        assert rate_at(step, 30, 5, 0.02) == pytest.approx(adam.param_groups[0]["lr"], abs=1e-15)
        ours.update(pulls, rate_at(step, 30, 5, 0.02))
        for parameter, pull in zip(theirs, pulls.values(), strict=True):
            parameter.grad = torch.from_numpy(pull.copy())
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        adam.step()
        schedule.step()
    for mine, other in zip(ours.offsets.values(), theirs, strict=True):
        np.testing.assert_allclose(mine, other.detach().numpy(), rtol=1e-4, atol=1e-7)


def test_bfloat16_is_torchs():
    some = np.random.default_rng(0).normal(size=4096).astype(np.float32) * np.float32(0.01)
    some = np.concatenate([some, np.array([0, -0.0, 1.00390625, 1.01171875, 3e-39], np.float32)])  # ties, both ways
    np.testing.assert_array_equal(bfloat16(some), torch.from_numpy(some).bfloat16().float().numpy())


def test_what_was_stopped_goes_on_to_the_same_vectors(place, bundle, tmp_path, monkeypatch):
    other = Path(shutil.copytree(bundle, tmp_path / "whole"))
    learn(other, lesson(place))
    counting = module.counting

    def stopping(*given):
        manager = counting(*given)
        tell = manager.__enter__()
        real = manager.__exit__

        class Hooked:
            def __enter__(self):
                return lambda step, note: (os.kill(os.getpid(), signal.SIGINT) if step == 3 else None, tell(step, note))

            def __exit__(self, *error):
                return real(*error)

        return Hooked()

    before = (bundle / "manifest.json").read_bytes()
    monkeypatch.setattr(module, "counting", stopping)
    with pytest.raises(Interrupted, match="stopped at step 3 of 8; run the same command to go on"):
        learn(bundle, lesson(place))
    assert (bundle / "manifest.json").read_bytes() == before
    monkeypatch.setattr(module, "counting", counting)
    done = learn(bundle, lesson(place))
    assert done.record.steps == 8
    for name, vector in vectors(other, "mine").items():
        np.testing.assert_array_equal(vectors(bundle, "mine")[name], vector)
    assert [e["step"] for e in read_log(work_folder(bundle, "mine") / "log.jsonl")] == list(range(1, 9))


def test_a_changed_plan_begins_anew(place, bundle, capsys):
    folder = work_folder(bundle, "mine")
    folder.mkdir(parents=True)
    learn(bundle, lesson(place))
    module.take_out(bundle, "mine")
    learn(bundle, lesson(place, settings={"steps": 3}))
    assert "was for another plan (training.steps was 8, is 3): begun anew" in capsys.readouterr().err
    assert len(read_log(folder / "log.jsonl")) == 3


def test_the_best_state_of_those_that_were_validated_is_kept(place, bundle):
    settings = {"validation": place / "topics-test.jsonl", "learning_rate": 5.0, "steps": 20, "patience": 2}
    done = learn(bundle, lesson(place, settings=settings))
    assert done.record.best_step is not None
    assert done.record.best_step < done.record.steps < 20  # such a rate makes it worse, and patience ends it
    assert done.record.validation_loss < 20


def test_it_answers_like_any_adapter_and_is_forgotten_without_a_trace(place, bundle, capsys):
    listed = json.loads((bundle / "manifest.json").read_text())["files"]
    before = {name: file for name, file in listed.items() if "report" not in name}
    command = ["learn", bundle, place / "topics.jsonl", "--name", "mine", "--prompt", QUESTION, "--steps", "8"]
    code, out, _ = qia3(capsys, *command, "--test", place / "topics-test.jsonl", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["score"]["n"] == 3
    assert told["training"]["compute"] == "float32"
    assert Bundle.open(bundle).manifest.training["mine"].steps == 8
    assert qia3(capsys, "run", bundle, "lock up", "--adapter", "mine")[1].strip() in ("lights", "lock", "music")
    assert "mine" in qia3(capsys, "report", bundle)[1]
    assert qia3(capsys, "adapter", "export", bundle, "mine", bundle.parent / "out")[0] == 0
    texts = [line["text"] for line in map(json.loads, (place / "topics.jsonl").read_text().splitlines())]
    kept = b"".join(f.read_bytes() for f in work_folder(bundle, "mine").rglob("*") if f.is_file())
    assert not [text for text in texts if text.encode() in kept]
    code, out, _ = qia3(capsys, "learn", bundle, "--forget", "mine")
    assert (code, out.strip()) == (0, f"mine is gone from {bundle}")
    after = json.loads((bundle / "manifest.json").read_text())
    assert {name: file for name, file in after["files"].items() if "report" not in name} == before
    assert "mine" not in json.dumps(after)
    assert not list(bundle.parent.glob("b.learn*"))
    assert "nothing called 'mine' was learned" in complaint(capsys, "learn", bundle, "--forget", "mine")


def test_it_goes_on_from_an_adapter_of_the_bundle(place, bundle):
    bank = AdapterBank(Bundle.open(bundle))
    start = {name: v.reshape(-1) for name, v in bank.vectors("topics").items()}
    asked = Lesson("more", place / "topics.jsonl", after="topics", settings=Train(**ASKED | {"learning_rate": 1e-9}))
    learn(bundle, asked)
    opened = Bundle.open(bundle)
    assert opened.tasks["more"] == type(opened.tasks["topics"])(**{**vars(opened.tasks["topics"]), "name": "more"})
    for name, vector in vectors(bundle, "more").items():
        np.testing.assert_allclose(vector, start[name], rtol=1 / 256)


def test_answers_that_no_example_has_can_be_named(place, bundle):
    learn(bundle, lesson(place, choices=("lights", "music", "lock", "weather"), settings={"steps": 2}))
    assert Bundle.open(bundle).tasks["mine"].choices == ("lights", "music", "lock", "weather")


def test_a_test_file_is_read_before_long_work(place, bundle, capsys, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "rain", "label": "weather"}\n')
    words = ("learn", bundle, place / "topics.jsonl", "--name", "x", "--test", other)
    assert "label 'weather' is not one of lights, lock, music" in complaint(capsys, *words)
    assert not list(bundle.parent.glob("b.learn*"))


def test_an_int8_cache_is_not_outgrown(place, tmp_path):
    bundle = Path(shutil.copytree(place / "int8", tmp_path / "int8"))
    fast = {"learning_rate": 2.0, "steps": 12}
    learn(bundle, lesson(place, settings=fast))  # check_range at its end would refuse it
    from safetensors.numpy import load_file

    limits, found = load_file(bundle / RANGE), vectors(bundle, "mine")
    assert max(np.abs(found[name]).max() / limit.max() for name, limit in limits.items()) > 0.9
    for name, limit in limits.items():
        assert (np.abs(found[name]) <= 1.01 * limit).all()
    other = Path(shutil.copytree(place / "b", tmp_path / "b"))
    learn(other, lesson(place, settings=fast))
    assert max((np.abs(vectors(other, "mine")[name]) / limit).max() for name, limit in limits.items()) > 1.5


def test_no_torch_is_loaded(place, bundle):
    code = (
        "import sys; from pathlib import Path; from qia3.learn.learn import learn; from qia3.learn.lesson import Lesson\n"
        "from qia3.recipe import Train\n"
        f"learn(Path({str(bundle)!r}), Lesson('mine', Path({str(place / 'topics.jsonl')!r}), settings=Train(steps=2)))\n"
        "print([m for m in ('torch', 'transformers', 'onnx', 'peft', 'accelerate') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "[]", ran.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--name", "topics"], "already has an adapter called 'topics'"),
        (["--name", "x", "--prompt", "Which?"], "a prompt must contain {text} exactly once"),
        (["--name", "x", "--after", "nobody"], "has no adapter 'nobody' to go on from; it has: commands, topics"),
        (["--name", "x", "--after", "commands"], "'target' is missing"),
        (["--name", "x", "--validation", "1.5"], "--validation: expected a fraction between 0 and 1"),
        (["--name", "x", "--learning-rate", "-1"], "--learning-rate: "),
        (["--name", "con"], "reserved on Windows"),
        (["--name", "x", "--test", "gone.jsonl"], "gone.jsonl"),
        (["--name", "x", "--choice", "lights"], "choices are two or more, all different"),
        (["--name", "x", "--choice", "lights", "--choice", "lock"], "label 'music' is not one of lights, lock"),
        ([], "what to learn: a FILE of examples, and --name"),
        (["--forget", "x"], "no FILE and no --name beside it"),
    ],
)
def test_what_cannot_be_learned_is_told_in_one_line(place, bundle, capsys, words, told):
    assert told in complaint(capsys, "learn", bundle, place / "topics.jsonl", *words)
    assert not list(bundle.parent.glob("b.learn*"))


def test_a_file_without_answers_and_a_bundle_without_the_graph_are_refused(place, bundle, capsys, tmp_path):
    named = tmp_path / "named.jsonl"
    named.write_text('{"text": "label", "target": "\\"labels\\""}\n')
    assert kind_of_file(named) == "generate"  # by its keys, whatever its words
    empty = tmp_path / "bad.jsonl"
    empty.write_text('{"text": "a", "colour": "b"}\n')
    assert "line 1: an example to learn has 'text' and a 'label'" in complaint(
        capsys, "learn", bundle, empty, "--name", "x"
    )
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["graphs"]["train"], manifest["files"]["onnx/train_q4.onnx"]
    (bundle / "onnx" / "train_q4.onnx").unlink()
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    told = complaint(capsys, "learn", bundle, place / "topics.jsonl", "--name", "x")
    assert "has no graph that learns: build it with trainable = true in [export]" in told
    with pytest.raises(AdapterError, match="has no adapter 'nobody'"):
        module.take_out(bundle, "nobody")
