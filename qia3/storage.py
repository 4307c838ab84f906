"""Writing folders that are whole or absent, whatever happens: a full or closed disk, a kill, another process.

A folder is written as a scratch folder beside its place, `.NAME.PID.xxxx.tmp`, and takes that place at the end in one
step of the file system: a rename where nothing is there, an exchange of the two names (Linux: renameat2 with
RENAME_EXCHANGE) where an older folder is. So a kill at any moment leaves the old folder or the new one. Where the
system has no exchange the older one is moved away first, to `.NAME.PID.xxxx.old`; killed between the two renames, the
next writer puts it back.

A scratch folder is locked (flock on the folder itself) for as long as its process lives: the next writer removes what
dead ones left, and nothing of a living one.

A full disk is one clear line, whatever the library that was writing made of it: Python says ENOSPC, but torch,
safetensors, tokenizers and ONNX Runtime write by themselves and each raises something else, so the disk is asked.
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
except ImportError:  # Windows: no locks, and leftovers are known by their process alone
    fcntl = None  # type: ignore[assignment]

FULL_BYTES = 1 << 18  # less than this is left when a write of many kilobytes has just failed
CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SCRATCH, OLD = ".tmp", ".old"
YOUNG = 60  # seconds in which an unlocked folder of a living process may still be about to be locked
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def cache_folder() -> Path:
    """What is kept to be made once: fetched weights, quantised bases, forecasts. Where caches belong on this system."""
    import platformdirs  # which a device that only runs a bundle does without

    return Path(os.environ.get("QIA3_CACHE") or platformdirs.user_cache_path("qia3", appauthor=False))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around code that writes in `folder`.

    Raises StorageError if the disk is full or the folder is closed; other failures pass through.
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
    """A scratch folder beside `target` that becomes it when the block ends well, unless another process was first.

    Raises StorageError as `writing` does.
    """
    with _scratch_beside(target) as scratch:
        yield scratch
        _flush(scratch)
        try:
            scratch.rename(target)
        except OSError:  # not empty: another process has renamed its own in the meantime
            if not target.is_dir():
                raise


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """The same, but it takes the place of a folder that is there: at the end, in one step. Until then that one stays.

    Raises StorageError as `writing` does.
    """
    target = target.resolve()  # the folder is replaced, not a link to it; and "." has no name of its own
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
    """Keeps other processes out of a folder that is worked in for long. Raises StorageError that names the process.

    Nothing of the lock stays in the folder, nor the folder where nothing else was put into it.
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
            with contextlib.suppress(OSError):  # it holds something: what was worked on
                path.unlink()
                folder.rmdir()


@contextmanager
def alone(target: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Waits until no other process changes the folder `target`, which may not be there, and keeps them out meanwhile.

    What is read before a folder is replaced has to be read within: two that read the same and then replace it would
    lose what the first one wrote. `waiting` is told once, in words. Nothing of the lock stays behind.
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
        file.close()  # its owner took the name away with its lock
        file = path.open("a")
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def exchange(one: Path, other: Path) -> bool:
    """Gives two folders each other's name in one step. False, and nothing is done, where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2  # glibc 2.28, musl 1.2.6
    except (OSError, AttributeError):
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):  # an older kernel, or a file system without it
        return False
    raise OSError(code, os.strerror(code), str(other))


def remove_leftovers(target: Path) -> None:
    """Takes away what dead processes left of writing `target`, and puts back what one of them had moved away."""
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
    """A new folder beside `target`, locked while the block runs; removed where it is still there afterwards."""
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
    """A lock on a folder; none where the system has no such locks."""
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
    """Takes the lock of an open file, unless another process has it (`wait`: when it has let go)."""
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
    """Whether a scratch folder belongs to a process that lives: it holds the lock, or has not come to it yet."""
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
    """Has every file of a folder, and its names, on the disk: a rename must not overtake what it renames."""
    for place in [*folder.rglob("*"), folder]:
        if place.is_file() and not place.is_symlink():
            with place.open("rb") as file, contextlib.suppress(OSError):
                os.fsync(file.fileno())
        elif place.is_dir():
            _flush_names(place)


def _flush_names(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Windows opens no folders
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _free_bytes(folder: Path) -> int:
    """Bytes left on the disk of `folder`, or of the nearest parent that exists."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(place).free
