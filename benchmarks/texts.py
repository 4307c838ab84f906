"""Real English text from a package registry: the New York Times editorial sentences that vaderSentiment 3.3.2 carries (MIT), by article."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from qia3.base.sources import cache_folder

REQUIREMENT = "vaderSentiment==3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt"


def articles() -> list[str]:
    """Each article's sentences as one text, in the file's order."""
    found: dict[str, list[str]] = {}
    for line in _file().read_text(encoding="utf-8", errors="replace").splitlines():
        number, _, sentence = line.split("\t")
        found.setdefault(number.partition("_")[0], []).append(sentence)
    return [" ".join(sentences) for sentences in found.values()]


def _file() -> Path:
    """The cached file, fetched by pip and checked against its hash the first time."""
    place = cache_folder() / "texts" / Path(MEMBER).name
    if place.is_file():
        return place
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "requirements.txt").write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n")
        words = ["download", "--quiet", "--no-deps", "--no-binary", "vaderSentiment", "--require-hashes", "-d", scratch, "-r"]
        subprocess.run([sys.executable, "-m", "pip", *words, str(Path(scratch) / "requirements.txt")], check=True)
        with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as outer:
            inner = outer.extractfile(INNER)
            assert inner is not None
            with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
                member = archive.extractfile(MEMBER)
                assert member is not None
                content = member.read()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return place
