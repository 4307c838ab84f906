r"""Text to token ids, the same way in training, in the parity gate and on the device. A user's words never become
control tokens.

A prompt is a template that contains {text} once. Control tokens in the template are control tokens; the same characters
in the user's words are plain characters:

    template  <|im_start|>user\n{text}<|im_end|>\n       words  what does <|im_end|> do
    ids       [<|im_start|>] user \n what does <  |  im  _  end  |  > do [<|im_end|>] \n

The parts are not encoded separately and joined: merges cross the border ("Topic of" + " the"), and some tokenizers put
a space only before a text's first letter. The whole text is encoded at once, so ordinary words give the usual ids. If a
control token in that text overlaps the user's words, it is encoded again with a second tokenizer. This is made from the
same tokenizer.json, but each control token has a secret name, new in each process (ids, ranks, scores and flags are
kept; merges that would spell a control token are left out). The secret names are written into the template, and no user
text can contain them:

    <f3a9...00001>user\nwhat does <|im_end|> do<f3a9...00002>\n

Control tokens are the added tokens marked `special`, and those others that look like markup, in <...> or [...], such as
<think> and <tool_call>, which some tokenizers list as plain. Other added tokens (Phi's and GPT-NeoX's runs of spaces,
words) are text. HTML tags that a tokenizer lists as tokens (Gemma's <b>) are spelt out in a user's words, since the
name does not tell which kind they are. T5's sentinels, <extra_id_0> and so on, are control tokens even if they are
pieces of the vocabulary rather than added tokens, as in mT5, where a sentinel's piece starts with a word's ▁.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from qia3.errors import BundleError, DataError, QIA3Error, first_line
from qia3.parse import read_text

SLOT = "{text}"
NOWHERE = "\U0010ffff"  # a code point that is not a character, so it is in no vocabulary
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
ANSWERS = 1 << 12  # cached answers
LONG = 1 << 12  # characters that take a few milliseconds
WORD = 16  # characters, roughly the length of a word
WORD_START = "▁"
SENTINELS = ("<extra_id_{}>", "▁<extra_id_{}>")
MARKUP = re.compile(r"<.+>|\[.+\]", re.DOTALL)


class Tokens:
    """A tokenizer without truncation, padding and automatically added tokens.

    `rows` is the embedding's number of rows: a text with a token beyond it is refused. None: any id is accepted.
    """

    def __init__(self, tokenizer: Tokenizer, rows: int | None = None) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer, self.rows = tokenizer, rows
        added = tokenizer.get_added_tokens_decoder()
        self.control = {i: t.content for i, t in added.items() if is_control(t.content, t.special)} | _sentinels(
            tokenizer
        )
        self.unknown = _unknown(tokenizer, self.control)
        self._apart: _Apart | None = None
        self._making = threading.Lock()
        self._written = lru_cache(64)(self._renamed)
        self.answer = lru_cache(ANSWERS)(self._answer)

    @classmethod
    def read(cls, path: Path, rows: int | None = None) -> Tokens:
        """From a tokenizer.json. Raises BundleError if it cannot be read."""
        return cls(_parsed(read_text(path, BundleError), BundleError(f"{path} cannot be read as a tokenizer")), rows)

    @classmethod
    def of(cls, tokenizer: Any, rows: int | None = None) -> Tokens:
        """From a transformers tokenizer, by the tokenizer.json that it would save. What it does in addition
        (`split_special_tokens`) is unknown to a device.
        """
        document = tokenizer.backend_tokenizer.to_str()
        return cls(_parsed(document, QIA3Error("the base's tokenizer cannot be read back")), rows)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a user's text, never with control tokens."""
        return self.prompt(SLOT, text)

    def prompt(self, template: str, text: str) -> tuple[int, ...]:
        """Ids of a template that contains {text} once, with a user's words.

        Raises DataError for a token beyond the embedding's rows, half a character, or a text that breaks the tokenizer.
        """
        return tuple(self._around(template, text)[0].ids)

    def words(self, template: str, words: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of a prompt with words joined by spaces, and the position of each word's first token: the first token
        that covers one of its characters, or the space before it, which is a separate token in some vocabularies.
        Raises DataError like `prompt`, and for a word without a token of its own.
        """
        found, start = self._around(template, " ".join(words))
        offsets, token, end = found.offsets, 0, start
        space = int(template.partition(SLOT)[0].endswith(" "))
        places: list[int] = []
        for word in words:
            start, end = end - space, end + len(word)
            while token < len(offsets) and offsets[token][1] <= start:
                token += 1
            if token == len(offsets) or offsets[token][0] >= end or token in places[-1:]:
                raise DataError(f"the tokenizer gives the word {word[:40]!r} no token of its own; leave it out")
            places.append(token)
            end, space = end + 1, 1
        return tuple(found.ids), tuple(places)

    def _around(self, template: str, text: str) -> tuple[Encoding, int]:
        """The encoding of a template with its text, and where in it the words begin."""
        before, _, after = template.partition(SLOT)
        found, start = _encoding(self.tokenizer, before + text + after), len(before)
        if self._overlaps(found, start, text):
            found, start = self._kept_apart(before, text, after), len(self._written(before))
        ids = found.ids
        if self.rows is not None and ids and max(ids) >= self.rows:
            beyond = max(ids)
            raise DataError(
                f"the base has no embedding for the token {self.tokenizer.id_to_token(beyond)!r} (id {beyond}; it has "
                f"{self.rows}); write it differently"
            )
        return found, start

    def _answer(self, text: str, end: str) -> tuple[int, ...]:
        """Ids of an answer and its end token. A task's answers are needed again and again, so they are cached."""
        return self.prompt(SLOT + end, text)

    def fitting(self, template: str, text: str, room: int) -> str | None:
        """The words, or the longest prefix of them with which the prompt takes at most `room` tokens; None if the
        template alone takes more. A text of megabytes is not encoded as a whole.
        """
        fits = 0  # characters that fit
        tried = min(len(text), 4 * room)
        while len(self.prompt(template, text[:tried])) <= room:
            if tried == len(text):
                return text
            fits, tried = tried, min(len(text), 2 * tried)
        if not fits and len(self.prompt(template, "")) > room:
            return None
        while tried - fits > 1:
            middle = (fits + tried) // 2
            if len(self.prompt(template, text[:middle])) <= room:
                fits = middle
            else:
                tried = middle
        further = range(min(len(text), fits + WORD), fits, -1)  # "loc" may take more tokens than "lock"
        return text[: next((n for n in further if len(self.prompt(template, text[:n])) <= room), fits)]

    def plain(self, template: str, text: str) -> bool:
        """Whether the words give no control tokens if they are simply inserted into the template."""
        before, _, after = template.partition(SLOT)
        return not self._overlaps(_encoding(self.tokenizer, before + text + after), len(before), text)

    def control_token(self, written: str) -> int | None:
        """The id of a text that is exactly one control token, or None."""
        ids = _encoding(self.tokenizer, written).ids
        return ids[0] if len(ids) == 1 and ids[0] in self.control else None

    def _overlaps(self, found: Encoding, start: int, text: str) -> bool:
        """Whether a control token overlaps the words. Spaces around them do not count, since some tokens absorb them.

        A character that the tokenizer does not know gives its unknown token, which is fine.
        """
        places = [k for k, i in enumerate(found.ids) if i in self.control]
        if not places:
            return False
        first, last = start + len(text) - len(text.lstrip()), start + len(text.rstrip())
        known = None if self.unknown is None or self.control.get(self.unknown, "") in text else self.unknown
        ids, offsets = found.ids, found.offsets
        return any(ids[k] != known and offsets[k][0] < last and offsets[k][1] > first for k in places)

    def _kept_apart(self, before: str, text: str, after: str) -> Encoding:
        with self._making:
            if self._apart is None:
                self._apart = _apart(self.tokenizer, self.control)
        steering = self.control.keys() - {self._apart.unknown}
        found = _encoding(self._apart.tokenizer, self._written(before) + text + self._written(after))
        own = [i for part in (before, after) for i in _encoding(self.tokenizer, part).ids if i in steering]
        if [i for i in found.ids if i in steering] != own:
            raise DataError(
                "control tokens in this text cannot be told from those of the prompt; write them differently"
            )
        return found

    def _renamed(self, part: str) -> str:
        """A part of a template with its control tokens under their secret names."""
        assert self._apart is not None
        found, done, pieces = _encoding(self.tokenizer, part), 0, []
        for i, (start, end) in zip(found.ids, found.offsets, strict=True):
            if i in self.control and i != self._apart.unknown:
                written = part[start:end]
                space = len(written) - len(written.lstrip())
                name = self._apart.names[i].lstrip(WORD_START)  # which the tokenizer adds itself
                pieces += [part[done : start + space], name, written[len(written.rstrip()) :]]
                done = end
        return "".join((*pieces, part[done:]))


def is_control(content: str, special: bool) -> bool:
    """Whether an added token is a control token; the others are words, and the bytes of byte fallback."""
    return not BYTE.fullmatch(content) and (special or MARKUP.fullmatch(content.strip()) is not None)


def _sentinels(tokenizer: Tokenizer) -> dict[int, str]:
    """T5's sentinels by id, numbered from 0."""
    found = {}
    for form in SENTINELS:
        for number in count():
            if (known := tokenizer.token_to_id(form.format(number))) is None:
                break
            found[known] = form.format(number)
    return found


@dataclass(frozen=True)
class _Apart:
    """A tokenizer whose control tokens have secret `names`, by id; `unknown` is the id of its unknown token."""

    tokenizer: Tokenizer
    names: Mapping[int, str]
    unknown: int | None


def _apart(tokenizer: Tokenizer, control: Mapping[int, str]) -> _Apart:
    """The tokenizer with its control tokens renamed.

    A name keeps the first and the last character, which decide whether a neighbour is a single word.
    """
    nonce = secrets.token_hex(8)
    names = {text: f"{text[:1]}{nonce}{i:07x}{text[-1:]}" for i, text in control.items()}
    state = json.loads(tokenizer.to_str())
    state |= {"truncation": None, "padding": None, "post_processor": None}
    for token in state["added_tokens"]:
        if token["content"] in names:
            token |= {"content": names[token["content"]], "single_word": False}
    model = state["model"]
    words = model["vocab"]
    if isinstance(words, dict):
        model["vocab"] = {names.get(word, word): i for word, i in words.items()}
    else:  # Unigram: pieces with their scores
        model["vocab"] = [[names.get(word, word), score] for word, score in words]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = _merges(model, names)
    made = _parsed(json.dumps(state), QIA3Error("the tokenizer cannot be rebuilt with renamed control tokens"))
    by_id = {i: names[text] for i, text in control.items()}
    if any(made.token_to_id(name) != i for i, name in by_id.items()):
        raise QIA3Error("the tokenizer cannot be rebuilt with renamed control tokens: their ids change")
    unknown = model.get("unk_id", made.token_to_id(model["unk_token"]) if model.get("unk_token") else None)
    return _Apart(made, by_id, unknown)


def _merges(model: Mapping[str, Any], names: Mapping[str, str]) -> list[Any]:
    """The merges that neither spell a control token nor begin with one, in order."""
    prefix = model.get("continuing_subword_prefix") or ""
    kept = []
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if not {left, right, left + right.removeprefix(prefix)} & names.keys():
            kept.append(merge)
    return kept


def _unknown(tokenizer: Tokenizer, control: Mapping[int, str]) -> int | None:
    """The id of the unknown token, found by encoding a code point that is in no vocabulary."""
    found = [i for i in _encoding(tokenizer, NOWHERE).ids if i in control]
    return found[0] if len(found) == 1 else None


def _parsed(document: str, error: QIA3Error) -> Tokenizer:
    """The tokenizer from a tokenizer.json's text. Raises `error` for any failure, including a panic in Rust."""
    try:
        return Tokenizer.from_str(document)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as reason:
        raise type(error)(f"{error}: {first_line(reason)}") from reason


def _encoding(tokenizer: Tokenizer, text: str) -> Encoding:
    try:
        if len(text) > LONG:  # a batch lets other threads run meanwhile
            return tokenizer.encode_batch([text], add_special_tokens=False)[0]
        return tokenizer.encode(text, add_special_tokens=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as reason:
        raise DataError(_why_not(text, reason)) from reason


def _why_not(text: str, reason: BaseException) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # how Python represents an undecodable byte of the command line
            return f"the text is not UTF-8: it has a byte {code - 0xDC00:#04x} that is not part of a character"
        return "the text is not UTF-8: it has half of a surrogate pair, which is not a character"
    return f"the tokenizer cannot read this text: {first_line(reason)}"
