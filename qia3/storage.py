"""Writes folders that are complete or absent, whatever happens: a full or failing disk, a kill, another process.

A folder is written as a scratch folder beside its place, `.NAME.PID.xxxx.tmp`, and takes that place at the end in one
file system operation: a rename if nothing is there, an exchange of the two names (Linux: renameat2 with
RENAME_EXCHANGE) if an older folder is. So a kill at any moment leaves the old folder or the new one. If the system has
no exchange, the older one is first moved to `.NAME.PID.xxxx.old`; after a kill between the two renames, the next writer
moves it back.

A scratch folder is locked (flock on the folder itself) while its process lives: the next writer removes what dead
processes left, and nothing of a living one.

A full disk gives one clear line, whichever library was writing: Python reports ENOSPC, but torch, safetensors,
tokenizers and ONNX Runtime write by themselves and each raises something else, so the free space is checked.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qia3.errors import QIA3Error, StorageError

try:
    import fcntl
except ImportError:  # Windows: no locks; leftovers are recognised by their process only
    fcntl = None  # type: ignore[assignment]

FULL_BYTES = 1 << 18  # if less than this is free after a failed write, the disk counts as full
CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SCRATCH, OLD = ".tmp", ".old"
YOUNG = 60  # seconds in which an unlocked folder of a living process may still be about to be locked
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def cache_folder() -> Path:
    """The cache folder for downloaded weights, quantised bases and forecasts, in the system's usual place."""
    import platformdirs  # not installed on a device that only runs a bundle

    return Path(os.environ.get("QIA3_CACHE") or platformdirs.user_cache_path("qia3", appauthor=False))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Wraps code that writes in `folder`.

    Raises StorageError if the disk is full or the folder is not writable; other failures pass through.
    """
    try:
        yield
    except QIA3Error:
        raise
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        if code in FULL or _free_bytes(folder) < FULL_BYTES:
            raise StorageError(
                f"the disk is full: {folder} could not be written; free some space and run the same command again"
            ) from error
        if isinstance(error, OSError) and code in CLOSED:
            raise StorageError(f"cannot write {error.filename or folder}: {error.strerror}") from error
        raise


@contextmanager
def made_once(target: Path) -> Iterator[Path]:
    """A scratch folder beside `target` that becomes it if the block succeeds, unless another process was first.

    Raises StorageError like `writing`.
    """
    with _scratch_beside(target) as scratch:
        yield scratch
        _flush(scratch)
        try:
            scratch.rename(target)
        except OSError:  # not empty: another process was faster
            if not target.is_dir():
                raise


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """The same, but it replaces an existing folder: at the end, in one step. Until then the old one stays.

    Raises StorageError like `writing`.
    """
    target = target.resolve()  # replaces the folder, not a link to it; and "." has no name
    with _scratch_beside(target) as scratch:
        yield scratch
        scratch.chmod(0o755)
        _flush(scratch)
        if not target.exists():
            scratch.rename(target)
        elif not exchange(scratch, target):
            _move_away_and_in(scratch, target)
        _flush_names(target.parent)


@contextmanager
def locked(folder: Path, remedy: str) -> Iterator[None]:
    """Keeps other processes out of a folder during long work. Raises StorageError that names the process.

    The lock leaves nothing in the folder, and removes the folder if nothing else was put into it.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ".lock"
        file = path.open("a+")
    with file:
        if not _lock(file.fileno()) or not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            file.seek(0)
            owner = file.read(20).strip()
            raise StorageError(f"{folder} is in use by another process{f' ({owner})' if owner else ''}; {remedy}")
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # not empty: it holds the work
                path.unlink()
                folder.rmdir()


@contextmanager
def alone(target: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Waits until no other process changes the folder `target`, which need not exist, and keeps others out meanwhile.

    What is read before a folder is replaced must be read inside the block: otherwise two processes could read the same
    and the second would overwrite the first one's changes. `waiting` is called once with a message. The lock leaves
    nothing behind.
    """
    target = target.resolve()
    path = target.with_name(f".{target.name}.lock")
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    told = False
    while True:
        if not _lock(file.fileno()):
            if not told:
                waiting(f"waiting for another process that changes {target}")
                told = True
            _lock(file.fileno(), wait=True)
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its owner removed the file when releasing the lock
        file = path.open("a")
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def exchange(one: Path, other: Path) -> bool:
    """Swaps the names of two folders in one step. Returns False, and does nothing, if the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2  # glibc 2.28, musl 1.2.6
    except (OSError, AttributeError):
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):  # an older kernel, or a file system without support
        return False
    raise OSError(code, os.strerror(code), str(other))


def remove_leftovers(target: Path) -> None:
    """Removes leftovers of dead processes that wrote `target`, and restores a folder that one of them had moved away."""
    name = re.escape(target.name)
    pattern = re.compile(rf"\.{name}\.(\d+)\.\w+({re.escape(SCRATCH)}|{re.escape(OLD)})")
    for place in sorted(target.parent.iterdir()) if target.parent.is_dir() else []:
        found = pattern.fullmatch(place.name)
        if found is None or not place.is_dir() or _in_use(place, int(found[1])):
            continue
        if found[2] == OLD and not target.exists():
            place.rename(target)
        else:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _scratch_beside(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, locked while the block runs; removed if it is still there afterwards."""
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        name = f".{target.name}.{os.getpid()}."
        scratch = Path(tempfile.mkdtemp(prefix=name, suffix=SCRATCH, dir=target.parent))
    try:
        with writing(target), _held(scratch):
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move_away_and_in(new: Path, target: Path) -> None:
    """Two renames, for systems without an exchange."""
    old = new.with_name(new.name.removesuffix(SCRATCH) + OLD)
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """A lock on a folder; does nothing if the system has no such locks."""
    if fcntl is None:
        yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        _lock(opened)
        yield
    finally:
        os.close(opened)


def _lock(opened: int, wait: bool = False) -> bool:
    """Takes the lock of an open file, unless another process has it (`wait`: waits until it is released)."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(opened, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _in_use(folder: Path, process: int) -> bool:
    """Whether a scratch folder belongs to a process that lives: it holds the lock, or is about to take it."""
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        if not _lock(opened):
            return True
        return process != os.getpid() and _lives(process) and time.time() - os.fstat(opened).st_mtime < YOUNG
    finally:
        os.close(opened)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _flush(folder: Path) -> None:
    """Flushes every file of a folder, and its directory entries, to disk before the rename."""
    for place in [*folder.rglob("*"), folder]:
        if place.is_file() and not place.is_symlink():
            with place.open("rb") as file, contextlib.suppress(OSError):
                os.fsync(file.fileno())
        elif place.is_dir():
            _flush_names(place)


def _flush_names(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Windows cannot open folders
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _free_bytes(folder: Path) -> int:
    """Free bytes on the disk of `folder`, or of its nearest existing parent."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(place).free
