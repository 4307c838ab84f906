"""Tasks that benchmarks/small_t5.py never sees, for adapters: another format of dates, other units in one sum, another
command language, another field, another order of a name.

    June 14, 2024                                          06/14/2024
    1 l and 700 ml                                         1700 ml
    raise the lamp in the hall please                      hall.lamp = up
    In Lima, Peter sold 13 coats last Tuesday              13 x coats
    Clara Carter                                           Carter, C.

Words, sentences and ways of asking are those of text_tasks.py, which the model knows; what is to be done with them is new,
and so are the instructions.
"""

from __future__ import annotations

from random import Random

from text_tasks import Family, Pair, request, sentence, ways_of_a_date
from text_words import FAMILY_NAMES, FIRST_NAMES


def _slashed_dates(draw: Random) -> Pair:
    ways = ways_of_a_date(draw)
    year, month, day = ways["iso"].split("-")
    return ways[draw.choice(["words", "american", "short"])], f"{month}/{day}/{year}"


def _loads(draw: Random) -> Pair:
    """Units of which none was in training, in one sum."""
    n, rest = draw.randint(1, 30), draw.choice([100, 200, 250, 300, 500, 700, 750, 800])
    large, small = draw.choice([("t", "kg"), ("l", "ml"), ("kW", "W")])
    return f"{n} {large} and {rest} {small}", f"{1000 * n + rest} {small}"


def _assignments(draw: Random) -> Pair:
    text, device, room, action = request(draw)
    return text, f"{room}.{device} = {action}"


def _quantities(draw: Random) -> Pair:
    text, known = sentence(draw)
    return text, f"{known['number']} x {known['what']}"


def _surnames(draw: Random) -> Pair:
    first, last = draw.choice(FIRST_NAMES), draw.choice(FAMILY_NAMES)
    return f"{first} {last}", f"{last}, {first[0]}."


UNSEEN: dict[str, Family] = {
    "slashed dates": _slashed_dates,
    "loads": _loads,
    "assignments": _assignments,
    "quantities": _quantities,
    "surnames": _surnames,
}
