"""Real English text from a package registry: what vaderSentiment 3.3.2 carries (MIT), editorials of the New York Times
by article, and reviews.
"""

from __future__ import annotations

import io
import tarfile

from sdists import member

REQUIREMENT = "vaderSentiment==3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
EDITORIALS = "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt"
REVIEWS = "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt"


def articles() -> list[str]:
    """Each article's sentences as one text, in the file's order."""
    found: dict[str, list[str]] = {}
    for number, _, sentence in rows(EDITORIALS):
        found.setdefault(number.partition("_")[0], []).append(sentence)
    return [" ".join(sentences) for sentences in found.values()]


def rows(name: str) -> list[list[str]]:
    """Number, score and sentence of each line of a file in the inner archive."""
    with tarfile.open(member(REQUIREMENT, SHA256, INNER)) as archive:
        opened = archive.extractfile(name)
        assert opened is not None
        text = io.TextIOWrapper(opened, encoding="utf-8", errors="replace").read()
    return [line.split("\t") for line in text.splitlines()]
