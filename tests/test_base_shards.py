"""Containers that are cut, changed or made to do harm: one clear line each time, and no memory taken for what they
claim to hold.
"""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import tiny
from tiny_build import write_base
from transformers import AutoTokenizer

from qia3.base import kept
from qia3.base.frozen import BaseModel, fingerprint
from qia3.base.gguf_file import MOST_ELEMENTS, read_index
from qia3.base.load import Asked, load_base
from qia3.base.quantise import Grid, quantise_model
from qia3.base.shards import INDEX, LONGEST_HEADER, entries, file_entries, read
from qia3.errors import BaseModelError

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.arange(4).to(torch.bfloat16),
    "c": torch.tensor(7, dtype=torch.int64),
    "d": torch.zeros(0, 5, dtype=torch.float16),
    "e": torch.arange(3, dtype=torch.uint8),
}
MOST_MEMORY = 8 << 20  # what a reader may take for a file of some kilobytes


def pack(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def refused(check, path: Path, words: str = ".") -> None:
    """One line, little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(BaseModelError, match=words) as caught:
            check(path)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
    assert str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    str(caught.value).encode()  # it can be printed


def passes_or_is_refused(check, path: Path) -> None:
    """A change may hit a byte that nothing depends on."""
    said = ""
    try:
        check(path)
    except BaseModelError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1
    said.encode()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path.read_bytes()


def test_what_is_read_is_what_was_written(tmp_path, whole):
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole)
    found = entries(tmp_path)
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(read(found[name]), tensor)
        assert read(found[name]).dtype == tensor.dtype
    path.write_bytes(whole[:-1])
    with pytest.raises(BaseModelError, match="truncated while it was read"):
        [read(e) for e in found.values()]


def test_the_worked_example_of_the_header_holds(tmp_path):
    text = b'{"w":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack(text + b" " * 6, bytes.fromhex("803F004040408040A040C040")))
    assert path.read_bytes()[:8] == bytes([64, 0, 0, 0, 0, 0, 0, 0])
    assert torch.equal(read(file_entries(path)["w"]), torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "its header claims 0 bytes"),
        (b"\x10", "but the file has 1"),
        (struct.pack("<Q", 2**63) + b"{}", "its header claims 9223372036854775808 bytes"),
        (struct.pack("<Q", 3) + b"{}", "its header claims 3 bytes, but the file has 10"),
        (pack(b"{}" + b" " * LONGEST_HEADER), "more than the limit"),
        (pack(b"\xff\xfe"), "utf-8"),
        (pack(b"[" * 100_000), "complete safetensors file"),
        (pack(b'{"a":' * 5000), "complete safetensors file"),
        (pack([]), "not a table"),
        (pack(b'{"a":{},"a":{}}'), "twice"),
        (pack({"a": 1}), "no dtype"),
        (pack({"a": {"dtype": "F32"}}), "no dtype, shape"),
        (pack({"a": entry("Q9")}, bytes(24)), "unknown type, 'Q9'"),
        (pack({"a": entry(["F32"])}, bytes(24)), "unknown type"),
        (pack({"a": entry(shape=(-2, -3))}, bytes(24)), "no valid shape"),
        (pack({"a": entry(shape=(2.0, 3))}, bytes(24)), "no valid shape"),
        (pack({"a": entry(shape=(True, 6))}, bytes(24)), "no valid shape"),
        (pack({"a": entry(shape=[1] * 1000 + [6])}, bytes(24)), "no valid shape"),
        (pack({"a": entry(shape=(2**40, 2**40))}, bytes(24)), "needs .* bytes but has 24"),
        (pack({"a": entry(shape=(2**61, 2**61, 0), offsets=(0, 8))}, bytes(8)), "needs 0 bytes but has 8"),
        (pack({"a": entry(offsets=(24, 0))}, bytes(24)), "needs 24 bytes but has -24"),
        (pack({"a": entry(offsets=(0, 24, 48))}, bytes(24)), "no valid data_offsets"),
        (pack({"a": entry(offsets=(-24, 0))}, bytes(24)), "no valid data_offsets"),
        (pack({"a": entry(offsets=(8, 32))}, bytes(24)), "starts at byte"),
        (pack({"a": entry(), "b": entry()}, bytes(24)), "starts at byte"),
        (pack({"a": entry(), "b": entry(offsets=(12, 36))}, bytes(36)), "starts at byte"),
        (pack({"a": entry()}, bytes(23)), "end at byte"),
        (pack({"a": entry()}, bytes(25)), "end at byte"),
        (pack({"line\nbreak\ud800": entry()}, bytes(25)), "end at byte"),
        (pack({"line\nbreak\ud800" * 99: 7}), "no dtype"),
    ],
)
def test_a_file_that_lies_about_itself_is_refused(content, words, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(BaseModelError, match=words) as caught:
        file_entries(path)
    assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    tracemalloc.stop()
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500 + len(str(path))


def test_every_cut_is_refused(tmp_path, whole):
    path = tmp_path / "model.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(file_entries, path, r"model\.safetensors")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_file_is_refused_or_read_within_its_length(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("changed") / "model.safetensors"
    save_file(TENSORS, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    passes_or_is_refused(lambda p: [read(e) for e in file_entries(p).values()], path)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"a": "../model-1.safetensors"}, "not a safetensors file in the same folder"),
        ({"a": "/etc/passwd"}, "not a safetensors file in the same folder"),
        ({"a": "sub/model.safetensors"}, "not a safetensors file in the same folder"),
        ({"a": "..\\model.safetensors"}, "not a safetensors file in the same folder"),
        ({"a": "x\0.safetensors"}, "not a safetensors file in the same folder"),
        ({"a": "pytorch_model.bin"}, "not a safetensors file in the same folder"),
        ({"a": ".."}, "not a safetensors file in the same folder"),
        ({"a": "model-2.safetensors"}, "missing"),
        (
            {"a": "model-1.safetensors", "z": "model-1.safetensors"},
            "1 tensors that are not in their files, the first is 'z'",
        ),
        ({"a": 7}, "no weight_map"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
        (None, "no weight_map"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(where, words, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for place in (folder / "model-1.safetensors", tmp_path / "model-1.safetensors"):
        save_file(TENSORS, place)
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    refused(entries, folder, words)


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[" * 100_000, b"7", b'{"weight_map": {"a": "b"', b'{"weight_map": 1, "weight_map": 2}']
)
def test_an_index_that_is_no_json_is_refused(content, tmp_path):
    (tmp_path / INDEX).write_bytes(content)
    refused(entries, tmp_path, "index")


def test_a_folder_without_safetensors_has_none(tmp_path):
    assert entries(tmp_path) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("calibration", ["none", "own"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            "such files are pickles, which are never opened",
        ),
        (
            lambda f: (f / "adapter_config.json").write_text('{"base_model_name_or_path": "somewhere/else"}'),
            "holds an adapter",
        ),
        (lambda f: edit(f, transformers_weights="adapter_model.bin"), "names other weights"),
        (lambda f: edit(f, num_hidden_layers=10**9), "asks for 1000000000 layers, but the files hold only"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), r"config\.json"),
        (lambda f: (f / "config.json").write_text("[]"), "a JSON object is expected"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-5]),
            "complete safetensors",
        ),
        (lambda f: edit(f, hidden_size=2**40), "cannot load the base model"),
    ],
)
def test_a_folder_that_leads_elsewhere_or_is_damaged_is_refused(damage, words, calibration, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "base")
    damage(tmp_path / "base")
    with pytest.raises(BaseModelError, match=words) as caught:
        load_base(Asked(str(tmp_path / "base"), block_size=32, calibration=calibration))
    assert len(str(caught.value).splitlines()) == 1


def edit(folder: Path, **changed: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory) -> bytes:
    """A small GGUF with entries and tensors of several types, by the gguf library."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a", "bc", "<end>"])
    writer.add_token_scores([0.5, 1.0, 2.0])
    writer.add_bool("some.flag", True)
    writer.add_tensor("one.weight", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.add_tensor("two.weight", np.zeros((3, 18), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("three.bias", np.ones(5, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_a_whole_gguf_passes(tmp_path, gguf_bytes):
    (tmp_path / "tiny.gguf").write_bytes(gguf_bytes)
    read_index(tmp_path / "tiny.gguf")


def test_every_cut_of_a_gguf_is_refused(tmp_path, gguf_bytes):
    path = tmp_path / "tiny.gguf"
    last = len(gguf_bytes) - 32  # the writer may fill up behind the last tensor
    for length in range(last):
        path.write_bytes(gguf_bytes[:length])
        refused(read_index, path, r"tiny\.gguf is not a complete GGUF file")


def head(entries_: int = 0, tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries_)


def text(name: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name


def tensor(name: bytes, shape=(32,), kind=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (head(version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (head(2**60), "truncated"),
        (head(0, 2**60), "truncated"),
        (head(1) + struct.pack("<Q", 2**63), "a name has 9223372036854775808 bytes"),
        (head(1) + text(b"a") + struct.pack("<I", 99), "an entry has the unknown type 99"),
        (head(1) + text(b"a") + struct.pack("<IQ", 8, 2**62), "truncated"),
        (head(1) + text(b"a") + struct.pack("<IIQ", 9, 4, 2**62), "lists have more than"),
        (
            head(1) + text(b"a") + struct.pack("<IIQ", 9, 0, MOST_ELEMENTS + 1) + bytes(MOST_ELEMENTS + 1),
            "lists have more than",
        ),
        (head(1) + text(b"a") + struct.pack("<IIQ", 9, 9, 7), "a list has the unknown type 9"),
        (head(1) + text(b"general.alignment") + struct.pack("<II", 4, 0), "alignment 0 is invalid"),
        (head(1) + text(b"general.alignment") + struct.pack("<II", 4, 24), "alignment 24 is invalid"),
        (head(0, 1) + tensor(b"a", (2**40, 2**40, 2**40, 2**40)), "truncated"),
        (head(0, 1) + text(b"a") + struct.pack("<I", 2**31), "2147483648 dimensions"),
        (head(0, 1) + tensor(b"a", kind=250) + bytes(200), "unknown type, 250"),
        (head(0, 1) + tensor(b"a", (33,), kind=2) + bytes(200), "not a multiple of the block 32"),
        (head(0, 1) + tensor(b"a", offset=2**60) + bytes(200), "truncated"),
        (head(0, 2) + tensor(b"a") + tensor(b"b", offset=64) + bytes(400), "overlaps another tensor"),
        (head(0, 2) + tensor(b"a") + tensor(b"a", offset=128) + bytes(400), "have the same name"),
        (head(0, 2) + tensor(b"a\n\xff") + tensor(b"b\n\xff", offset=64) + bytes(400), "overlaps another tensor"),
    ],
)
def test_a_gguf_that_lies_about_itself_is_refused(content, words, tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(content)
    refused(read_index, path, words)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_gguf_is_refused_or_lies_within_its_length(tmp_path_factory, gguf_bytes, data):
    path = tmp_path_factory.mktemp("changed") / "tiny.gguf"
    content = bytearray(gguf_bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    passes_or_is_refused(read_index, path)


@pytest.fixture(scope="module")
def kept_base(folder, tmp_path_factory):
    model = tiny("llama")
    quantise_model(model, Grid(32, False))
    place = tmp_path_factory.mktemp("kept") / "base"
    kept.keep(
        BaseModel(
            reference="tiny",
            model=model,
            tokenizer=AutoTokenizer.from_pretrained(folder),
            fingerprint=fingerprint(model),
            block_size=32,
            symmetric=False,
            parameters=1234,
            calibration="none",
        ),
        place,
    )
    return place


def test_a_kept_base_that_was_cut_or_changed_anywhere_is_refused(kept_base, tmp_path):
    random = np.random.default_rng(0)
    shutil.copytree(kept_base, copy := tmp_path / "base")
    assert kept.open_kept(copy, "tiny").parameters == 1234
    for file in sorted(f for f in copy.iterdir() if f.is_file()):
        whole = file.read_bytes()
        header = 8 + int.from_bytes(whole[:8], "little") if file.name == kept.WEIGHTS else 0
        for i in range(16):
            content = bytearray(whole)
            content[int(random.integers(header if i % 2 else 0, len(content)))] ^= int(random.integers(1, 256))
            for damaged, in_header in (
                (bytes(content), not i % 2 and header),
                (whole[: int(random.integers(len(whole)))], False),
            ):
                file.write_bytes(damaged)
                (passes_or_is_refused if in_header else refused)(lambda path: kept.open_kept(path, "tiny"), copy)
        file.write_bytes(whole)
    kept.open_kept(copy, "tiny")
    (copy / kept.SEAL).unlink()
    refused(lambda path: kept.open_kept(path, "tiny"), copy)


def test_a_rotary_table_that_was_changed_is_noticed(kept_base, tmp_path):
    shutil.copytree(kept_base, copy := tmp_path / "base")
    found = file_entries(copy / kept.WEIGHTS)["model.rotary_emb.inv_freq"]
    content = bytearray((copy / kept.WEIGHTS).read_bytes())
    content[found.start + 2] ^= 1
    (copy / kept.WEIGHTS).write_bytes(content)
    refused(lambda path: kept.open_kept(path, "tiny"), copy, "has changed since it was written")
