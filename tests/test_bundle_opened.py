"""A bundle is whole and unchanged, or it is refused with every reason."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
import tiny_bundle as tiny

from qia3.bundle.layout import DATA, GRAPH
from qia3.bundle.opened import Bundle
from qia3.errors import BundleError
from qia3.runtime.engine import Engine


@pytest.fixture
def folder(tmp_path):
    return tiny.write_bundle(tmp_path)


def edited(folder, **changes):
    (folder / "manifest.json").write_text(json.dumps(content(folder) | changes), encoding="utf-8")
    return folder


def content(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def test_what_a_bundle_tells(folder):
    bundle = Bundle.open(folder)
    assert (bundle.name, bundle.mode, bundle.merged_task, bundle.adapters) == ("tiny", "side", None, ("echo", "lamps"))
    assert bundle.base_version == int(tiny.FINGERPRINT[:7], 16)
    assert bundle.vectors == tiny.SIZES
    assert (bundle.architecture.kv_heads, bundle.architecture.context_length) == (tiny.KV_HEADS, tiny.CONTEXT)
    assert (bundle.prefix, bundle.suffix, bundle.stop_tokens) == ("Q: ", "\nA: ", (1,))
    task = bundle.tasks["lamps"]
    assert (task.name, task.kind, task.choices, task.end) == ("lamps", "classify", tuple(tiny.CHOICES), tiny.END)
    assert bundle.tasks["echo"].choices is None


def test_a_folder_given_as_text_and_files_it_does_not_know_are_fine(folder):
    (folder / "notes.txt").write_text("mine")
    assert Bundle.open(str(folder)).path == folder


def test_every_changed_byte_is_refused(folder):
    for file in [f for f in folder.rglob("*") if f.is_file() and f.name != "manifest.json"]:
        data = file.read_bytes()
        for place in (0, len(data) // 2, len(data) - 1):
            file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(BundleError, match=f"{file.name} has changed"):
                Bundle.open(folder)
        file.write_bytes(data)
    Bundle.open(folder)


def test_all_bad_files_are_named_at_once(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "adapters/lamps.onnx_adapter").write_bytes(b"short")
    data = bytearray((folder / DATA).read_bytes())
    data[100] ^= 1
    (folder / DATA).write_bytes(data)
    with pytest.raises(BundleError) as refused:
        Bundle.open(folder)
    text = str(refused.value)
    assert "tokenizer.json is missing" in text
    assert f"{DATA} has changed" in text
    assert "adapters/lamps.onnx_adapter has 5 bytes instead of" in text
    assert "\n" not in text
    assert f"{GRAPH} has" not in text
    assert Bundle.open(folder, verify=False).name == "tiny"


def test_a_graph_that_the_manifest_does_not_list_is_refused(folder):
    files = content(folder)["files"]
    del files[GRAPH]
    with pytest.raises(BundleError, match=r"model_q4\.onnx is not in the manifest"):
        Bundle.open(edited(folder, files=files))


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname"])
def test_a_manifest_cannot_point_out_of_its_folder(folder, name):
    files = content(folder)["files"] | {name: {"sha256": "0" * 64, "bytes": 0}}
    with pytest.raises(BundleError, match="is outside the bundle"):
        Bundle.open(edited(folder, files=files))


@pytest.mark.parametrize("place", ["nowhere", "", "model.onnx"])
def test_what_is_no_bundle_is_told(tmp_path, place):
    (tmp_path / "model.onnx").write_text("a file, not a folder")
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(tmp_path / place)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 1, ', "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[1]", "holds a list, but a JSON object is expected"),
        ('"format"', "holds a string, but a JSON object is expected"),
        ("[" * 100_000, "is not valid JSON: it is nested too deeply"),
        ('{"format": ' + "9" * 5000 + "}", "is not valid JSON: a number has too many digits"),
        ('{"format": 3, "format": 3}', "is not valid JSON: the key 'format' occurs twice"),
        ("{}", "has no 'format'"),
        ('{"format": 4}', "bundle format 4, but this version reads up to 3; upgrade qia3"),
        ('{"format": 0}', "build it again"),
        ('{"format": "x"}', "build it again"),
        ('{"format": true}', "build it again"),
        ('{"format": 1}', "is damaged: .*is missing"),
        ('{"format": 1, "files": []}', "is damaged"),
        ('{"format": 2, "files": {}}', "is damaged: .*is missing"),
        ('{"format": 3, "files": {}}', "is damaged: qia3 is missing; name is missing; .*and .* more"),
    ],
)
def test_a_damaged_or_foreign_manifest_is_one_clear_line(tmp_path, text, said):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=said) as refused:
        Bundle.open(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_manifest_in_another_encoding_is_damaged(tmp_path):
    (tmp_path / "manifest.json").write_bytes('{"format": 1, "name": "é"}'.encode("latin-1"))
    with pytest.raises(BundleError, match="is not UTF-8 text"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"base": {"fingerprint": "not hexadecimal"}},
        {"base": None},
        {"architecture": {}},
        {"tasks": {"lamps": {}}},
        {"tasks": []},
        {"graphs": {}},
        {"graphs": {"decoder": {"vectors": [{}]}}},
        {"graphs": {"decoder": {"file": GRAPH, "data": DATA, "vectors": [{}]}}},
        {"merged_task": "lamps"},
        {"mode": "merged"},
        {"stop_tokens": None},
        {"files": {GRAPH: 3, DATA: 3}},
    ],
)
def test_a_manifest_with_a_wrong_part_is_one_clear_line(folder, changes):
    with pytest.raises(BundleError, match=r"manifest.json is damaged: "):
        Bundle.open(edited(folder, **changes))


def test_keys_that_this_version_does_not_know_are_ignored(folder):
    tasks = {name: task | {"since": "0.2"} for name, task in tiny.TASKS.items()}
    assert set(Bundle.open(edited(folder, tasks=tasks, later=1)).tasks) == {"lamps", "echo"}


OLD_GRAPH = {"target": "ort-exact", "accuracy_level": 0, "logits": "last"}


def as_format_1(folder):
    """The bundle as it was written before the graph moved into onnx/."""
    graph = onnx.load(folder / GRAPH)
    onnx.save(graph, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=1024)
    shutil.rmtree(folder / "onnx")
    manifest = {key: value for key, value in content(folder).items() if key != "files"} | {"format": 1}
    manifest["graph"] = {"vectors": manifest.pop("graphs")["decoder"]["vectors"]} | OLD_GRAPH
    for vector in manifest["graph"]["vectors"]:
        del vector["placement"]
    for layer in manifest["linears"]:
        del layer["format"], layer["block_size"], layer["symmetric"]
    manifest["base"]["grid"] = {"block_size": 16, "symmetric": False}
    tiny.seal(folder, manifest)
    return folder


def test_a_bundle_of_format_1_answers_as_it_did(folder):
    prompt = [3, 4, 5]
    before, _ = Engine(Bundle.open(folder)).prefill([prompt], {})
    after, _ = Engine(Bundle.open(as_format_1(folder))).prefill([prompt], {})
    np.testing.assert_array_equal(before, after)
    (folder / "model.onnx.data").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx\.data is missing"):
        Bundle.open(folder)
