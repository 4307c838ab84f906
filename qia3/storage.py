"""Writing where the disk may be full or closed: one clear line, whatever the library that was writing made of it.

Python says ENOSPC. torch, safetensors, tokenizers and ONNX Runtime write by themselves and each raises something else,
so the disk is asked.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qia3.errors import QIA3Error, StorageError

FULL_BYTES = 1 << 18  # less than this is left when a write of many kilobytes has just failed
CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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
    """A scratch folder beside `target` that becomes it when the block ends well, unless another process was first;
    whole or absent.

    Raises StorageError as `writing` does.
    """
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{target.name}."))
        try:
            yield scratch
            try:
                scratch.rename(target)
            except OSError:  # not empty: another process has renamed its own in the meantime
                if not target.is_dir():
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _free_bytes(folder: Path) -> int:
    """Bytes left on the disk of `folder`, or of the nearest parent that exists."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(place).free
