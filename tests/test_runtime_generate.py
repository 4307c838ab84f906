"""Greedy generation, and text that streams without broken characters or lost spaces."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_bundle as tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from qia3.bundle.opened import Bundle
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.engine import Engine
from qia3.runtime.generate import generate, stream_text

BYTE_LEVEL = tiny.tokenizer()


def sentencepiece_like() -> Tokenizer:
    """Words begin with a mark for the space, which decoding drops at the start of a text; unknown characters fall back
    to bytes.
    """
    vocabulary = {
        "<unk>": 0,
        **{f"<0x{b:02X}>": b + 1 for b in range(256)},
        "▁hello": 257,
        "▁world": 258,
        "▁": 259,
        "s": 260,
        "!": 261,
    }
    made = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return made


SENTENCEPIECE = sentencepiece_like()


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine(Bundle.open(tiny.write_bundle(tmp_path_factory.mktemp("bundle"))), threads=1)


def test_the_likeliest_token_each_time(engine):
    vectors = AdapterBank(engine.bundle).vectors("lamps")
    w, tokens = tiny.weights(engine.bundle.architecture.vocab_size), [5, 9, 250]
    found = list(generate(engine, tokens, vectors, 12, ()))
    assert len(found) == 12
    for token in found:
        assert token == int(np.argmax(tiny.logits(w, tokens, vectors)))
        tokens = [*tokens, token]


def test_it_ends_at_a_stop_token_at_the_limit_and_at_the_end_of_the_context(engine):
    whole = list(generate(engine, [5, 9, 250], {}, 8, ()))
    stop = whole[3]
    assert list(generate(engine, [5, 9, 250], {}, 8, [stop])) == whole[: whole.index(stop)]
    assert list(generate(engine, [5, 9, 250], {}, 2, ())) == whole[:2]
    assert list(generate(engine, [5, 9, 250], {}, 0, ())) == []
    assert len(list(generate(engine, [5] * (tiny.CONTEXT - 2), {}, 100, ()))) == 2
    assert len(list(generate(engine, [5] * 3, {}, 1000, ()))) == tiny.CONTEXT - 3


@pytest.mark.parametrize(
    "text", ["lock the door", "naïve — ☂ ☂️ 👩‍👩‍👧 日本", " spaces  and\n\nlines ", "é" * 20, "\ufffd x", ""]
)
def test_pieces_are_the_text(text):
    ids = BYTE_LEVEL.encode(text).ids
    pieces = list(stream_text(BYTE_LEVEL, ids))
    assert "".join(pieces) == text == BYTE_LEVEL.decode(ids)
    assert all(pieces)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_text_comes_as_soon_as_it_is_sure():
    ids = BYTE_LEVEL.encode("lock ☂!").ids
    stream, seen = stream_text(BYTE_LEVEL, iter(ids)), []
    for piece in stream:
        seen.append(piece)
    assert len(seen) > 2
    assert seen[0] == BYTE_LEVEL.decode(ids[:1])


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30))
def test_any_text_streams_whole(text):
    assert "".join(stream_text(BYTE_LEVEL, BYTE_LEVEL.encode(text).ids)) == text


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=30))
def test_any_tokens_stream_to_what_they_decode_to(ids):
    """A model may say half a character and go on; the last piece tells what was left."""
    assert "".join(stream_text(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids)


def test_spaces_between_words_are_kept_where_decoding_drops_the_first():
    ids = [257, 258, 260, 258, 0xE2 + 1, 0x98 + 1, 0x82 + 1, 261]
    pieces = list(stream_text(SENTENCEPIECE, ids))
    assert pieces == ["hello", " world", "s", " world", "☂", "!"]
    assert "".join(pieces) == SENTENCEPIECE.decode(ids)


def test_special_tokens_are_not_shown():
    ids = [*BYTE_LEVEL.encode("lock").ids, BYTE_LEVEL.token_to_id(tiny.END), *BYTE_LEVEL.encode(" the").ids]
    assert "".join(stream_text(BYTE_LEVEL, ids)) == "lock the"
