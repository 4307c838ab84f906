"""Adapters in memory and on disk: as many bytes as are allowed, those that were used last, and each the same when read again."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_bundle as tiny

from qia3.bundle.adapter import Adapter
from qia3.bundle.opened import Bundle
from qia3.bundle.peft import write_peft
from qia3.errors import AdapterError, ConfigError
from qia3.server.place import Folder, place_of
from qia3.server.shelf import Shelf

EACH = 4 * sum(tiny.SIZES.values())


@pytest.fixture
def bundle(tmp_path):
    return Bundle.open(tiny.write_bundle(tmp_path / "bundle"))


@pytest.fixture
def folder(tmp_path, bundle):
    for seed in range(6):
        vectors = {n: v.reshape(-1) for n, v in tiny.random_vectors(seed).items()}
        write_peft(tmp_path / "many" / f"a{seed}", Adapter(vectors, bundle.fingerprint), bundle.manifest.sites, "tiny")
    return tmp_path / "many"


def states(shelf):
    return {entry.name: entry.state for entry in shelf.listed() if not entry.own}


def test_nothing_is_read_before_it_is_asked_for(bundle, folder):
    assert set(states(Shelf(bundle, Folder(folder))).values()) == {"on disk"}


def test_those_that_were_used_last_stay_and_the_others_come_back(bundle, folder):
    shelf = Shelf(bundle, Folder(folder), memory=3 * EACH)
    for name in ("a0", "a1", "a2", "a0", "a3"):
        shelf.get(name)
    assert [n for n, state in states(shelf).items() if state == "loaded"] == ["a0", "a2", "a3"]
    assert sum(entry.nbytes for entry in shelf.listed()) == 3 * EACH
    for seed in range(6):  # whatever has been dropped, each is its own
        _, vectors = shelf.get(f"a{seed}")
        for name, vector in tiny.random_vectors(seed).items():
            assert np.array_equal(vectors[name], vector)
    assert {e.name: e.hits for e in shelf.listed()} == {"lamps": 0, "echo": 0, "a0": 3, "a1": 2, "a2": 2, "a3": 2, "a4": 1, "a5": 1}  # fmt: skip
    shelf.remove("a5")
    shelf.add("a4")
    assert sum(entry.nbytes for entry in shelf.listed()) == 2 * EACH  # a3 and a4


def test_one_stays_however_little_is_allowed(bundle, folder):
    shelf = Shelf(bundle, Folder(folder), memory=0)
    for name in ("a0", "a1"):
        shelf.get(name)
        assert [n for n, state in states(shelf).items() if state == "loaded"] == [name]


def test_an_adapter_s_vectors_are_one_block_of_memory(bundle, folder):
    _, vectors = Shelf(bundle, Folder(folder)).get("a0")
    (block,) = {id(v.base): v.base for v in vectors.values()}.values()
    assert block.nbytes == EACH


def test_a_store_s_adapters_are_those_of_a_folder(bundle, folder):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.mkdirs("shelf", exist_ok=True)
    try:
        shelf = Shelf(bundle, place_of("memory://shelf"))
        assert states(shelf) == {}
        memory.put(str(folder / "a1"), "shelf/a1", recursive=True)
        there, here = shelf.get("a1"), Shelf(bundle, Folder(folder)).get("a1")
        assert there[0] == here[0]
        assert all(np.array_equal(there[1][n], v) for n, v in here[1].items())
        memory.rm("shelf/a1/adapter_model.safetensors")
        with pytest.raises(AdapterError, match="is not a PEFT checkpoint"):
            shelf.add("a1")
        memory.rm("shelf/a1", recursive=True)
        with pytest.raises(KeyError):
            shelf.add("a1")
        assert set(states(Shelf(bundle, place_of(folder.as_uri())))) == {f"a{seed}" for seed in range(6)}
    finally:
        memory.rm("shelf", recursive=True)
    for nowhere in ("memory://nowhere", "nosuch://a", "nowhere"):
        with pytest.raises(ConfigError, match=r"is not a folder|cannot be opened"):
            place_of(nowhere)
