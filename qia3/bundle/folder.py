"""A bundle's folder: whole or absent, and read back before it takes an older one's place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qia3.bundle.layout import MANIFEST, WRITTEN_ANEW
from qia3.errors import QIA3Error, StorageError
from qia3.storage import replaced


@contextmanager
def whole_or_absent(target: Path, read_back: Callable[[Path], None]) -> Iterator[Path]:
    """A scratch folder that becomes the bundle `target` if the block succeeds and `read_back` accepts it.

    An older bundle at `target` is replaced only at that moment; a folder that is not a bundle is never replaced.
    `read_back` raises what its reader would raise; the older bundle is then left as it was.
    """
    check_place(target)
    with replaced(target) as scratch:
        yield scratch
        try:
            read_back(scratch)
        except QIA3Error as error:
            told = str(error).replace(str(scratch), "the new folder")
            raise type(error)(f"{told}; nothing was published, and {target} is as it was") from error


def linked_copy(bundle: Path, scratch: Path, files: Iterable[str]) -> None:
    """Copies these files of a bundle to another folder on the same disk, as hard links where possible.

    Files that are rewritten after every change are left out, and files that the other folder already has.
    """
    for name in sorted(set(files) - set(WRITTEN_ANEW)):
        file, place = (bundle / name).resolve(), scratch / name
        if place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, place)
        except OSError:
            shutil.copy2(file, place)


def check_place(target: Path) -> None:
    """Raises StorageError if something that is not a bundle is there: it is never replaced."""
    if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(f"{target} exists and is not a bundle; choose another output or move it away")


def is_or_was_bundle(path: Path) -> bool:
    """Whether it is a bundle, a broken one, or a folder that we know nothing else about; not a model."""
    is_model = (path / "config.json").exists() and not (path / "onnx").is_dir()
    return path.is_dir() and ((path / MANIFEST).exists() or not is_model)
