r"""Words with a label each, as datasets of token classification have them, and how far two labellings agree.

    {"tokens": ["Anna", "Weber", "lives", "in", "Rome"], "tags": ["B-PER", "I-PER", "O", "O", "B-LOC"]}

A label of the BIO scheme (Ramshaw and Marcus 1995, cmp-lg/9505040) says that its word begins an entity of a type, is
inside one, or is outside of all. Two entities are the same where type, first and last word are: (PER, 0, 1), (LOC, 4, 4).
Precision, recall and F1 are counted over all texts together, as CoNLL's evaluation does; like it, an I- that follows no
entity of its type begins one, and E- and S- (the last word of one, and an entity of a single word) end one.
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
    """What is wrong with a line; None where nothing is. `labels`: the task's, None where any will do."""
    for key in ("tokens", "tags"):
        if key not in row:
            return f"{key!r} is missing; the line has {', '.join(map(quoted, row)) or 'no keys'}"
        value = row[key]
        if not isinstance(value, list):
            return f"{key!r} is {kind_of(value)}, not a list of texts"
        if not all(isinstance(text, str) and text.strip() and _encodes(text) for text in value):
            return f"{key!r} is a list of texts, none of them empty (labels by number: write their names)"
    tokens, tags = row["tokens"], row["tags"]
    if not tokens or len(tokens) != len(tags):
        return f"it has {len(tokens)} tokens and {len(tags)} tags; each token has one tag, and there is one at least"
    if spaced := [tag for tag in tags if len(tag.split()) > 1 or tag != tag.strip()]:
        return f"the tag {quoted(spaced[0])} has a space in it"
    strange = [] if labels is None else [tag for tag in tags if tag not in labels]
    return f"tag {quoted(strange[0])} is not one of {', '.join(list(labels or ())[:20])}" if strange else None


def _encodes(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def has_scheme(labels: Collection[str]) -> bool:
    """Whether labels mark entities at all; parts of speech do not."""
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
    """Over all texts together; 0 where no entity is right, 1 where there are none and none was said."""
    ours, theirs = ({(i, *span) for i, tags in enumerate(texts) for span in spans(tags)} for texts in (said, right))
    return 2 * len(ours & theirs) / (len(ours) + len(theirs)) if ours or theirs else 1.0
