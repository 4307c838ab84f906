"""Law 11: user text is text. And text is the same tokens in training and on the device.

Oracles: transformers on ordinary words; for words that hold control tokens, a tokenizer that never had any, fed the
pieces between the template's own.
"""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Tokenizer

from qia3.errors import BundleError, DataError
from qia3.tokens import Tokens, is_control

CORPUS = [
    "lock the door",
    "turn the lights off",
    "a < b and im_end |> s>",
    "[INST] is think <s",
    "Topic of the day?",
] * 4
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>"]
PLAIN = ["<think>", "[TOOL]", "   ", "hallway"]  # not special: the first two are markup, the others are words
TEMPLATES = [
    "{text}",
    "<s>{text}</s>",
    "<s>user\nTopic of {text}?<|im_end|>\n<think>",
    "<{text}>",
    "[TOOL] {text}[TOOL]",
    "<|im_{text}|im_end|>",
]
PIECES = [
    *SPECIAL,
    *PLAIN,
    "s",
    "end|>",
    "<|im_",
    "/",
    "im_end|",
    " ",
    "  ",
    "\n",
    "the door",
    "Lights",
    "é☂",
    "\u0301",
    "<",
    ">",
    "[",
    "]",
    "|",
    "TOOL",
]
words = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=7).map("".join)


def bare(kind: str) -> Tokenizer:
    """Trained on the corpus, with the special tokens in the vocabulary, as trainers put them there."""
    letters = sorted({c for text in CORPUS for c in text})
    if kind.startswith("byte-level"):
        made = Tokenizer(models.BPE(ignore_merges=kind.endswith("whole")))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind.endswith("space"))
        made.decoder, made.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=True)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet)
    elif kind.startswith("llama"):
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        if kind == "llama-legacy":
            made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=[*SPECIAL, *byte_tokens], initial_alphabet=letters)
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>", initial_alphabet=letters
        )
    else:
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer, made.pre_tokenizer = (
            normalizers.BertNormalizer(lowercase=True),
            pre_tokenizers.BertPreTokenizer(),
        )
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL, initial_alphabet=letters)
    made.train_from_iterator(CORPUS, trainer)
    if kind == "llama-legacy":  # byte tokens are no added tokens there
        state = json.loads(made.to_str())
        state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in SPECIAL]
        made = Tokenizer.from_str(json.dumps(state))
    return made


FLAGS = {
    "as they are": {},
    "lstrip": {"lstrip": True},
    "rstrip": {"rstrip": True},
    "single words": {"single_word": True},
    "normalised": {"normalized": True},
}
KINDS = ["byte-level", "byte-level-space", "byte-level-whole", "llama", "llama-legacy", "unigram", "wordpiece"]


def made(kind: str, flags: str = "as they are") -> Tokenizer:
    found = bare(kind)
    found.add_tokens([AddedToken(text, normalized=False) for text in PLAIN])
    if FLAGS[flags]:
        state = json.loads(found.to_str())
        state["added_tokens"] = [
            t | (FLAGS[flags] if t["content"] in ("<|im_end|>", "<think>") else {}) for t in state["added_tokens"]
        ]
        found = Tokenizer.from_str(json.dumps(state))
    return found


@pytest.fixture(scope="module", params=[(kind, flags) for kind in KINDS for flags in FLAGS], ids=lambda p: "-".join(p))
def tokens(request) -> Tokens:
    return Tokens(made(*request.param))


@settings(max_examples=40, deadline=None)
@given(template=st.sampled_from(TEMPLATES), text=words)
def test_law_11_no_character_of_a_user_s_words_becomes_a_control_token(tokens, template, text):
    """The control tokens of a prompt are its template's, in their order. What a tokenizer does not know is the
    unknown token wherever it stands."""
    unknown = tokens.tokenizer.token_to_id("<unk>")
    steering = {tokens.tokenizer.token_to_id(t) for t in (*SPECIAL, "<think>", "[TOOL]")} - {unknown}
    own = [i for i in tokens.tokenizer.encode(template.replace("{text}", "x")).ids if i in steering]
    assert [i for i in tokens.prompt(template, text) if i in steering] == own
    assert not {i for i in tokens.encode(text) if i in steering}


def ordinary(text: str) -> bool:
    """Whether no control token, nor a part that the templates could complete, is in the words."""
    return not re.search(r"[<>\[\]|]|im_|s$", text) and not text.startswith("s")


@settings(max_examples=40, deadline=None)
@given(template=st.sampled_from(TEMPLATES), text=words.filter(ordinary))
def test_ordinary_words_are_what_transformers_makes_of_the_filled_template(tokens, template, text):
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokens.tokenizer.to_str()))
    filled = template.replace("{text}", text)
    assert tokens.prompt(template, text) == tuple(theirs.encode(filled, add_special_tokens=False))
    assert tokens.plain(template, text)


@pytest.mark.parametrize("kind", ["byte-level", "wordpiece"])
@settings(max_examples=100, deadline=None)
@given(text=words)
def test_control_tokens_in_words_are_spelt_as_by_a_tokenizer_that_has_none(kind, text):
    """Where pieces between control tokens are encoded apart: a tokenizer that never had any, piece by piece."""
    whole = made(kind)
    state = json.loads(whole.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not is_control(t["content"], t["special"])]
    without = Tokenizer.from_str(json.dumps(state))
    expected: list[str] = []
    for piece in re.split(r"(<s>|<\|im_end\|>)", "<s>user\nTopic of {text}?<|im_end|>\n"):
        alone = piece in ("<s>", "<|im_end|>")
        expected += [piece] if alone else without.encode(piece.replace("{text}", text)).tokens
    found = Tokens(whole).prompt("<s>user\nTopic of {text}?<|im_end|>\n", text)
    assert [whole.id_to_token(i) for i in found] == expected
    if kind == "byte-level":
        assert whole.decode(list(found), skip_special_tokens=False) == f"<s>user\nTopic of {text}?<|im_end|>\n"


SENTINELS = [f"<extra_id_{i}>" for i in range(3)]
ASKED = ["Say: {text}</s>", "{text}</s>", "Fill <extra_id_0> in: {text} <extra_id_1></s>", "<{text}</s>"]
odd = st.lists(st.sampled_from([*PIECES, *SENTINELS, "extra_id_0>", "<extra_", "▁"]) | st.text(max_size=4), max_size=7)


def t5_words(bytes_too: bool = False) -> list[tuple[str, float]]:
    """A Unigram vocabulary in T5's order: <pad>, </s>, <unk>, then pieces and their scores."""
    state = json.loads(bare("unigram").to_str())
    pieces = [(piece, score) for piece, score in state["model"]["vocab"] if piece not in SPECIAL]
    spelt = [(f"<0x{i:02X}>", -9.0) for i in range(256)] if bytes_too else []
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *spelt, *pieces]


def t5() -> PreTrainedTokenizerFast:
    """transformers' own, with three sentinels."""
    return T5Tokenizer(vocab=[*t5_words(), *((s, 0.0) for s in reversed(SENTINELS))], extra_ids=3)


def mt5() -> PreTrainedTokenizerFast:
    """Sentinels are pieces with a word's beginning, and added tokens are the first three alone."""
    return T5Tokenizer(vocab=[*t5_words(), *((f"▁{s}", 0.0) for s in reversed(SENTINELS))], extra_ids=0)


def mt5_of_old() -> PreTrainedTokenizerFast:
    """The same, made as transformers 4 made it: words begin at any space, and nothing else parts them."""
    state = json.loads(Tokens.of(mt5()).tokenizer.to_str())
    state["pre_tokenizer"] = state["pre_tokenizer"]["pretokenizers"][1]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="</s>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """As UMT5: what the vocabulary lacks comes out as bytes."""
    state = json.loads(Tokens.of(t5()).tokenizer.to_str())
    state["model"] |= {"vocab": [*t5_words(True), *((s, 0.0) for s in reversed(SENTINELS))], "byte_fallback": True}
    for token in state["added_tokens"]:
        if token["content"] in SENTINELS:
            token["id"] += 256
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="</s>")


SENTENCEPIECE = {"t5": t5(), "mt5": mt5(), "mt5-old": mt5_of_old(), "bytes": byte_fallback()}


def test_the_sentencepiece_tokenizers_are_what_they_are_meant_to_be():
    for name, theirs in SENTENCEPIECE.items():
        space = "▁" if "mt5" in name else ""
        assert theirs.convert_ids_to_tokens(theirs.encode("the <extra_id_1>"))[-2:] == [f"{space}<extra_id_1>", "</s>"]
    assert "<unk>" in SENTENCEPIECE["t5"].convert_ids_to_tokens(SENTENCEPIECE["t5"].encode("☂"))
    assert "<0xE2>" in SENTENCEPIECE["bytes"].convert_ids_to_tokens(SENTENCEPIECE["bytes"].encode("☂"))


@pytest.mark.parametrize("name", SENTENCEPIECE)
@settings(max_examples=60, deadline=None)
@given(template=st.sampled_from(ASKED), text=odd.map("".join))
def test_law_11_sentinels_and_the_end_in_a_user_s_words_are_text(name, template, text):
    theirs = SENTENCEPIECE[name]
    tokens = Tokens.of(theirs)
    pieces = theirs.convert_ids_to_tokens(range(len(theirs)))
    steering = {i for i, piece in enumerate(pieces) if piece.lstrip("▁") in {*SENTINELS, "</s>", "<pad>"}}
    assert len(steering) == 5
    own = [i for i in theirs.encode(template.replace("{text}", "x"), add_special_tokens=False) if i in steering]
    assert [i for i in tokens.prompt(template, text) if i in steering] == own
    assert len(own) == (3 if "extra" in template else 1)
    assert not {i for i in tokens.encode(text) if i in steering}


@pytest.mark.parametrize("name", SENTENCEPIECE)
@settings(max_examples=60, deadline=None)
@given(text=words.filter(ordinary))
def test_a_prompt_with_the_end_written_out_is_what_transformers_adds_it_to(name, text):
    theirs = SENTENCEPIECE[name]
    assert list(Tokens.of(theirs).prompt("Topic of {text}?</s>", text)) == theirs.encode(f"Topic of {text}?")
    assert list(Tokens.of(theirs).prompt("{text}</s>", text)) == [*theirs.encode(text, add_special_tokens=False), 1]


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_words_that_spell_a_sentinel_leave_the_rest_of_the_prompt_as_it_is(name):
    """Oracle: the same words by a tokenizer whose sentinels and end are gone, between the template's own."""
    theirs = SENTENCEPIECE[name]
    tokens, plain = Tokens.of(theirs), json.loads(Tokens.of(theirs).tokenizer.to_str())
    plain["added_tokens"] = []
    gone = {*SENTINELS, "</s>"}
    vocabulary = enumerate(plain["model"]["vocab"])
    spoilt = [[f"\x00{i}" if piece.lstrip("▁") in gone else piece, score] for i, (piece, score) in vocabulary]
    plain["model"]["vocab"] = spoilt
    without = Tokenizer.from_str(json.dumps(plain))
    filled = tokens.prompt("Fill <extra_id_0> in: {text}</s>", "<extra_id_1>")
    sentinel, end = theirs.convert_tokens_to_ids([f"{'▁' if 'mt5' in name else ''}<extra_id_0>", "</s>"])
    parts = [without.encode(part, add_special_tokens=False).ids for part in ("Fill", "in: <extra_id_1>")]
    assert list(filled) == [*parts[0], sentinel, *parts[1], end]
    for text in ("lock <extra_id_0> the door", "<extra_id_1>", "the </s> lights<extra_id_2>"):
        found = tokens.prompt("Topic of {text}?</s>", text)
        assert list(found) == [*without.encode(f"Topic of {text}?", add_special_tokens=False).ids, 1]


@pytest.mark.parametrize("merges", [["< s", "<s >", "<s> a"], [["<", "s"], ["<s", ">"], ["<s>", "a"]]])
def test_merges_that_spell_a_control_token_are_not_made(merges):
    """As in vocabularies that came from sentencepiece, where the control pieces stand among the others."""
    vocabulary = {piece: i for i, piece in enumerate(["<", "s", ">", "a", "<s", "<s>", "<s>a"])}
    added = {"id": 5, "content": "<s>", "special": True} | dict.fromkeys(
        ("single_word", "lstrip", "rstrip", "normalized"), False
    )
    document = {
        "version": "1.0",
        "added_tokens": [added],
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }
    tokens = Tokens(Tokenizer.from_str(json.dumps(document)))
    assert tokens.encode("<s>a<s") == (4, 2, 3, 4)
    assert tokens.prompt("<s>{text}<s>", "<s>") == (5, 4, 2, 5)
    assert tokens.prompt("<s>a{text}", "s>") == (5, 3, 1, 2)


def test_which_added_tokens_are_control_tokens():
    control = ["<think>", "[TOOL]", "<|im_end|>", "</tool_call>", "<unused0>", "<｜User｜>", " <mask>", "[INST]"]
    assert all(is_control(text, special=False) for text in control)
    assert not any(
        is_control(text, special=False) for text in ("  ", "\n\n", "hallway", "<", ">", "<0x0A>", "->", "a<b>")
    )
    assert is_control("hallway", special=True)


def test_split_special_tokens_makes_training_no_different_from_the_device(tmp_path):
    raw = made("byte-level")
    raw.save(str(tmp_path / "tokenizer.json"))
    theirs = PreTrainedTokenizerFast(tokenizer_object=raw, split_special_tokens=True)
    template = "<s>{text}<|im_end|>"
    assert len(theirs.encode("<s>", add_special_tokens=False)) > 1
    for text in ("lock the door", "lock </s> it"):
        assert Tokens.of(theirs).prompt(template, text) == Tokens.read(tmp_path / "tokenizer.json").prompt(
            template, text
        )


def test_truncation_and_padding_of_a_tokenizer_are_not_used():
    raw = made("byte-level")
    raw.enable_truncation(3)
    raw.enable_padding(length=50, pad_id=1)
    assert Tokens.of(PreTrainedTokenizerFast(tokenizer_object=raw)).encode("lock the door now") == Tokens(
        made("byte-level")
    ).encode("lock the door now")


def test_a_token_beyond_the_embedding_is_refused_and_named():
    raw = made("byte-level")
    tokens = Tokens(raw, rows=raw.token_to_id("hallway"))
    assert tokens.encode("lock the door <think>")  # a control token's characters are fine
    with pytest.raises(
        DataError, match=rf"no embedding for the token 'hallway' \(id {tokens.rows}; it has {tokens.rows}\)"
    ):
        tokens.encode("the hallway")
    with pytest.raises(DataError, match="'hallway'"):
        tokens.prompt("in the hallway: {text}", "lock")


def test_what_is_no_text_is_told_in_one_line(tmp_path):
    with pytest.raises(DataError, match="the text is not UTF-8: it has a byte 0xff that is not part of a character"):
        Tokens(made("byte-level")).encode("ab\udcff")
    with pytest.raises(DataError, match="the text is not UTF-8: it has half of a surrogate pair"):
        Tokens(made("byte-level")).prompt("Topic of {text}?", "\ud83d")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="cannot be read as a tokenizer"):
        Tokens.read(tmp_path / "tokenizer.json")


def test_one_control_token_and_nothing_else():
    tokens = Tokens(made("byte-level"))
    assert tokens.control_token("<|im_end|>") == tokens.tokenizer.token_to_id("<|im_end|>")
    assert [tokens.control_token(text) for text in ("", "a", "<s>a", "hallway")] == [None] * 4
