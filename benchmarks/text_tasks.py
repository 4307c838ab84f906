"""Text tasks whose right answers code can tell: what benchmarks/small_t5.py is trained on.

    date as iso: 12 March 2021                       2021-03-12
    words: 342                                       three hundred and forty-two
    command: switch on the lamp in the kitchen       lamp | kitchen | on
    where: Anna sent 3 books to Berlin on Monday     Berlin
    fill: the <extra_id_0> on the hill is <extra_id_1>    <extra_id_0> old house <extra_id_1> empty

Everything is drawn from one random generator that the caller seeds, so a step's examples are known from its number.
`fill` is T5's own objective, on real sentences (texts.py): words, and which stand together, come from there. Tasks of
other formats, units and command languages, which it never sees, are in unseen_tasks.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from random import Random

from text_words import (
    ACTIONS,
    ASKING,
    CITIES,
    DAYS,
    DEVICES,
    FIRST_NAMES,
    ITEMS,
    MONTHS,
    PLURALS,
    ROOMS,
    SENTENCES,
    TOPICS,
    UNITS,
    in_words,
)
from texts import REVIEWS, articles, rows

Pair = tuple[str, str]
Family = Callable[[Random], Pair]


def _dates(draw: Random) -> Pair:
    ways = ways_of_a_date(draw)
    given, asked = draw.sample(sorted(ways), 2)
    return f"date as {asked}: {ways[given]}", ways[asked]


def ways_of_a_date(draw: Random) -> dict[str, str]:
    year, month, day = draw.randint(1900, 2049), draw.randint(1, 12), draw.randint(1, 28)
    name = MONTHS[month - 1]
    return {
        "iso": f"{year}-{month:02}-{day:02}",
        "dotted": f"{day:02}.{month:02}.{year}",
        "words": f"{day} {name} {year}",
        "american": f"{name} {day}, {year}",
        "short": f"{day} {name[:3]} {year}",
    }


def _units(draw: Random) -> Pair:
    large, small, factor = draw.choice(UNITS)
    n = draw.randint(1, 99) if factor >= 100 else draw.randint(1, 12)
    return f"in {small}: {n} {large}", f"{n * factor} {small}"


def _words_of_a_number(draw: Random) -> Pair:
    n = draw.randint(0, 9999) if draw.random() < 0.5 else draw.randint(0, 199)
    return (f"words: {n}", in_words(n)) if draw.random() < 0.5 else (f"number: {in_words(n)}", str(n))


def _order(draw: Random) -> Pair:
    words = draw.sample(vocabulary(), draw.randint(2, 5))
    text = " ".join(words)
    way = draw.choice(["sort", "reverse", "first word", "last word", "how many words", "copy"])
    return f"{way}: {text}", {
        "sort": " ".join(sorted(words)),
        "reverse": " ".join(words[::-1]),
        "first word": words[0],
        "last word": words[-1],
        "how many words": str(len(words)),
        "copy": text,
    }[way]


def _letters(draw: Random) -> Pair:
    way = draw.choice(["upper", "title", "spell", "join", "first letter"])
    words = draw.sample(vocabulary(), 1 if way in ("spell", "join") else draw.randint(1, 3))
    text = " ".join(words)
    spelt = " ".join(words[0])
    if way in ("spell", "join"):
        return (f"spell: {text}", spelt) if way == "spell" else (f"join: {spelt}", text)
    done = {"upper": text.upper(), "title": text.title(), "first letter": " ".join(w[0] for w in words)}[way]
    return (f"lower: {done}", text) if way == "upper" and draw.random() < 0.5 else (f"{way}: {text}", done)


def _fields(draw: Random) -> Pair:
    text, known = sentence(draw)
    asked = draw.choice(["who", "where", "when", "what"])
    return f"{asked}: {text}", known[asked]


def sentence(draw: Random) -> tuple[str, dict[str, str]]:
    """Somebody did something with some things, and what is asked about it."""
    known = {
        "who": draw.choice(FIRST_NAMES),
        "where": draw.choice(CITIES),
        "when": draw.choice(DAYS),
        "what": draw.choice(ITEMS),
        "number": str(draw.randint(2, 99)),
    }
    return draw.choice(SENTENCES).format(**known), known


def _commands(draw: Random) -> Pair:
    text, device, room, action = request(draw)
    way = draw.choice(["command", "call", "set"])
    return f"{way}: {text}", {
        "command": f"{device} | {room} | {action}",
        "call": f"{action}({room}, {device})",
        "set": f"set {room} {device} to {action}",
    }[way]


def request(draw: Random) -> tuple[str, str, str, str]:
    """What somebody says to a house, the device, the room and the action."""
    action = draw.choice(sorted(ACTIONS))
    device, room = draw.choice(DEVICES), draw.choice(ROOMS)
    asked = draw.choice(ACTIONS[action]).format(device=f"the {device}", room=f"in the {room}")
    return draw.choice(ASKING).format(asked), device, room, action


def _clock(draw: Random) -> Pair:
    hour, minute = draw.randint(1, 12), draw.choice([0, 15, 30, 5, 10, 20, 25])
    afternoon = draw.random() < 0.5
    spoken = {0: "{h} o'clock", 15: "quarter past {h}", 30: "half past {h}"}.get(
        minute, f"{in_words(minute)} past {{h}}"
    )
    text = f"{spoken.format(h=in_words(hour))} in the {'afternoon' if afternoon else 'morning'}"
    return f"clock: {text}", f"{hour % 12 + 12 * afternoon:02}:{minute:02}"


def _plurals(draw: Random) -> Pair:
    one, many = draw.choice(PLURALS)
    return (f"plural: {one}", many) if draw.random() < 0.7 else (f"singular: {many}", one)


def _replace(draw: Random) -> Pair:
    words = draw.sample(vocabulary(), draw.randint(3, 5))
    old, new = draw.choice(words), draw.choice(vocabulary())
    text = " ".join(words)
    return f"replace {old} by {new}: {text}", text.replace(old, new) if text.count(old) == 1 else text


def _holds(draw: Random) -> Pair:
    text, known = sentence(draw)
    asked = draw.choice(["where", "when", "what", "who"])
    others = {"where": CITIES, "when": DAYS, "what": ITEMS, "who": FIRST_NAMES}[asked]
    word = known[asked] if draw.random() < 0.5 else draw.choice([o for o in others if o != known[asked]])
    return f"does it say {word}: {text}", "yes" if word == known[asked] else "no"


def _topics(draw: Random) -> Pair:
    topic = draw.choice(sorted(TOPICS))
    return f"topic: {draw.choice(ASKING).format(draw.choice(TOPICS[topic]))}", topic


def _fill(draw: Random) -> Pair:
    """Two or three stretches of a real sentence are cut out, and asked for."""
    words = draw.choice(real_sentences()).split()
    begin = draw.randint(0, max(0, len(words) - 12))
    words = words[begin : begin + 12]
    starts = sorted(draw.sample(range(0, len(words) - 2, 3), min(3, max(1, len(words) // 6))))
    given, asked, done = [], [], 0
    for n, start in enumerate(starts):
        length = draw.randint(1, 2)
        given += [*words[done:start], f"<extra_id_{n}>"]
        asked += [f"<extra_id_{n}>", *words[start : start + length]]
        done = start + length
    return f"fill: {' '.join(given + words[done:])}", " ".join(asked)


FAMILIES: dict[str, tuple[int, Family]] = {  # how often, and what
    "dates": (3, _dates),
    "units": (1, _units),
    "numbers": (2, _words_of_a_number),
    "order": (3, _order),
    "letters": (1, _letters),
    "fields": (3, _fields),
    "commands": (2, _commands),
    "clock": (1, _clock),
    "plurals": (1, _plurals),
    "replace": (1, _replace),
    "holds": (1, _holds),
    "topics": (1, _topics),
    "fill": (2, _fill),
}


def seen(draw: Random, family: str | None = None) -> Pair:
    """One pair for training, of a family that is drawn by its weight."""
    if family is None:
        family = draw.choices(sorted(FAMILIES), [FAMILIES[f][0] for f in sorted(FAMILIES)])[0]
    return FAMILIES[family][1](draw)


# --- real words


@cache
def real_sentences() -> tuple[str, ...]:
    """Of editorials and reviews, of seven words and more."""
    texts = [*(s for article in articles() for s in article.split(". ")), *(row[2] for row in rows(REVIEWS))]
    return tuple(" ".join(t.split()) for t in texts if len(t.split()) >= 7)


@cache
def vocabulary() -> tuple[str, ...]:
    """The words of three to eight plain letters that stand ten times or more in the real text, in order."""
    counts: dict[str, int] = {}
    for word in (w for text in real_sentences() for w in text.lower().split()):
        if 3 <= len(word) <= 8 and word.isascii() and word.isalpha():
            counts[word] = counts.get(word, 0) + 1
    return tuple(sorted(word for word, n in counts.items() if n >= 10))
