"""Folders are whole or absent, at every moment: replaced in one step, leftovers of the dead removed, the living left
alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import qia3.storage as storage
from qia3.bundle.folder import linked_copy, whole_or_absent
from qia3.errors import BundleError, StorageError
from qia3.storage import exchange, locked, made_once, remove_leftovers, replaced

ROOT = Path(__file__).parents[1]


def fill(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(text)
    return folder


def text(folder: Path) -> str:
    return (folder / "manifest.json").read_text()


def process(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch):
    if request.param == "two renames":
        monkeypatch.setattr(storage, "exchange", lambda one, other: False)
    return request.param


def test_an_exchange_is_one_step(tmp_path):
    one, other = fill(tmp_path / "one", "1"), fill(tmp_path / "other", "2")
    if not exchange(one, other):
        pytest.skip("no exchange on this system")
    assert (text(one), text(other)) == ("2", "1")


def test_the_older_folder_stays_until_the_new_one_is_whole(tmp_path, way):
    target = fill(tmp_path / "b", "old")
    with replaced(target) as scratch:
        fill(scratch, "new")
        assert text(target) == "old"
    assert text(target) == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_failure_leaves_the_older_folder_and_nothing_else(tmp_path, way):
    target = fill(tmp_path / "b", "old")
    with pytest.raises(ZeroDivisionError), replaced(target) as scratch:
        1 // len(fill(scratch, "").name[:0])
    assert text(target) == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_bundle_that_cannot_be_read_back_is_not_published(tmp_path, way):
    target = fill(tmp_path / "b", "old")

    def refuse(folder: Path) -> None:
        raise BundleError(f"{folder} is damaged")

    told = pytest.raises(BundleError, match=f"the new folder is damaged; nothing was published, and {target}")
    with told, whole_or_absent(target, refuse) as scratch:
        fill(scratch, "new")
    assert text(target) == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_link_to_a_bundle_stays_a_link(tmp_path):
    fill(tmp_path / "far" / "b", "old")
    (tmp_path / "b").symlink_to(tmp_path / "far" / "b")
    with replaced(tmp_path / "b") as scratch:
        fill(scratch, "new")
    assert (tmp_path / "b").is_symlink()
    assert text(tmp_path / "far" / "b") == "new"


@pytest.mark.parametrize("moment", ["written", "renamed away"])
def test_what_a_killed_process_left_is_gone_after_the_next(tmp_path, moment):
    """`renamed away`: killed between the two renames of a system without an exchange. The older folder comes back."""
    target = fill(tmp_path / "b", "old")
    killed = process(
        """
        import os, signal, sys
        from pathlib import Path
        import qia3.storage as storage
        target, moment = Path(sys.argv[1]), sys.argv[2]
        storage.exchange = lambda one, other: False
        if moment == "renamed away":
            rename = Path.rename
            def once(self, to):
                rename(self, to)
                os.kill(os.getpid(), signal.SIGKILL)
            Path.rename = once
        with storage.replaced(target) as scratch:
            (scratch / "manifest.json").write_text("new")
            if moment == "written":
                os.kill(os.getpid(), signal.SIGKILL)
        """,
        target,
        moment,
    )
    assert killed.wait() == -9
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(target)
    assert [p.name for p in tmp_path.iterdir()] == ["b"] or moment == "renamed away"
    assert text(target) == "old"
    remove_leftovers(target)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    target = fill(tmp_path / "b", "old")
    living = process(
        """
        import sys, time
        from pathlib import Path
        import qia3.storage as storage
        with storage.replaced(Path(sys.argv[1])) as scratch:
            (scratch / "manifest.json").write_text("new")
            print("ready", flush=True)
            time.sleep(60)
        """,
        target,
    )
    try:
        assert living.stdout is not None
        living.stdout.readline()
        with replaced(target) as scratch:
            fill(scratch, "mine")
        left = [p for p in tmp_path.iterdir() if p.name != "b"]
        assert [text(p) for p in left] == ["new"]
    finally:
        living.kill()
        living.wait()
    assert text(target) == "mine"


def test_folders_of_others_are_no_leftovers(tmp_path):
    kept = [".b.notes", ".b.1.x.tmpl", ".c.1.x.tmp", ".b.x.y.tmp", "b.1.x.tmp"]
    for name in kept:
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


def test_what_is_made_once_is_the_first_one(tmp_path):
    with made_once(tmp_path / "b") as scratch:
        fill(tmp_path / "b", "first")
        fill(scratch, "second")
    assert text(tmp_path / "b") == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_folder_in_use_names_the_process(tmp_path):
    holder = process(
        """
        import sys, time
        from pathlib import Path
        from qia3.storage import locked
        with locked(Path(sys.argv[1]), "wait"):
            print("ready", flush=True)
            time.sleep(60)
        """,
        tmp_path / "work",
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        told = rf"work is in use by another process \({holder.pid}\); wait for it"
        with pytest.raises(StorageError, match=told), locked(tmp_path / "work", "wait for it"):
            pass
    finally:
        holder.kill()
        holder.wait()
    with locked(tmp_path / "work", "wait for it"):
        (tmp_path / "work" / "x").touch()
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["x"]


def test_an_empty_work_folder_goes_with_its_lock(tmp_path):
    with locked(tmp_path / "work", "wait"):
        assert (tmp_path / "work").is_dir()
    assert not (tmp_path / "work").exists()


def test_a_linked_copy_has_every_file_but_those_that_are_written_anew(tmp_path):
    bundle = fill(tmp_path / "b", "m")
    (bundle / "onnx").mkdir()
    (bundle / "onnx" / "report.md").write_text("not the bundle's report")
    (bundle / "report.md").write_text("r")
    (bundle / "stray").write_text("not the bundle's")
    linked_copy(bundle, tmp_path / "copy", ["onnx/report.md", "report.md", "manifest.json"])
    assert [p.relative_to(tmp_path / "copy").as_posix() for p in (tmp_path / "copy").rglob("*") if p.is_file()] == [
        "onnx/report.md"
    ]
    assert (tmp_path / "copy/onnx/report.md").stat().st_ino == (bundle / "onnx/report.md").stat().st_ino


def test_an_old_unlocked_folder_of_a_reused_process_number_is_a_leftover(tmp_path):
    old = tmp_path / f".b.{os.getppid()}.x.tmp"
    old.mkdir()
    remove_leftovers(tmp_path / "b")
    assert old.is_dir()
    os.utime(old, (time.time() - 3600,) * 2)
    remove_leftovers(tmp_path / "b")
    assert not old.exists()
