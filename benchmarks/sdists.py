"""Files out of a source archive in a package registry, fetched once and checked against a hash.

pip is asked where the archive is, so its index, proxy and certificate settings hold; it is not asked to fetch it, since
pip runs the archive's own build for its metadata, which some archives do not survive. Only the members that are wanted
are kept.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

from qia3.progress import say
from qia3.storage import cache_folder


def member(requirement: str, sha256: str, path: str, read: Callable[[bytes], bytes] = lambda content: content) -> Path:
    """The cached file `path` of the archive of `requirement` (NAME==VERSION); `read` turns a member's bytes into what
    is kept.
    """
    return members(requirement, sha256, [path], read)[0]


def members(
    requirement: str, sha256: str, paths: list[str], read: Callable[[bytes], bytes] = lambda content: content
) -> list[Path]:
    """Several, in one download."""
    folder = cache_folder() / "texts" / requirement
    places = [folder / path.replace("/", "_") for path in paths]
    if all(place.is_file() for place in places):
        return places
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        archive = Path(scratch) / "archive.tar.gz"
        say(f"fetching {requirement}")
        urllib.request.urlretrieve(_address(requirement), archive)
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise SystemExit(f"{requirement}: the archive's SHA-256 is {found}, not {sha256}")
        wanted = dict(zip(paths, places, strict=True))
        with tarfile.open(archive) as opened:
            for entry in opened:
                inside = entry.name.partition("/")[2]
                if inside in wanted and (file := opened.extractfile(entry)) is not None:
                    (Path(scratch) / "member").write_bytes(read(file.read()))
                    (Path(scratch) / "member").replace(wanted[inside])
    if missing := [path for path, place in zip(paths, places, strict=True) if not place.is_file()]:
        raise SystemExit(f"{requirement} holds no {', '.join(missing)}")
    return places


def _address(requirement: str) -> str:
    """Where pip would fetch the source archive from: it names the links that it passes over."""
    name, _, version = requirement.partition("==")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-vv",
        "--no-deps",
        "--no-cache-dir",
        "--only-binary",
        name,
        requirement,
    ]
    with tempfile.TemporaryDirectory() as scratch:  # where there is a wheel, pip fetches it on the way
        told = subprocess.run([*command, "-d", scratch], capture_output=True, text=True)
    found = re.search(
        rf"(\S+/{re.escape(name)}-{re.escape(version)}\.tar\.gz)\b", told.stdout + told.stderr, re.IGNORECASE
    )
    if not found:
        raise SystemExit(
            f"pip finds no source archive of {requirement}: {(told.stderr.strip().splitlines() or ['no reason given'])[-1]}"
        )
    return found[1]
