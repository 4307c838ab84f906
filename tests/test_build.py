"""The whole road, crossed with a tiny base: build, use, merge, import, stop and go on, and every mistake that a user
can make on it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from predicted import hold_against
from tiny_build import FILE, SAID, write_base, write_build, write_lines
from transformers import MambaConfig, MambaForCausalLM

from qia3 import cli
from qia3 import gate as gating
from qia3.base.load import Asked, load_base
from qia3.base.weights import GridWeight
from qia3.batching.trees import Tree
from qia3.bundle.opened import Bundle
from qia3.graph import kept
from qia3.graph.forced import OrtDecoder, torch_logits
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, set_vectors
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import answer_of, prompt_of
from qia3.runtime.engine import Engine
from qia3.runtime.score import rank
from qia3.train.collator import Collator
from qia3.train.evaluate import rank_trees
from qia3.train.probe import packs

ROOT = Path(__file__).parents[1]
QUANTISED = ("codes", "scales", "zero_points", "embedding_codes", "embedding_scales", "embedding_zero_points")


def qia3(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def complaint(capsys, *arguments: object) -> str:
    """The one line at the end of stderr, after whatever progress was told; nothing on stdout."""
    code, out, err = qia3(capsys, *arguments)
    lines = err.strip().splitlines()
    assert (code, out) == (2, ""), err
    assert lines[-1].startswith("qia3: "), err
    assert "Traceback" not in err
    return lines[-1]


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {
        f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in folder.rglob("*")
        if f.is_file()
    }


def tensors(bundle: Path) -> dict[str, tuple[str, bytes]]:
    """Name -> part and bytes of every tensor of the base in the weight file, packed ones taken apart."""
    data = (bundle / "onnx/model_q4.onnx_data").read_bytes()
    found = {}
    for region in json.loads((bundle / "manifest.json").read_text())["tensors"]:
        place = region["offset"]
        for name, size in region.get("packed") or [(region["name"], region["bytes"])]:
            found[name] = (region["part"], data[place : place + size])
            place += size
        assert place == region["offset"] + region["bytes"]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory, kept_graphs) -> Path:
    """A folder with the build file, and its bundle in side mode."""
    folder = tmp_path_factory.mktemp("build")
    write_build(folder)
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(folder / "qia3.toml"), "--output", str(folder / "side")])
    assert ended.value.code == 0
    return folder


@pytest.fixture(scope="module")
def merged(place) -> Path:
    """The same with one task in the scales: nothing is trained again."""
    before = tree(place / "side.work")
    words = ["export", place / "qia3.toml", "--output", place / "merged", "--work", place / "side.work"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, words), "--mode", "merged", "--task", "topics"])
    assert ended.value.code == 0
    assert tree(place / "side.work") == before
    assert not (place / "merged.work").exists()
    assert str(place) not in (place / "merged" / "manifest.json").read_text()
    return place / "merged"


def loaded(place: Path, **changes: object) -> tuple:
    base = load_base(Asked(str(place / "base"), block_size=16))
    return base, attach(base.model, find_roles(base.model).sites)


def test_its_cost_was_known_before_it_was_built(place):
    hold_against(place / "base", place / "side", 16)


def test_a_model_is_reported_before_it_is_built(place, capsys):
    said = qia3(
        capsys, "report", place / "base", "--context", 16, "--context", 32, "--batch", 2, "--device", "raspberry-pi-4"
    )
    assert said[0] == 0
    assert "before it is built" in said[1]
    found = json.loads(qia3(capsys, "report", place / "base" / "config.json", "--context", 16, "--json")[1])
    assert sum(found["parts"].values()) == found["parameters"]
    for form in found["weights"]:
        assert sum(form["parts"].values()) == form["disk_bytes"]
    one, many = (next(f for f in found["fleets"] if f["tasks"] == n) for n in (1, 1000))
    assert many["ia3_side_bytes"] - one["ia3_side_bytes"] == 999 * found["adapters"][0]["disk_bytes"]
    assert many["ia3_merged_bytes"] == 1000 * one["ia3_merged_bytes"]
    code, out, told = qia3(capsys, "report", place / "base", "--must-fit", small_device(place))
    assert (code, told.count("\n")) == (3, 1)
    assert "it does not fit small" in told
    assert re.search(r"^ small +no\b", out, re.MULTILINE)  # the report is there all the same
    assert qia3(capsys, "report", place / "side", "--must-fit", small_device(place))[0] == 3
    assert qia3(capsys, "report", place / "side", "--must-fit", "raspberry-pi-5")[0] == 0
    both = ("report", "--compare", place / "side", place / "base", "--must-fit")
    assert [qia3(capsys, *both, device)[0] for device in (small_device(place), "raspberry-pi-5")] == [3, 0]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["none-such/config.json"], "there is no model folder"),
        (["base", "--context", "100000"], "positions, but a context of 100,000 was asked for"),
        (["base", "--device", "raspbery-pi-5"], "raspberry-pi-5"),
        (["side", "--context", "10"], "a bundle has fixed values"),
        (["."], "manifest"),
    ],
)
def test_what_cannot_be_reported_is_one_line(place, words, line, capsys, monkeypatch):
    monkeypatch.chdir(place)
    assert line in complaint(capsys, "report", *words)


def small_device(place: Path) -> Path:
    """With less memory than a process takes."""
    told = 'confidence = "reported"\nsource = "made up for a test"\n'
    text = f'title = "Small"\nfamily = "arm"\ntarget = "ort-arm"\n[memory_bytes]\nvalue = {2**25}\n{told}'
    (place / "small.toml").write_text(f'{text}[isa]\nvalue = ["neon"]\n{told}')
    return place / "small.toml"


def test_a_bundle_has_everything(place):
    names = set(tree(place / "side"))
    tokenizer = json.loads((place / "side" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"  # which transformers 4 knows, too
    adapters = {
        f"adapters/{t}{end}"
        for t in ("topics", "commands")
        for end in (".onnx_adapter", "/adapter_config.json", "/adapter_model.safetensors")
    }
    configs = {"config.json", "generation_config.json", "genai_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names >= adapters | configs | {
        "onnx/model_q4.onnx",
        "onnx/model_q4.onnx_data",
        "report.md",
        "report.json",
        "report.html",
        "manifest.json",
    }
    manifest = json.loads((place / "side" / "manifest.json").read_text())
    assert set(manifest["files"]) == names - {"manifest.json"}
    assert manifest["config"]["train"]["steps"] == 8
    assert manifest["seed"] == 0
    assert manifest["versions"]["torch"] == torch.__version__
    assert str(place) not in (place / "side" / "manifest.json").read_text()
    assert [p for p in place.iterdir() if p.name.startswith(".")] == []


def test_law_1_what_is_trained_is_what_ships(place):
    base, _ = loaded(place)
    assert base.fingerprint == Bundle.open(place / "side").fingerprint
    trained = {
        hashlib.sha256(b.numpy().tobytes()).hexdigest()
        for m in base.model.modules()
        if isinstance(m, GridWeight)
        for b in m.buffers()
    }
    assert {
        hashlib.sha256(data).hexdigest() for part, data in tensors(place / "side").values() if part in QUANTISED
    } == trained


def test_law_3_ones_mean_base(place):
    base, scaled = loaded(place)
    bundle = Bundle.open(place / "side")
    engine, bank = Engine(bundle), AdapterBank(bundle)
    prompt = engine.encode("turn the lights off")
    logits, _ = engine.prefill([prompt], {})
    np.testing.assert_allclose(logits, torch_logits(base.model, prompt, []), atol=1e-3)
    set_vectors(scaled, {n: v.reshape(-1) for n, v in bank.vectors("topics").items()})
    adapted, _ = engine.prefill([prompt], bank.vectors("topics"))
    np.testing.assert_allclose(adapted, torch_logits(base.model, prompt, []), atol=1e-3)
    assert np.abs(adapted - logits).max() > 0.1


def test_law_2_merging_changes_scales_by_exactly_the_vectors(place, merged):
    vectors = AdapterBank(Bundle.open(place / "side")).vectors("topics")
    side, folded = tensors(place / "side"), tensors(merged)
    assert side.keys() == folded.keys()
    changed = {name for name in side if side[name] != folded[name]}
    assert {side[name][0] for name in changed} == {"scales"}
    for name in changed:
        key = next(k for k in vectors if f"{k.removesuffix('.ia3_l')}.scales" == name)
        before = np.frombuffer(side[name][1], np.float32).reshape(vectors[key].size, -1)
        np.testing.assert_array_equal(
            np.frombuffer(folded[name][1], np.float32).reshape(before.shape), before * vectors[key].reshape(-1, 1)
        )
    assert len(changed) == len(vectors)


def test_merged_and_side_bundles_agree(place, merged):
    side, folded = Bundle.open(place / "side"), Bundle.open(merged)
    one, other = Engine(side), Engine(folded)
    rows = [one.encode("turn the lights off"), one.encode("lock up")]
    ours, cache = one.prefill(rows, AdapterBank(side).vectors("topics"))
    theirs, folded_cache = other.prefill(rows, {})
    np.testing.assert_allclose(theirs, ours, atol=1e-3)
    ours, _ = one.step([7, 9], cache, AdapterBank(side).vectors("topics"))
    theirs, _ = other.step([7, 9], folded_cache, {})
    np.testing.assert_allclose(theirs, ours, atol=1e-3)


def test_law_5_bytes_add_up(place, merged, capsys):
    for bundle in (place / "side", merged):
        code, out, _ = qia3(capsys, "report", bundle, "--json")
        assert code == 0
        assert json.loads(out)["account"]["total"] == sum(f.stat().st_size for f in bundle.rglob("*") if f.is_file())
        assert (bundle / "report.md").read_text(encoding="utf-8") == qia3(capsys, "report", bundle, "--markdown")[1]


def test_asking_and_scoring(place, merged, capsys):
    code, out, _ = qia3(capsys, "run", place / "side", "turn the lights off", "--adapter", "topics")
    assert (code, out.strip() in SAID) == (0, True)
    answer = json.loads(qia3(capsys, "run", place / "side", "turn the lights off", "--adapter", "topics", "--json")[1])
    assert answer["label"] == out.strip()
    assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-4)
    assert qia3(capsys, "run", merged, "turn the lights off")[1] == out
    text = qia3(capsys, "run", place / "side", "lock up", "--adapter", "commands")[1]
    assert (
        json.loads(qia3(capsys, "run", place / "side", "lock up", "--adapter", "commands", "--json")[1])["text"] + "\n"
        == text
    )
    for adapter in ("topics", "none"):
        code, out, _ = qia3(
            capsys,
            "eval",
            place / "side",
            place / "topics-test.jsonl",
            "--adapter",
            adapter,
            "--task",
            "topics",
            "--json",
        )
        found = json.loads(out)
        assert (code, found["n"], out.count("\n")) == (0, 3, 1)
        assert 0 <= found["accuracy"] <= 1
    assert "several adapters; name one: commands, topics or none" in complaint(capsys, "run", place / "side", "hello")


def test_the_report_has_what_was_measured(place, capsys):
    report = json.loads((place / "side" / "report.json").read_text())
    assert report["measured"]["peak_resident_bytes"] >= report["measured"]["peak_anonymous_bytes"] > 0
    assert report["measured"]["decode_tokens_per_second"] > 0
    assert report["evaluation"]["topics"]["n"] == 3
    assert report["parity"]["topics"]["exact"]["max_difference"] <= 1e-3
    code, out, _ = qia3(capsys, "bench", place / "side", "--adapter", "topics", "--json")
    assert (code, json.loads(out)["prompt_tokens"], json.loads(out)["new_tokens"]) == (0, 64, 32)  # of a context of 96


def test_estimates_for_devices(place, capsys):
    code, out, _ = qia3(capsys, "devices", place / "side", "--json")
    found = {e["device"]: e for e in json.loads(out)}
    assert code == 0
    assert found["raspberry-pi-5"]["fits"]
    assert found["raspberry-pi-5"]["kind"] == "estimate"


def test_an_adapter_goes_out_and_comes_in_under_another_name(place, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    shutil.copytree(place / "side", bundle)
    assert qia3(capsys, "adapter", "export", bundle, "topics", tmp_path / "peft")[0] == 0
    assert qia3(capsys, "adapter", "import", bundle, tmp_path / "peft", "--name", "subjects")[0] == 0
    opened = Bundle.open(bundle)
    assert opened.adapters == ("commands", "subjects", "topics")
    bank = AdapterBank(opened)
    for name, vector in bank.vectors("topics").items():
        np.testing.assert_array_equal(bank.vectors("subjects")[name], vector)
    answers = [qia3(capsys, "run", bundle, "lock up", "--adapter", a)[1] for a in ("topics", "subjects")]
    assert answers[0] == answers[1]
    info = json.loads(qia3(capsys, "adapter", "info", f"{bundle}:subjects", "--json")[1])
    assert info["parameters"] == sum(opened.vectors.values())
    before = tree(bundle)
    assert "already" in complaint(capsys, "adapter", "import", bundle, tmp_path / "peft", "--name", "topics")
    assert "not empty" in complaint(capsys, "adapter", "export", bundle, "topics", tmp_path / "peft")
    assert tree(bundle) == before


def test_law_7_an_adapter_of_another_base_is_refused_and_nothing_changes(place, tmp_path, capsys):
    write_build(tmp_path, steps=1, seed=5)
    one = ("train", tmp_path / "qia3.toml", "--output", tmp_path / "other", "--only")
    assert "there is no task called 'topic'; did you mean 'topics'?" in complaint(capsys, *one, "topic")
    assert qia3(capsys, *one, "topics")[0] == 0
    assert not (tmp_path / "other.work" / "commands").exists()
    before = tree(place / "side")
    assert "another base" in complaint(
        capsys, "adapter", "import", place / "side", tmp_path / "other.work" / "topics" / "adapter", "--name", "x"
    )
    bundle = tmp_path / "bundle"
    shutil.copytree(place / "side", bundle)
    (bundle / "adapters" / "topics.onnx_adapter").write_bytes(b"changed")
    assert "topics.onnx_adapter has 7 bytes" in complaint(capsys, "run", bundle, "hello", "--adapter", "topics")
    assert tree(place / "side") == before


def test_law_4_a_bundle_past_the_limit_is_not_published(place, tmp_path, capsys):
    file = place / "strict.toml"
    file.write_text(FILE.format(steps=8) + "max_difference = 1e-9\n")
    shutil.copytree(place / "side", tmp_path / "out")
    shutil.copytree(place / "side.work", tmp_path / "out.work")
    before = tree(tmp_path / "out")
    told = complaint(capsys, "build", file, "--output", tmp_path / "out")
    assert "parity fails for adapter none" in told
    assert "max_difference in [parity]" in told
    assert f"the training is kept in {tmp_path / 'out.work'}" in told
    assert tree(tmp_path / "out") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.work"]


def test_a_prompt_that_fills_the_context_is_compared_as_far_as_there_is_room(place, tmp_path, capsys):
    """Tokens forced after a prompt of the whole context would have no position; the line is one that fits."""
    file = place / "full.toml"
    lines = (place / "topics-test.jsonl").read_text().splitlines()
    long = json.dumps(json.loads(lines[0]) | {"text": "lights " * 300})
    (place / "full.jsonl").write_text("\n".join([long, *lines]) + "\n")
    text = FILE.format(steps=8).replace("topics-test.jsonl", "full.jsonl")
    file.write_text(
        text.replace('kind = "classify"', 'kind = "classify"\noverlong = "cut"').replace(
            "decode_steps = 2", "decode_steps = 40"
        )
    )
    code, _, err = qia3(capsys, "export", file, "--output", tmp_path / "out", "--work", place / "side.work")
    assert code == 0, err


def test_law_4_what_int8_activations_cost_is_a_warning_and_a_figure(place, tmp_path, capsys):
    file = place / "taste.toml"
    file.write_text(FILE.format(steps=8).replace("ort-exact", "ort-cpu") + "max_kl = 1e-12\nmin_top1 = 0\n")
    code, _, err = qia3(capsys, "export", file, "--output", tmp_path / "out", "--work", place / "side.work")
    assert code == 0
    told = [line for line in err.splitlines() if "KL divergence" in line]
    assert [line.split(" more than ")[0] for line in told] == [
        f"warning: int8 activations change adapter {name}" for name in ("none", "topics", "commands")
    ]
    assert all("(max_kl 1e-12)" in line and "ort-exact" in line for line in told)
    report = (tmp_path / "out" / "report.md").read_text()
    assert re.search(
        r"more than the build file allows: none: KL divergence \S+ nats \(max_kl 1e-12\); topics: ", report
    )
    assert "build file allows" not in (place / "side" / "report.md").read_text()


def test_law_4_a_broken_graph_is_not_published_whatever_the_limits(place, tmp_path, capsys, monkeypatch):
    """The graph as shipped gives other tokens' logits; the exact one is right."""

    class Shuffled(OrtDecoder):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.shift = 0 if path.name.startswith("exact") else 1

        def logits(self, *given: object) -> np.ndarray:
            return np.roll(super().logits(*given), self.shift, axis=1)

    monkeypatch.setattr(gating, "OrtDecoder", Shuffled)
    file = place / "loose.toml"
    file.write_text(FILE.format(steps=8) + "max_kl = 99\nmin_top1 = 0\n")
    told = complaint(capsys, "export", file, "--output", tmp_path / "out", "--work", place / "side.work")
    assert "no longer the model" in told
    assert f"the training is kept in {place / 'side.work'}" in told
    assert not (tmp_path / "out").exists()


def test_law_4_parity_is_the_same_whatever_the_graph_guesses(place, tmp_path, capsys, monkeypatch):
    class Wrong(OrtDecoder):
        def continued(self, prompt: list[int], count: int, vectors: dict) -> tuple[list[int], np.ndarray]:
            chosen, logits = super().continued(prompt, count, vectors)
            return [token ^ 1 for token in chosen], logits + 1

    monkeypatch.setattr(gating, "OrtDecoder", Wrong)
    words = ("export", place / "qia3.toml", "--output", tmp_path / "out", "--work", place / "side.work")
    assert qia3(capsys, *words, "--no-evaluation")[0] == 0
    found, right = (json.loads((f / "manifest.json").read_text())["parity"] for f in (tmp_path / "out", place / "side"))
    for name, both in right.items():
        for kind in ("exact", "shipped"):
            assert found[name][kind] == pytest.approx(both[kind], abs=2e-6)


def test_the_halves_make_the_same_bundle(place, tmp_path, capsys):
    for verb in ("train", "export"):
        assert qia3(capsys, verb, place / "qia3.toml", "--output", tmp_path / "out")[0] == 0
    whole, halves = tree(place / "side"), tree(tmp_path / "out")
    measured = {"manifest.json", "report.json", "report.md", "report.html"}
    assert {n: h for n, h in whole.items() if n not in measured} == {
        n: h for n, h in halves.items() if n not in measured
    }


def test_a_bundle_without_evaluation_is_the_same_and_says_so(place, tmp_path, capsys):
    words = ("export", place / "qia3.toml", "--output", tmp_path / "out", "--work", place / "side.work")
    code, out, told = qia3(capsys, *words, "--no-evaluation", "--json")
    assert code == 0
    assert "evaluating" not in told
    measured = {"manifest.json", "report.json", "report.md", "report.html"}
    files, same = tree(tmp_path / "out"), tree(place / "side")
    assert {n: h for n, h in files.items() if n not in measured} == {n: h for n, h in same.items() if n not in measured}
    assert json.loads(out)["evaluation"] is None
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["evaluation"] is None
    assert {"none", "topics", "commands"} == set(manifest["parity"])
    assert "not evaluated" in (tmp_path / "out/report.md").read_text()
    assert "not evaluated" in (tmp_path / "out/report.html").read_text()


def test_exporting_before_training_says_so(place, tmp_path, capsys):
    assert "not trained yet" in complaint(capsys, "export", place / "qia3.toml", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_refuses_vectors_of_another_plan_and_names_what_changed(place, tmp_path, capsys):
    """Else old vectors would ship under a new prompt, in a report that says nothing of it."""
    words = FILE.format(steps=9).replace("Topic of", "Which topic is")
    file = place / "edited.toml"
    file.write_text(words.replace('name = "tiny"', 'name = "tiny"\nseed = 1'))
    write_lines(place / "more.jsonl", [{"text": "light", "label": "lights"}, {"text": "song", "label": "music"}])
    file.write_text(file.read_text().replace('train = "topics.jsonl"', 'train = ["topics.jsonl", "more.jsonl"]'))
    told = complaint(capsys, "export", file, "--output", tmp_path / "out", "--work", place / "side.work")
    assert "task 'topics' was trained for another plan: " in told
    assert 'prompt was ["Topic of {text}?"], is ["Which topic is {text}?"]' in told
    assert "training.steps was 8, is 9" in told
    assert "seed was 0, is 1" in told
    assert re.search(r'train was "9 examples, SHA-256 \w+", is "11 examples, SHA-256 \w+"', told)
    assert not any(same in told for same in ("base was", "template", "shots", "learning_rate", "choices"))
    assert not (tmp_path / "out").exists()


def test_export_takes_vectors_where_only_other_things_changed(place, tmp_path, capsys):
    """Names of files, when checkpoints are saved, what the graph is for."""
    shutil.copy(place / "topics.jsonl", place / "renamed.jsonl")
    file = place / "same.toml"
    text = FILE.format(steps=8).replace("checkpoint_every = 2", "checkpoint_every = 7").replace("= 96", "= 80")
    file.write_text(text.replace('train = "topics.jsonl"', 'train = "renamed.jsonl"'))
    assert qia3(capsys, "export", file, "--output", tmp_path / "out", "--work", place / "side.work")[0] == 0


def test_a_work_folder_that_does_not_say_what_it_is_for(place, tmp_path, capsys):
    """As earlier versions left it."""
    shutil.copytree(place / "side.work", tmp_path / "out.work")
    (tmp_path / "out.work" / "topics" / "plan.json").rename(tmp_path / "out.work" / "topics" / "key")
    told = complaint(capsys, "export", place / "qia3.toml", "--output", tmp_path / "out")
    assert "has no plan.json, so it is from an earlier version" in told
    (tmp_path / "out.work" / "topics" / "plan.json").write_text("[1]")
    code, _, err = qia3(capsys, "train", place / "qia3.toml", "--output", tmp_path / "out")  # the other task is kept
    assert code == 2
    assert "1 of 2 tasks failed" in (last := err.splitlines()[-1])
    assert "JSON object is expected" in last


def test_a_folder_that_is_no_bundle_is_not_replaced(place, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("ten years")
    assert "not a bundle" in complaint(capsys, "build", place / "qia3.toml", "--output", tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "ten years"


LONG = ("--steps", "50", "--no-scores")


# what the command does beside what is looked at here takes longer: the graph's trial before training, and its export again
UNTRIED = "from qia3 import build; build.exported = lambda *_: {}"
KEPT = "from qia3 import publish; from qia3.graph import kept; publish.LEAST_KEPT = 0; kept.cache_folder = lambda: "


def start(before: str, *arguments: object) -> subprocess.Popen[str]:
    """The command in its own process, after the statements `before`."""
    program = f"{before}\nfrom qia3.cli import main\nmain()"
    words = [sys.executable, "-c", program, *map(str, arguments)]
    heard = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # a shell starts what runs in its background with SIGINT ignored
    return subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )


def wait_for(running: subprocess.Popen[str], pattern: str, folder: Path) -> None:
    """Until a path like `pattern` appears."""
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def trained_whole(place) -> Path:
    """The work folder of LONG steps that nobody stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qia3.build.exported", lambda *_: {})  # the graph's trial takes longer than the training
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", str(place / "qia3.toml"), "--output", str(place / "whole"), *LONG])
    assert ended.value.code == 0
    return place / "whole.work"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_training_that_was_stopped_goes_on(place, trained_whole, tmp_path, capsys, monkeypatch, how):
    """Killed, or asked to stop: the same command ends where an uninterrupted one does."""
    out = tmp_path / "out"
    running = start(UNTRIED, "train", place / "qia3.toml", "--output", out, *LONG)
    wait_for(running, "out.work/topics/checkpoints/checkpoint-*/trainer_state.json", tmp_path)
    running.send_signal(how)
    _, err = running.communicate(timeout=120)
    assert running.returncode == (-how if how == signal.SIGKILL else 130), err
    if how != signal.SIGKILL:
        assert "of 50 (topics); run the same command to resume" in err.strip().splitlines()[-1]
    assert not (tmp_path / "out.work" / "topics" / "record.json").exists()
    monkeypatch.setattr("qia3.build.exported", lambda *_: {})
    assert qia3(capsys, "train", place / "qia3.toml", "--output", out, *LONG)[0] == 0
    for task in ("topics", "commands"):
        parts, whole = (w / task / "adapter/adapter_model.safetensors" for w in (tmp_path / "out.work", trained_whole))
        assert parts.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_export_that_was_stopped_leaves_nothing(place, tmp_path, how):
    shutil.copytree(place / "side.work", tmp_path / "out.work")
    before = f"from pathlib import Path; {KEPT}Path({str(kept.cache_folder())!r})"
    running = start(before, "export", place / "qia3.toml", "--output", tmp_path / "out")
    wait_for(running, ".out.*/onnx/model_q4.onnx_data", tmp_path)
    running.send_signal(how)
    out, err = running.communicate(timeout=120)
    assert (running.returncode, out) == (130, ""), err
    assert err.strip().splitlines()[-1] == "qia3: stopped"
    assert [p.name for p in tmp_path.iterdir()] == ["out.work"]


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a disk of so many KiB."""
    mounted = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"disk{kib}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small disk needs rights that this user does not have")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a failed write may hold its file open


@pytest.mark.parametrize("what", ["anything", "a checkpoint", "the graph", "the last file"])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(place, small_disk, capsys, what):
    """There is room for everything before `what`."""
    graph, work = (
        sum(f.stat().st_size for f in (place / n).rglob("*") if f.is_file()) >> 10 for n in ("side", "side.work")
    )
    kib = {
        "anything": 4,
        "a checkpoint": 32,
        "the graph": work + 80 + graph // 2,
        "the last file": work + 80 + graph - 40,
    }[what]
    disk = small_disk(kib)
    line = complaint(capsys, "build", place / "qia3.toml", "--output", disk / "out")
    assert line.startswith("qia3: the disk is full: ")
    assert str(disk) in line
    assert [p.name for p in disk.iterdir() if p.name != "out.work"] == []


def test_a_base_without_places_for_vectors(place, tmp_path, capsys):
    words = write_base(tmp_path / "words")
    shutil.copytree(words, tmp_path / "base", ignore=shutil.ignore_patterns("model*", "config.json"))
    MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4)).save_pretrained(
        tmp_path / "base"
    )
    for name in ("topics", "topics-test", "commands", "commands-test"):
        shutil.copy(place / f"{name}.jsonl", tmp_path)
    (tmp_path / "qia3.toml").write_text(FILE.format(steps=2))
    line = complaint(capsys, "build", tmp_path / "qia3.toml", "--output", tmp_path / "out")
    assert "no place for IA³ vectors" in line
    assert "in_proj" in line


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "holds no examples"),
        ([{"text": "a", "label": "lights"}, {"text": "b"}], "line 2: 'label' is missing"),
        ([{"text": "a", "label": "lights"}, {"text": "b", "label": "musik"}], "line 2: label 'musik' is not one of"),
    ],
)
def test_bad_data_is_told_before_anything_is_loaded(place, tmp_path, capsys, lines, said):
    write_build(tmp_path)
    write_lines(tmp_path / "topics-test.jsonl", lines)
    start = time.perf_counter()
    line = complaint(capsys, "build", tmp_path / "qia3.toml", "--output", tmp_path / "out")
    assert "topics-test.jsonl" in line
    assert said in line
    assert time.perf_counter() - start < 5


def test_a_changed_byte_is_refused(place, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    shutil.copytree(place / "side", bundle)
    data = bytearray((bundle / "onnx/model_q4.onnx_data").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "onnx/model_q4.onnx_data").write_bytes(data)
    for words in (
        ["run", bundle, "hi", "--adapter", "none"],
        ["report", bundle],
        ["bench", bundle],
        ["devices", bundle],
    ):
        assert "onnx/model_q4.onnx_data has changed" in complaint(capsys, *words)


@pytest.mark.parametrize("by", ["sum", "mean"])
def test_torch_and_onnx_runtime_rank_alike(place, by):
    """The bundle's graph is at accuracy_level 0."""
    base, scaled = loaded(place)
    engine = Engine(Bundle.open(place / "side"))
    bank, task = AdapterBank(engine.bundle), engine.bundle.tasks["topics"]
    set_vectors(scaled, {n: v.reshape(-1) for n, v in bank.vectors("topics").items()})
    examples = [e for texts in SAID.values() for e in texts]
    answers = tuple(tuple(answer_of(engine, task, c)) for c in task.choices)
    trees = [Tree(tuple(prompt_of(engine, task, text)), answers) for text in examples]
    found = rank_trees(base.model, trees, Collator(packs(base.model, 40), 512, 96), by)
    theirs = [rank(engine, tree.prompt, answers, bank.vectors("topics"), by) for tree in trees]
    for one, other in zip(found.scores, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
        assert one.argmax() == other.argmax()
    assert found.accuracy == np.mean([s.argmax() == 0 for s in theirs])


def test_an_output_that_is_no_bundle_is_told_before_anything_is_loaded(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("qia3.build.load", None)  # calling it would be a defect
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    assert "is not a bundle" in complaint(capsys, "build", place / "qia3.toml", "--output", tmp_path / "notes")


def test_what_torch_scores_is_what_the_bundle_scores(place, tmp_path, capsys):
    """At accuracy level 0, one line to the letter and choices ranked: `qia3 train` beside the bundle's evaluation."""
    shutil.copytree(place / "side.work", tmp_path / "work")
    code, out, err = qia3(capsys, "train", place / "qia3.toml", "--work", tmp_path / "work", "--json")
    assert code == 0, err
    held_out = json.loads((place / "side" / "manifest.json").read_text())["evaluation"]
    found = {task["task"]: task["scores"] for task in json.loads(out)["tasks"]}
    for name, scores in held_out.items():
        told = [scores["n"], scores["before"]["accuracy"], scores["after"]["accuracy"]]
        assert [found[name][key] for key in ("n", "before", "after")] == told
