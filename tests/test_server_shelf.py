"""Adapters in memory and on disk: as many bytes as are allowed, those that were used last, and each the same when read again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import tiny_bundle as tiny

from qia3.bundle.adapter import Adapter
from qia3.bundle.opened import Bundle
from qia3.bundle.peft import write_peft
from qia3.errors import AdapterError, ConfigError
from qia3.server.place import Folder, PlaceError, place_of
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
        with pytest.raises(AdapterError, match=r"^memory://shelf/a1 is not a PEFT checkpoint"):
            shelf.add("a1")
        memory.rm("shelf/a1", recursive=True)
        with pytest.raises(KeyError):
            shelf.add("a1")
        assert set(states(Shelf(bundle, place_of(folder.as_uri())))) == {f"a{seed}" for seed in range(6)}
    finally:
        memory.rm("shelf", recursive=True)
    file = (folder / "a1" / "adapter_config.json").as_uri()
    words = {"memory://nowhere": "there is nothing at", "nosuch://a": "cannot be opened", "nowhere": "not a folder"}
    words["memory://"] = "names no folder"
    for nowhere, why in {**words, file: "not a folder"}.items():
        with pytest.raises(ConfigError, match=why):
            place_of(nowhere)


class Slow(Folder):
    """A folder whose adapter a1 takes as long to come as a test wants; it counts how often it is listed."""

    def __init__(self, path):
        super().__init__(path)
        self.asked, self.comes, self.listings = threading.Event(), threading.Event(), 0

    def names(self):
        self.listings += 1
        return super().names()

    @contextmanager
    def files(self, name):
        if name == "a1":
            self.asked.set()
            assert self.comes.wait(30)
        with super().files(name) as folder:
            yield folder


def test_a_slow_read_delays_nobody_else(bundle, folder):
    place = Slow(folder)
    shelf = Shelf(bundle, place)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(shelf.get, "a1") for _ in range(2)]
        assert place.asked.wait(30)
        shelf.get("a2")
        shelf.add("a3")
        shelf.remove("a4")
        assert states(shelf) == {"a0": "on disk", "a1": "on disk", "a2": "loaded", "a3": "loaded", "a5": "on disk"}
        place.comes.set()
        (_, one), (_, other) = (each.result(30) for each in waiting)
    assert one is other  # read once
    assert {e.name: e.hits for e in shelf.listed()}["a1"] == 2


def test_one_that_is_removed_while_it_is_read_does_not_come_back(bundle, folder):
    place = Slow(folder)
    shelf = Shelf(bundle, place)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(shelf.get, "a1")
        assert place.asked.wait(30)
        shelf.remove("a1")
        place.comes.set()
        _, vectors = waiting.result(30)  # this request began before
    for name, vector in tiny.random_vectors(1).items():
        assert np.array_equal(vectors[name], vector)
    assert "a1" not in states(shelf)
    with pytest.raises(KeyError):
        shelf.get("a1")
    assert shelf.add("a1").state == "loaded"
    assert sum(entry.nbytes for entry in shelf.listed()) == EACH


def test_the_folder_is_not_listed_for_one_name(bundle, folder):
    place = Slow(folder)
    shelf = Shelf(bundle, place)
    (folder / "a5").rename(folder / "new")
    shelf.add("a0")
    assert shelf.get("new")[0].name == "new"
    with pytest.raises(KeyError):
        shelf.get("nobody")
    assert place.listings == 1
    shelf.look()
    assert set(states(shelf)) == {"a0", "a1", "a2", "a3", "a4", "new"}


def test_requests_keep_the_earlier_one_until_the_new_one_is_read_and_if_it_is_refused(bundle, folder):
    shelf = Shelf(bundle, Folder(folder))
    before = shelf.get("a0")[1]
    weights = folder / "a0" / "adapter_model.safetensors"
    whole, other = weights.read_bytes(), (folder / "a1" / "adapter_model.safetensors").read_bytes()
    weights.write_bytes(whole[:-8])
    with pytest.raises(AdapterError, match="cannot be read"):
        shelf.add("a0")
    (entry,) = (e for e in shelf.listed() if e.name == "a0")
    assert (entry.state, "cannot be read" in entry.error) == ("loaded", True)
    assert shelf.get("a0")[1] is before
    weights.write_bytes(other)
    entry = shelf.add("a0")
    assert (entry.state, entry.error, entry.hits) == ("loaded", None, 2)
    after = shelf.get("a0")[1]
    for name, vector in tiny.random_vectors(1).items():
        assert np.array_equal(after[name], vector)
    assert sum(e.nbytes for e in shelf.listed()) == EACH


def test_a_folder_that_cannot_be_read_now_is_told_apart_from_a_bad_adapter(bundle, folder):
    shelf = Shelf(bundle, Folder(folder))
    folder.rename(folder.with_name("away"))
    with pytest.raises(PlaceError, match="many cannot be listed: "):
        shelf.look()
    folder.with_name("away").rename(folder)
    assert shelf.get("a0")[0].name == "a0"
