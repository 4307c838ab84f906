"""A kept base is found by what it was made from: copies, other times and other machines are the same, another byte is
another base; a folder that is a kept base may be named itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from tiny_build import write_base
from tiny_quantised import write_gguf

from qia3 import storage
from qia3.base import identity, kept, load
from qia3.base.identity import digest
from qia3.base.load import Asked, load_base
from qia3.errors import BaseModelError
from qia3.ia3.mix import named


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache in which every base is kept."""
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(load, "LEAST_KEPT", 0)
    return tmp_path / "cache"


@pytest.fixture
def made_once(monkeypatch):
    """Makes the base, and then fails where it would be made again."""

    def make(folder, **asked):
        made = load_base(Asked(str(folder), block_size=32, **asked))
        monkeypatch.setattr(load, "quantise_model", None)
        return made

    return make


def touched(folder: Path) -> Path:
    for file in folder.iterdir():
        os.utime(file, (1, 1))
    return folder


def fetched(folder: Path) -> Path:
    """As another machine's download has it: a page of the hub's beside it, files as links into a cache."""
    other = folder.with_name("snapshot")
    other.mkdir()
    for file in folder.iterdir():
        shutil.copy(file, other.with_name(f"blob-{file.name}"))
        (other / file.name).symlink_to(other.with_name(f"blob-{file.name}"))
    (other / "README.md").write_text("a page")
    return other


@pytest.mark.parametrize(
    "moved", [touched, lambda f: shutil.copytree(f, f.with_name("copy"), copy_function=shutil.copy), fetched]
)
def test_a_kept_base_is_found_wherever_its_files_lie_and_whenever_they_were_written(moved, cache, made_once, tmp_path):
    folder = write_base(tmp_path / "base")
    made = made_once(folder)
    assert load_base(Asked(str(moved(folder)), block_size=32)).fingerprint == made.fingerprint


def test_a_gguf_file_under_another_name_is_the_same(cache, made_once, tmp_path):
    file, _ = write_gguf(tmp_path / "base")
    for beside in identity.BESIDE_GGUF:  # transformers reads these for a GGUF file, too
        (file.parent / beside).unlink(missing_ok=True)
    made = made_once(file)
    other = tmp_path / "elsewhere" / "another.gguf"
    other.parent.mkdir()
    shutil.copy(file, other)
    assert load_base(Asked(str(other), block_size=32)).fingerprint == made.fingerprint


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_one_byte_more_or_another_is_another_base(file, cache, made_once, tmp_path):
    folder = write_base(tmp_path / "base")
    made_once(folder)
    content = (folder / file).read_bytes()
    before = (folder / file).stat()
    changed = content[:-1] + bytes([content[-1] ^ 1]) if file.endswith("safetensors") else content + b"\n"
    (folder / file).write_bytes(changed)
    os.utime(folder / file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(TypeError):
        load_base(Asked(str(folder), block_size=32))


def test_other_settings_are_another_base(cache, made_once, tmp_path):
    folder = str(write_base(tmp_path / "base"))
    made_once(folder)
    for other in ({"mix": named(("head",))}, {"grid": "nf4"}, {"calibration": "own"}):
        with pytest.raises(TypeError):
            load_base(Asked(folder, block_size=32, **other))
    for block, symmetric in ((16, False), (32, True)):
        with pytest.raises(TypeError):
            load_base(Asked(folder, block_size=block, symmetric=symmetric))


def test_a_kept_base_that_was_carried_to_another_machine_is_found_there(cache, made_once, tmp_path, monkeypatch):
    folder = write_base(tmp_path / "base")
    made = made_once(folder)
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path / "there"))
    shutil.copytree(cache / "bases", tmp_path / "there/bases", copy_function=shutil.copy)
    other = shutil.copytree(folder, tmp_path / "elsewhere", copy_function=shutil.copy)
    assert load_base(Asked(str(other), block_size=32)).fingerprint == made.fingerprint


def test_a_build_file_may_name_a_kept_base_made_with_its_settings(cache, made_once, tmp_path):
    made = made_once(write_base(tmp_path / "base"), mix=named(("head",)))
    folder = tmp_path / "carried"
    shutil.copytree(next((cache / "bases").iterdir()), folder)
    shutil.rmtree(tmp_path / "base")
    found = load_base(Asked(str(folder), block_size=32, mix=named(("head",))))
    assert (found.fingerprint, found.eight_bit, found.reference) == (made.fingerprint, ("head",), "base")
    with pytest.raises(BaseModelError, match=r'made with block_size 32, but this build asks for 64; layers .*"head"'):
        load_base(Asked(str(folder), block_size=64))
    with pytest.raises(BaseModelError, match='calibration "none", but this build asks for "own"'):
        load_base(Asked(str(folder), block_size=32, calibration="own", mix=named(("head",))))
    facts = json.loads((folder / kept.FACTS).read_text())
    (folder / kept.FACTS).write_text(json.dumps(facts | {"block_size": 16}))
    with pytest.raises(BaseModelError, match="has changed since it was written"):
        load_base(Asked(str(folder), block_size=32, mix=named(("head",))))


def test_a_digest_is_remembered_as_long_as_the_file_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "LEAST_REMEMBERED", 0)
    monkeypatch.setattr(identity, "SETTLED", 0.05)
    file, memory = tmp_path / "weights", tmp_path / "cache" / "digests.json"
    file.write_bytes(b"one")
    digest(file, memory)
    assert not memory.exists()  # written this very moment
    time.sleep(0.1)
    assert digest(file, memory) == hashlib.sha256(b"one").hexdigest()
    times = file.stat()
    monkeypatch.setattr(identity, "_hashed", None)
    assert digest(file, memory) == hashlib.sha256(b"one").hexdigest()
    monkeypatch.undo()
    monkeypatch.setattr(identity, "LEAST_REMEMBERED", 0)
    file.write_bytes(b"two")  # in place, as long, and its time set back
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (times.st_mtime_ns, times.st_ino)
    assert digest(file, memory) == hashlib.sha256(b"two").hexdigest()
    for damaged in ("", "[", "[1]", '{"a": 1}', json.dumps({str(file): 7}), json.dumps({str(file): [[1], 2]})):
        memory.write_text(damaged)
        assert digest(file, memory) == hashlib.sha256(b"two").hexdigest()


def test_the_cache_is_where_caches_belong(tmp_path, monkeypatch):
    monkeypatch.delenv("QIA3_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if os.name == "posix" and os.uname().sysname == "Linux":
        assert storage.cache_folder() == tmp_path / "xdg" / "qia3"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert storage.cache_folder() == tmp_path / "home/.cache/qia3"
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path / "mine"))
    assert storage.cache_folder() == tmp_path / "mine"
