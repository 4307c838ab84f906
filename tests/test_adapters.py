"""Adapters in and out of a bundle: what comes in is understood or the bundle is byte for byte what it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from safetensors.numpy import load_file, save_file
from test_build import complaint, qia3, tree
from test_laws_imports import BLOCK, ROOT, python
from tiny_build import write_build

from qia3 import cli
from qia3.adapters import import_adapter
from qia3.bundle.adapter import Adapter, write_adapter
from qia3.bundle.opened import Bundle
from qia3.bundle.peft import write_peft
from qia3.bundle.sites import Site
from qia3.bundle.task import Task
from qia3.runtime.adapters import AdapterBank
from qia3.server.place import Folder
from qia3.server.shelf import Shelf


@pytest.fixture(scope="module")
def built(tmp_path_factory, kept_graphs) -> Path:
    """A folder with a bundle, and what was trained for it."""
    folder = tmp_path_factory.mktemp("built")
    write_build(folder, steps=1)
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(folder / "qia3.toml"), "--output", str(folder / "side")])
    assert ended.value.code == 0
    return folder


@pytest.fixture
def bundle(built, tmp_path) -> Path:
    """One to change, alone in its folder."""
    shutil.copytree(built / "side", tmp_path / "here" / "bundle")
    return tmp_path / "here" / "bundle"


@pytest.fixture
def peft(bundle, tmp_path, capsys) -> Path:
    assert qia3(capsys, "adapter", "export", bundle, "topics", tmp_path / "peft")[0] == 0
    return tmp_path / "peft"


def unchanged(bundle, before):
    assert tree(bundle) == before
    assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]
    Bundle.open(bundle)


def test_an_adapter_keeps_its_task_from_training_to_another_name(built, bundle, capsys):
    """Out of the work folder of a training run, with no export in between."""
    words = ["adapter", "import", bundle, built / "side.work" / "topics" / "adapter", "--name", "subjects"]
    code, out, _ = qia3(capsys, *words, "--json")
    tasks = json.loads((bundle / "manifest.json").read_text())["tasks"]
    assert (code, json.loads(out)["own_task"]) == (0, True)
    assert json.loads(out)["task"] == tasks["subjects"] == tasks["topics"]
    bank = AdapterBank(Bundle.open(bundle))
    assert all((bank.vectors("subjects")[n] == v).all() for n, v in bank.vectors("topics").items())


def test_an_adapter_without_a_task_becomes_a_generating_one_and_that_is_told(bundle, peft, capsys):
    (peft / "task.json").unlink()
    code, out, _ = qia3(capsys, "adapter", "import", bundle, peft, "--name", "bare")
    assert (code, out.count("\n")) == (0, 1)
    assert "has no task.json, so its task in the bundle is to generate" in out
    opened = Bundle.open(bundle)
    assert opened.tasks["bare"].prompt == f"{opened.prefix}{{text}}{opened.suffix}"
    assert opened.tasks["bare"].end == opened.tasks["topics"].end


@pytest.mark.parametrize("own_task", [True, False])
def test_a_server_and_an_import_make_the_same_of_an_adapter(bundle, peft, tmp_path, own_task):
    if not own_task:
        (peft / "task.json").unlink()
    folder = tmp_path / "adapters"
    peft.rename(folder.mkdir() or folder / "new")
    served, vectors = Shelf(Bundle.open(bundle), Folder(folder)).get("new")
    imported = import_adapter(bundle, folder / "new", "new")
    opened = Bundle.open(bundle)
    assert served == imported.task == opened.tasks["new"]
    assert served.end == opened.tasks["topics"].end != ""
    assert imported.has_own_task == own_task
    bank = AdapterBank(opened).vectors("new")
    assert vectors.keys() == bank.keys()
    assert all(np.array_equal(bank[n], v) for n, v in vectors.items())


BAD_TASKS = [{"choices": ...}, {"choices": 7}, {"choices": [1, 2]}, {"choices": []}, {"choices": ["a", "a"]}]
BAD_TASKS += [{"max_new_tokens": v} for v in ("x", None, 0, 10**400)] + [{"end": 5}, {"prompt": ["{text}"]}]
BAD_TASKS += [{"prompt": "none"}, {"kind": "other"}, {"ranking": "max"}, {"surplus": 1}, [], None, "text"]


@pytest.mark.parametrize("change", BAD_TASKS, ids=str)
def test_a_task_that_is_none_leaves_the_bundle_byte_for_byte(change, bundle, peft, capsys):
    before, task = tree(bundle), json.loads((peft / "task.json").read_text())
    if isinstance(change, dict):
        task = {key: value for key, value in (task | change).items() if value is not ...}
    (peft / "task.json").write_text(json.dumps(task if isinstance(change, dict) else change))
    said = complaint(capsys, "adapter", "import", bundle, peft, "--name", "new")
    assert "task.json is not a task" in said
    assert not isinstance(change, dict) or all(repr(key) in said for key in change)
    unchanged(bundle, before)


NEVER_ASKED = [
    ({"end": ""}, "its end, '', is not a token that ends an answer here; this bundle stops at '<|end|>'"),
    ({"end": "no such token"}, "'no such token', is not a token"),
    ({"end": "{text}"}, "'{text}', is not a token"),
    ({"end": "<|end|><|end|>"}, "'<|end|><|end|>', is not a token"),
    ({"kind": "generate", "choices": None, "end": "<pad>"}, "'<pad>', is not a token"),
    ({"prompt": "lamp " * 200 + "{text}"}, "leaves no room for words in a context of 96"),
    ({"choices": ["a", "lamp " * 200]}, "leaves no room for words in a context of 96"),
    ({"choices": ["lamp"]}, "'lamp' is its only choice; at least two are needed"),
]


@pytest.mark.parametrize(("change", "said"), NEVER_ASKED, ids=lambda value: str(value)[:40])
def test_a_task_that_can_never_be_asked_leaves_the_bundle_byte_for_byte(change, said, bundle, peft, capsys):
    before, task = tree(bundle), json.loads((peft / "task.json").read_text())
    (peft / "task.json").write_text(json.dumps(task | change))
    told = complaint(capsys, "adapter", "import", bundle, peft, "--name", "new")
    assert "task 'new' cannot be asked of this bundle" in told
    assert said in told
    unchanged(bundle, before)


def test_a_choice_may_end_with_any_control_token(bundle, peft, capsys):
    task = json.loads((peft / "task.json").read_text())
    (peft / "task.json").write_text(json.dumps(task | {"end": "<pad>"}))
    assert qia3(capsys, "adapter", "import", bundle, peft, "--name", "padded")[0] == 0
    assert qia3(capsys, "run", bundle, "the door", "--adapter", "padded")[0] == 0


def test_a_bundle_whose_tasks_say_no_end_opens_and_takes_an_adapter_without_a_task(bundle, peft, capsys):
    """As an earlier version may have left it: its new task ends where the bundle stops."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    for task in manifest["tasks"].values():
        task["end"] = ""
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    (peft / "task.json").unlink()
    assert qia3(capsys, "run", bundle, "the door", "--adapter", "topics")[0] == 0
    assert qia3(capsys, "adapter", "import", bundle, peft, "--name", "bare")[0] == 0
    assert Bundle.open(bundle).tasks["bare"].end == "<|end|>"


@pytest.mark.parametrize("file", ["task.json", "adapter_config.json"])
def test_a_key_that_stands_twice_leaves_the_bundle_byte_for_byte(file, bundle, peft, capsys):
    before, text = tree(bundle), (peft / file).read_text()
    key = next(iter(json.loads(text)))
    (peft / file).write_text(text.rstrip().removesuffix("}") + f', "{key}": null}}')
    assert f"the key {key!r} occurs twice" in complaint(capsys, "adapter", "import", bundle, peft, "--name", "new")
    unchanged(bundle, before)


def test_half_an_adapter_leaves_the_bundle_byte_for_byte(bundle, peft, capsys):
    before, file = tree(bundle), peft / "adapter_model.safetensors"
    tensors = load_file(file)
    for kept in ({n: t for n, t in tensors.items() if ".0." in n}, {}):
        save_file(kept, file)
        said = complaint(capsys, "adapter", "import", bundle, peft, "--name", "new")
        assert f"{len(tensors) - len(kept)} bad tensors" in said
        assert said.count("(missing)") == len(tensors) - len(kept)
    unchanged(bundle, before)


@pytest.mark.parametrize("name", ["topics\n", "TOPICS", "con", "a.", "none", "a.onnx_adapter", "../up", "", "topics"])
def test_a_name_that_is_none_or_taken_leaves_the_bundle_byte_for_byte(name, bundle, peft, capsys):
    before = tree(bundle)
    complaint(capsys, "adapter", "import", bundle, peft, "--name", name)
    unchanged(bundle, before)


@pytest.mark.parametrize("name", ["../onnx", "..", ".", "", "none", "topic", "/", "topics/"])
def test_what_is_no_adapter_is_not_exported_and_nothing_is_written(name, bundle, tmp_path, capsys):
    assert "it has: commands, topics" in complaint(capsys, "adapter", "export", bundle, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_query_vectors_without_a_place_are_told_the_key_that_gives_them_one(bundle, tmp_path, capsys):
    before, linears = tree(bundle), json.loads((bundle / "manifest.json").read_text())["linears"]
    for role, hint in (("query", True), ("attention_output", False)):
        sites = [Site(n["name"], "query", "output", n["outputs"]) for n in linears if n["role"] == role]
        write_peft(tmp_path / role, Adapter({}, None), sites, "base")
        said = complaint(capsys, "adapter", "import", bundle, tmp_path / role, "--name", "new")
        assert f"{len(sites)} bad tensors" in said
        assert said.count("(this base has no such vector") == len(sites) == 2
        assert ("query_vectors = true under [export]" in said) == hint
    unchanged(bundle, before)


def test_an_adapter_of_a_merged_bundle_has_no_place(built, tmp_path, peft, capsys):
    words = ["export", built / "qia3.toml", "--output", tmp_path / "m", "--work", built / "side.work"]
    assert qia3(capsys, *words, "--mode", "merged", "--task", "topics")[0] == 0
    before = tree(tmp_path / "m")
    assert "is merged" in complaint(capsys, "adapter", "import", tmp_path / "m", peft, "--name", "x")
    assert "it has: none" in complaint(capsys, "adapter", "export", tmp_path / "m", "topics", tmp_path / "out")
    assert tree(tmp_path / "m") == before


def test_law_6_adapters_go_in_and_out_where_torch_cannot_be_imported(bundle, peft, tmp_path):
    """And nothing is said on stderr but the error."""
    work = [
        ["adapter", "info", f"{bundle}:topics"],
        ["adapter", "info", str(peft)],
        ["adapter", "import", str(bundle), str(peft), "--name", "new"],
        ["adapter", "export", str(bundle), "new", str(tmp_path / "out")],
    ]
    for words in work:
        run = python(BLOCK + "\n    from qia3.cli import main\n    main(sys.argv[1:])", *words)
        assert (run.returncode, run.stderr) == (0, ""), words
    assert tree(tmp_path / "out") == tree(peft)


def test_info_states_what_numpy_finds_in_the_file(bundle, peft, capsys):
    """The memory of ONNX Runtime's reader, looked at too late, gave other numbers in a third of the tensors."""
    held = ort.AdapterFormat.read_adapter(str(bundle / "adapters" / "topics.onnx_adapter"))
    values = held.get_parameters()
    theirs = {name: np.array(value.numpy()) for name, value in values.items()}
    assert len(theirs) == 6
    for path in (f"{bundle}:topics", bundle / "adapters" / "topics.onnx_adapter", peft):
        info = json.loads(qia3(capsys, "adapter", "info", path, "--json")[1])
        assert info["parameters"] == sum(v.size for v in theirs.values())
        found = {name.removeprefix("base_model.model."): facts for name, facts in info["tensors"].items()}
        assert found == {
            n: {"size": v.size, "min": float(v.min()), "max": float(v.max()), "mean": pytest.approx(v.mean(), abs=1e-6)}
            for n, v in theirs.items()
        }


def test_info_of_many_tensors_is_right_every_time(tmp_path, capsys):
    rng = np.random.default_rng(0)
    vectors = {f"layers.{i}.x.ia3_l": rng.normal(1, 1, 40 + i).astype(np.float32) for i in range(90)}
    write_adapter(tmp_path / "a.onnx_adapter", vectors, "f" * 64)
    for _ in range(5):
        found = json.loads(qia3(capsys, "adapter", "info", tmp_path / "a.onnx_adapter", "--json")[1])["tensors"]
        assert {n: (f["min"], f["max"]) for n, f in found.items()} == {
            n: (float(v.min()), float(v.max())) for n, v in vectors.items()
        }


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\0" * 600])
def test_info_of_what_is_no_adapter_is_one_line(content, tmp_path, capsys):
    (tmp_path / "a.onnx_adapter").write_bytes(content)
    assert "cannot be read" in complaint(capsys, "adapter", "info", tmp_path / "a.onnx_adapter")
    assert "there is no adapter" in complaint(capsys, "adapter", "info", tmp_path / "b.onnx_adapter")
    assert "is not a PEFT checkpoint" in complaint(capsys, "adapter", "info", tmp_path)


def test_a_trained_task_is_the_one_that_ships(built):
    """training's task.json beside the bundle's manifest"""
    tasks = json.loads((built / "side" / "manifest.json").read_text())["tasks"]
    for name, task in tasks.items():
        written = json.loads((built / "side.work" / name / "adapter" / "task.json").read_text())
        assert written == task == Task.from_json(name, task).to_json()


def test_imports_at_once_are_all_there_afterwards(bundle, peft):
    """Each reads the manifest that the one before it wrote."""
    names = ["one", "two", "three"]
    command = [sys.executable, "-m", "qia3", "adapter", "import", str(bundle), str(peft), "--name"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    runs = [subprocess.Popen([*command, name], env=environment, stdout=subprocess.DEVNULL) for name in names]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert {*names, "topics", "commands"} == {*Bundle.open(bundle).adapters}
    assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]


def test_an_import_keeps_what_lies_behind_a_link(bundle, peft, tmp_path, capsys):
    (bundle / "adapters").rename(tmp_path / "elsewhere")
    (bundle / "adapters").symlink_to(tmp_path / "elsewhere")
    assert qia3(capsys, "adapter", "import", bundle, peft, "--name", "more")[0] == 0
    opened = Bundle.open(bundle)
    assert {*opened.adapters} == {"topics", "commands", "more"}
    for name in opened.adapters:
        AdapterBank(opened).vectors(name)


def test_what_is_not_the_bundles_is_kept_and_not_listed(bundle, peft, capsys):
    for name in ("notes.txt", "adapters/stray.onnx_adapter"):
        (bundle / name).write_text("mine")
    assert qia3(capsys, "adapter", "import", bundle, peft, "--name", "more")[0] == 0
    assert (bundle / "notes.txt").read_text() == "mine"
    (bundle / "notes.txt").write_text("changed")
    assert {*Bundle.open(bundle).adapters} == {"topics", "commands", "more"}


def test_a_bundle_may_be_the_folder_one_stands_in(bundle, peft, capsys, monkeypatch):
    monkeypatch.chdir(bundle)
    assert qia3(capsys, "adapter", "import", ".", peft, "--name", "more")[0] == 0
    assert "more" in Bundle.open(bundle).adapters
