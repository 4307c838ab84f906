"""A bundle, opened and checked: every file is there and is byte for byte what the build wrote.

manifest.json lists every other file with its size and SHA-256. A file that is missing or changed, or that the runtime
needs but the manifest does not list, is refused; one message names them all. Other files that the manifest does not
list are ignored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from qia3.bundle.layout import MANIFEST
from qia3.bundle.manifest import ADAPTERS, FORMAT, Architecture, File, Graph, Manifest
from qia3.bundle.onnx_file import external_files
from qia3.bundle.sites import base_version
from qia3.bundle.task import Task
from qia3.errors import BundleError, shown
from qia3.parse import each_once, read_json_table

__all__ = ["ADAPTERS", "Bundle", "check_files", "read_manifest"]
AGAIN = "copy the bundle again or build it again"


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder and its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str, verify: bool = True) -> Bundle:
        """Raises BundleError if it is not a bundle, has a damaged manifest or another format, or naming every file that
        is missing or changed.

        With `verify` False, checks that read every file are skipped.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if verify:
            check_files(path, manifest)
        check_links(path, manifest)
        return cls(path, manifest)

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def mode(self) -> str:
        """ "side" or "merged"."""
        return self.manifest.mode

    @property
    def merged_task(self) -> str | None:
        return self.manifest.merged_task

    @property
    def graph(self) -> str:
        """The .onnx that gives answers, within the folder."""
        return self.manifest.main.file

    @property
    def fingerprint(self) -> str:
        return self.manifest.base.fingerprint

    @property
    def base_version(self) -> int:
        """The first 28 bits of the fingerprint, which adapters of this base carry."""
        return base_version(self.fingerprint)

    @property
    def architecture(self) -> Architecture:
        return self.manifest.architecture

    @cached_property
    def vectors(self) -> dict[str, int]:
        """Sizes by input name, of all graphs; empty when merged."""
        return {site.name: site.size for site in self.manifest.sites}

    @property
    def tasks(self) -> dict[str, Task]:
        return dict(self.manifest.tasks)

    @cached_property
    def adapters(self) -> tuple[str, ...]:
        return self.manifest.adapters

    @property
    def prefix(self) -> str:
        return self.manifest.prompt.prefix

    @property
    def suffix(self) -> str:
        return self.manifest.prompt.suffix

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        return self.manifest.stop_tokens


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest of this format or an earlier one. Raises BundleError."""
    file = path / MANIFEST
    try:
        there = file.exists()
    except (OSError, ValueError):  # not a valid file name
        there = False
    if not there:
        raise BundleError(f"{shown(path)} is not a bundle: it has no {MANIFEST}; make one with `qia3 build`")
    table = read_json_table(file, BundleError, AGAIN, pairs=each_once)
    if "format" not in table:
        raise BundleError(f"{file} is not a bundle's manifest: it has no 'format'; make one with `qia3 build`")
    version = table["format"]
    if isinstance(version, int) and version > FORMAT:
        number = version if version < 10**9 else "a later one"
        raise BundleError(f"{path} has bundle format {number}, but this version reads up to {FORMAT}; upgrade qia3")
    try:
        return Manifest.from_json(table)
    except ValueError as error:
        raise BundleError(f"{file} is damaged: {error}; {AGAIN}") from error


def check_files(path: Path, manifest: Manifest) -> None:
    """Checks presence, size and SHA-256 of every listed file, and that all files that the graphs read are listed."""
    graphs = manifest.graphs.values()
    needed = sorted({name for graph in graphs for name in (graph.file, graph.data)})
    bad = [f"{name} is not in the manifest" for name in needed if name not in manifest.files]
    bad += [complaint for name, file in manifest.files.items() if (complaint := _complaint(path, name, file))]
    if not bad:
        bad = [complaint for graph in graphs for complaint in _reads_elsewhere(path, manifest, graph)]
    if bad:
        raise BundleError(f"{path} differs from what was built: {'; '.join(bad)}; copy it again or rebuild it")


def check_links(path: Path, manifest: Manifest) -> None:
    """Refuses a data file that is a link out of the folder, which ONNX Runtime does not follow; hub caches make such
    links.
    """
    if links := sorted({graph.data for graph in manifest.graphs.values() if _leaves(path, graph)}):
        raise BundleError(
            f"{path}: {', '.join(links)} is a link to another folder, and ONNX Runtime does not follow such links; "
            f"copy the bundle with its links followed: `cp -rL {path} COPY`"
        )


def _complaint(path: Path, name: str, expected: File) -> str | None:
    try:
        file = path / name
        if not file.is_file():
            return f"{shown(name)} is missing"
        if (size := file.stat().st_size) != expected.bytes:
            return f"{shown(name)} has {size} bytes instead of {expected.bytes}"
        return None if _sha256(file) == expected.sha256 else f"{shown(name)} has changed"
    except OSError as error:
        return f"{shown(name)} cannot be read ({error.strerror})"


def _reads_elsewhere(path: Path, manifest: Manifest, graph: Graph) -> Iterator[str]:
    """Files that an .onnx reads although the manifest does not list them."""
    for location in sorted(external_files(path / graph.file)):
        name = str(PurePosixPath(graph.file).parent / location)
        if name not in manifest.files:
            yield f"{graph.file} reads {shown(name)}, which is not in the manifest"


def _leaves(path: Path, graph: Graph) -> bool:
    """Whether ONNX Runtime refuses the data file (1.32): it is neither below the graph's folder nor below that of the
    file that the graph is a link to.
    """
    try:
        data, file = (path / graph.data).resolve(), path / graph.file
    except (OSError, RuntimeError):  # a link to itself
        return True
    return not any(data.is_relative_to(place) for place in (file.parent.resolve(), file.resolve().parent))


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
