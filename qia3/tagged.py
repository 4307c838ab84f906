r"""Words with one label each, as in token classification, and how well two labellings agree.

    {"tokens": ["Anna", "Weber", "lives", "in", "Rome"], "tags": ["B-PER", "I-PER", "O", "O", "B-LOC"]}

A label of the BIO scheme (Ramshaw and Marcus 1995, cmp-lg/9505040) says that its word begins an entity of some type, is
inside one, or is outside all. Two entities are equal if type, first and last word are: (PER, 0, 1), (LOC, 4, 4).
Precision, recall and F1 are counted over all texts together, as CoNLL's evaluation does. As there, an I- that does not
follow an entity of its type begins one, and E- and S- (the last word of an entity, and a single-word entity) end one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from qia3.errors import quoted
from qia3.parse import kind_of

SCHEME = re.compile(r"O|[BIES]-.+")
OUTSIDE = "O"

Span = tuple[str, int, int]  # type, first word, last word


def wrong_tags(row: Mapping[str, Any], labels: Collection[str] | None) -> str | None:
    """What is wrong with a line, or None. `labels`: the task's, None if any are accepted."""
    for key in ("tokens", "tags"):
        if key not in row:
            return f"{key!r} is missing; the line has {', '.join(map(quoted, row)) or 'no keys'}"
        value = row[key]
        if not isinstance(value, list):
            return f"{key!r} is {kind_of(value)}, not a list of strings"
        if not all(isinstance(text, str) and text.strip() and _encodes(text) for text in value):
            return f"{key!r} must be a list of non-empty strings (for labels by number, write their names)"
    tokens, tags = row["tokens"], row["tags"]
    if not tokens or len(tokens) != len(tags):
        return (
            f"it has {len(tokens)} tokens and {len(tags)} tags; each token needs one tag, and there must be at "
            "least one"
        )
    if spaced := [tag for tag in tags if len(tag.split()) > 1 or tag != tag.strip()]:
        return f"the tag {quoted(spaced[0])} has a space in it"
    strange = [] if labels is None else [tag for tag in tags if tag not in labels]
    return f"tag {quoted(strange[0])} is not one of {', '.join(list(labels or ())[:20])}" if strange else None


def _encodes(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def has_scheme(labels: Collection[str]) -> bool:
    """Whether labels mark entities at all; parts of speech, for example, do not."""
    return all(SCHEME.fullmatch(label) for label in labels) and set(labels) != {OUTSIDE}


def spans(tags: Sequence[str]) -> Iterator[Span]:
    """The entities that labels of the scheme mark."""
    first, kind, before = 0, "", OUTSIDE
    for place, tag in enumerate((*tags, OUTSIDE)):
        sort, _, name = tag.partition("-")
        begins = sort in ("B", "S") or before in ("O", "E", "S") or name != kind
        if before != OUTSIDE and (begins or sort == OUTSIDE):
            yield kind, first, place - 1
        if begins and sort != OUTSIDE:
            first = place
        kind, before = name, sort


def span_f1(said: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> float:
    """F1 over all texts together; 0 if no entity is right, 1 if there are none and none were predicted."""
    ours, theirs = ({(i, *span) for i, tags in enumerate(texts) for span in spans(tags)} for texts in (said, right))
    return 2 * len(ours & theirs) / (len(ours) + len(theirs)) if ours or theirs else 1.0
