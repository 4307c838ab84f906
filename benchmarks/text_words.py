"""The words that benchmarks/text_tasks.py makes its pairs of."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
FIRST_NAMES = _words(
    "Anna Ben Clara David Emma Felix Grace Henry Ida James Karen Leo Maria Noah Olga Paul Rosa Sam Tina "
    "Victor Alice Boris Carla Daniel Eva Frank Gina Hugo Irene Jack Kate Luis Mona Nina Oscar Peter Rita "
    "Simon Tom Vera"
)
FAMILY_NAMES = _words(
    "Adler Baker Berg Brown Carter Cole Dale Evans Fischer Fox Garcia Gray Hall Hill Hunt Jones Keller "
    "King Lane Lopez Mason Miller Moore Novak Olsen Parker Price Reed Rossi Scott Shaw Silva Stone Taylor "
    "Turner Vogel Walker Ward Weber Young"
)
CITIES = _words(
    "Berlin Paris London Madrid Rome Vienna Prague Oslo Dublin Lisbon Athens Warsaw Boston Chicago Denver "
    "Dallas Tokyo Cairo Lima Delhi Seoul Sydney Geneva Milan Porto Hamburg Munich Zurich Toronto Quebec"
)
ITEMS = _words(
    "books apples chairs lamps tickets letters boxes bottles cakes flowers keys maps pens phones photos "
    "plates shirts shoes stamps tables toys watches windows bikes candles carpets clocks coats cups drums"
)
SENTENCES = (
    "{who} sent {number} {what} to {where} on {when}",
    "On {when} {who} bought {number} {what} in {where}",
    "{who} will bring {number} {what} to {where} next {when}",
    "The {number} {what} that {who} ordered from {where} came on {when}",
    "In {where}, {who} sold {number} {what} last {when}",
    "Last {when} {number} {what} were found in {where} by {who}",
    "{who} counted {number} {what} at the station of {where} on {when}",
    "By {when} the shop in {where} owes {who} {number} {what}",
)
ROOMS = (
    "kitchen", "bathroom", "bedroom", "hall", "garage", "office", "garden", "cellar", "attic", "living room", "nursery", "porch",
)  # fmt: skip
DEVICES = (
    "lamp",
    "heater",
    "fan",
    "radio",
    "television",
    "oven",
    "blind",
    "speaker",
    "camera",
    "door",
    "window",
    "alarm",
)
ACTIONS = {
    "on": (
        "switch {device} {room} on",
        "turn on {device} {room}",
        "{device} {room} should run",
        "start {device} {room}",
    ),
    "off": (
        "switch {device} {room} off",
        "turn off {device} {room}",
        "{device} {room} should stop",
        "stop {device} {room}",
    ),
    "up": ("turn up {device} {room}", "more of {device} {room}", "raise {device} {room}"),
    "down": ("turn down {device} {room}", "less of {device} {room}", "lower {device} {room}"),
    "status": ("is {device} {room} running", "how is {device} {room} doing", "check {device} {room}"),
}
ASKING = ("{}", "please {}", "{} please", "could you {}", "hey, {}", "I want you to {}", "{} now", "{}, thanks")
TOPICS = {
    "lights": ("make it brighter", "dim the lamp", "it is too dark here", "switch the lights on", "light up the hall"),
    "music": ("play a song", "turn the volume up", "skip this track", "put some jazz on", "stop the music"),
    "weather": ("tell me if it will rain", "say how warm it gets", "check the forecast", "look whether I need an umbrella"),
    "timer": ("wake me at seven", "set an alarm", "count ten minutes", "remind me in an hour", "tell me when it is time"),
    "shopping": ("add milk to the list", "buy some bread", "order eggs", "write down that we need butter"),
    "calls": ("call my mother", "ring the doctor", "answer the phone", "send a message to Tom", "dial the office"),
    "locks": ("lock the door", "open the gate", "close the garage", "see whether the window is shut"),
}  # fmt: skip
UNITS = (  # large, small, how many
    ("km", "m", 1000), ("kg", "g", 1000), ("m", "cm", 100), ("cm", "mm", 10), ("m", "mm", 1000),
    ("h", "min", 60), ("min", "s", 60), ("days", "h", 24), ("weeks", "days", 7), ("euros", "cents", 100),
)  # fmt: skip

_ONES = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")


def in_words(n: int) -> str:
    """0 to 9999: three thousand two hundred and forty-one."""
    if n < 20:
        return _ONES[n]
    if n < 100:
        return _TENS[n // 10 - 2] + (f"-{_ONES[n % 10]}" if n % 10 else "")
    unit, name = (100, "hundred") if n < 1000 else (1000, "thousand")
    rest = n % unit
    joined = "" if not rest else f" and {in_words(rest)}" if rest < 100 else f" {in_words(rest)}"
    return f"{in_words(n // unit)} {name}{joined}"


def _plural(word: str) -> str:
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


PLURALS = tuple(
    (word, _plural(word))
    for word in _words(
        "box cat dog city baby church bush class dress fox day boy key table chair lamp berry lady party "
        "story army watch brush bus glass wish tax way toy tree river stone cup game line road ship song word "
        "family country library"
    )
)
