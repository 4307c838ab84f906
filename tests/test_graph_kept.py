"""Graphs in the cache: a kept one is the fresh one, byte for byte; a damaged or foreign one is not used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx_ir as ir
import pytest
from test_build import tree
from tiny_build import write_build
from tiny_encoders import write_encoder
from tiny_seq2seq import write_seq2seq

from qia3 import cli, publish
from qia3.base.load import LEAST_KEPT
from qia3.build import load
from qia3.config import Build, read_build
from qia3.describe import places
from qia3.graph import kept
from qia3.graph.external import write_graphs
from qia3.publish import exported

# what stands in [export], by what is built
BUILDS = {
    "decoder": 'target = "ort-cpu"',
    "for browsers": 'target = "browser"',
    "that learns": 'target = "ort-cpu"\ntrainable = true',
    "values at 8 bits": 'target = "ort-cpu"',
    "nf4": 'target = "nf4-exact"',
    "encoder": "",
    "encoder-decoder": "",
}


def plan_of(folder: Path, what: str) -> Build:
    file = write_build(folder)
    if what.startswith("encoder"):
        shutil.rmtree(folder / "base")
        (write_encoder if what == "encoder" else write_seq2seq)(folder / "base")
    text = file.read_text()
    if BUILDS[what]:
        text = text.replace('target = "ort-exact"', BUILDS[what])
    text = text.replace("block_size = 16", 'block_size = 32\ngrid = "nf4"' if what == "nf4" else "block_size = 16")
    text = text.replace("block_size = 16", 'block_size = 16\neight_bit = ["value"]') if "8 bits" in what else text
    file.write_text(text)
    return read_build(file)


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch) -> Path:
    """A cache of its own, that tiny bases are kept in, too. Returns the folder of graphs."""
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(publish, "LEAST_KEPT", 0)
    return tmp_path / "cache/graphs"


def written(plan: Build, folder: Path) -> tuple[dict[str, str], list]:
    """SHA-256 of the files that a fresh process would write, and the regions of the weights."""
    adapted = load(plan)
    graphs = exported(plan, adapted)
    files = {name: file for name, (file, _) in places(adapted.model).items()} | {"train": "onnx/train.onnx"}
    folder.mkdir()
    regions = write_graphs({files[n]: g for n, g in graphs.items()}, "onnx/weights", folder, [])
    return tree(folder), regions


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> tuple[Build, dict[str, ir.Model]]:
    """A plan and its graphs, for tests that do not look at how graphs are made."""
    plan = plan_of(tmp_path_factory.mktemp("once"), "decoder")
    return plan, publish._exported(plan, load(plan))


@pytest.fixture
def plan(once, monkeypatch) -> Build:
    """A plan whose graphs are made at once."""
    monkeypatch.setattr(publish, "_exported", lambda *_: {name: graph.clone() for name, graph in once[1].items()})
    return once[0]


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("traced again")


@pytest.fixture
def no_trace(monkeypatch):
    """A function after which nothing may be exported."""

    def forbid() -> None:
        monkeypatch.setattr(publish, "_exported", refuse)

    return forbid


@pytest.mark.parametrize("what", BUILDS)
def test_law_a_kept_graph_is_the_fresh_one_byte_for_byte(what, tmp_path, cached, no_trace):
    plan = plan_of(tmp_path, what)
    fresh = written(plan, tmp_path / "fresh")
    (folder,) = cached.iterdir()
    no_trace()
    assert written(plan, tmp_path / "kept") == fresh
    facts = json.loads((folder / kept.FACTS).read_text())["graphs"]
    weights = [f for graph in facts.values() for name, f in graph.items() if name.endswith((".codes", ".scales"))]
    assert weights
    assert all("of" in f for f in weights)  # nothing of the base is written again


def test_a_bundle_of_a_kept_graph_is_that_of_a_fresh_one(tmp_path, no_trace):
    """Training, too, is what it is behind an export."""
    plan_of(tmp_path, "decoder")
    measured = {"manifest.json", "report.json", "report.md", "report.html"}
    found = {}
    for name in ("fresh", "kept"):
        if name == "kept":
            no_trace()
        with pytest.raises(SystemExit) as ended:
            cli.main(["build", str(tmp_path / "qia3.toml"), "--output", str(tmp_path / name), "--no-evaluation"])
        assert ended.value.code == 0
        found[name] = {n: h for n, h in tree(tmp_path / name).items() if n not in measured}
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        found[name]["figures"] = json.dumps([manifest["parity"], manifest["tensors"]])
    assert found["fresh"] == found["kept"]


def test_a_small_base_is_traced_anew(plan, monkeypatch, cached):
    monkeypatch.setattr(publish, "LEAST_KEPT", LEAST_KEPT)
    exported(plan, load(plan))
    assert not cached.exists()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def changed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, changed, Path.unlink])
@pytest.mark.parametrize("name", ["decoder.onnx", kept.REST, kept.FACTS, kept.SEAL])
def test_a_damaged_one_is_not_used_and_replaced(plan, tmp_path, cached, capsys, no_trace, name, damage):
    fresh = written(plan, tmp_path / "first")
    (folder,) = cached.iterdir()
    whole = tree(folder)
    damage(folder / name)
    capsys.readouterr()
    assert written(plan, tmp_path / "second") == fresh
    assert f"the cached graph {folder} is not used, and exported again" in capsys.readouterr().err
    assert tree(folder) == whole
    no_trace()
    assert written(plan, tmp_path / "third") == fresh


def test_one_of_another_base_is_not_used(plan, tmp_path, cached, capsys):
    """Whole, and in the right place, but made for other settings."""
    fresh = written(plan, tmp_path / "first")
    other = plan.model_copy(update={"parity": plan.parity.model_copy(update={"max_difference": 1e-2})})
    (mine,) = cached.iterdir()
    written(other, tmp_path / "second")
    (theirs,) = {*cached.iterdir()} - {mine}
    shutil.rmtree(mine)
    shutil.copytree(theirs, mine)
    capsys.readouterr()
    assert written(plan, tmp_path / "third") == fresh
    assert "it was made for another base or other settings" in capsys.readouterr().err


def test_all_that_a_graph_depends_on_is_in_its_key(plan, monkeypatch):
    adapted = load(plan)
    own = publish._place(plan, adapted).folder
    assert publish._place(plan, load(plan)).folder == own

    def folder(**changes: object) -> Path:
        asked = plan.model_copy(update={"export": plan.export.model_copy(update=changes)})
        return publish._place(asked, adapted).folder

    changes = [{"target": "ort-exact"}, {"target": "browser"}, {"context_length": 48}, {"logits": "all"}]
    found = [own, *(folder(**c) for c in [*changes, {"trainable": True}])]
    with_queries = plan.model_copy(update={"export": plan.export.model_copy(update={"query_vectors": True})})
    found.append(publish._place(with_queries, load(with_queries)).folder)
    adapted.model.config.rms_norm_eps *= 2
    found.append(publish._place(plan, adapted).folder)
    monkeypatch.setattr(kept, "_source", lambda: "0")
    found.append(publish._place(plan, adapted).folder)
    monkeypatch.setattr(kept, "version", lambda name: "0")
    found.append(publish._place(plan, adapted).folder)
    monkeypatch.setattr(kept, "processor", lambda: "another")
    found.append(publish._place(plan, adapted).folder)
    name = next(n for n, b in adapted.model.named_buffers() if n.endswith("inv_freq"))
    adapted.model.get_buffer(name).mul_(2)
    found.append(publish._place(plan, adapted).folder)
    assert len(set(found)) == len(found)
    # neither the mode nor tasks
    assert folder(mode="merged") == folder(cache="int8") == publish._place(plan, adapted).folder


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), MemoryError()])
def test_writing_that_is_stopped_leaves_nothing(once, monkeypatch, cached, capsys, error):
    plan, graphs = once
    monkeypatch.setattr(publish, "_exported", lambda *_: {**graphs, "train": graphs["decoder"].clone()})
    save, files = kept.ir.save, []

    def stops(graph, file):
        save(graph, file)
        files.append(file)
        if len(files) == 2:
            raise error

    with monkeypatch.context() as patched:
        patched.setattr(kept.ir, "save", stops)
        if isinstance(error, OSError):
            adapted = load(plan)
            graphs = exported(plan, adapted)
            assert "this graph is not cached and the next export will make it again" in capsys.readouterr().err
            assert {v.const_value.__class__ for v in graphs["decoder"].graph.initializers.values()} & {kept.ir.Tensor}
        else:
            with pytest.raises(type(error)):
                exported(plan, load(plan))
    assert len(files) == 2
    assert list(cached.iterdir()) == []
    exported(plan, load(plan))
    assert len(list(cached.iterdir())) == 1


def test_only_the_newest_stay(plan, monkeypatch, cached):
    monkeypatch.setattr(kept, "MOST", 2)
    seen = []
    for length in (32, 48, 64):
        asked = plan.model_copy(update={"export": plan.export.model_copy(update={"context_length": length})})
        exported(asked, load(asked))
        seen.append(publish._place(asked, load(asked)).folder)
    assert {*cached.iterdir()} == {*seen[1:]}
