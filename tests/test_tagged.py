"""Words with labels: what is read and refused, entities and their F1, and the first token of each word."""

from __future__ import annotations

import json
import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from qia3.errors import DataError
from qia3.examples import Example, read_examples
from qia3.tagged import has_scheme, span_f1, spans
from qia3.tokens import Tokens

KIND = "token-classification"


def line(tokens, tags, **more) -> str:
    return json.dumps({"tokens": tokens, "tags": tags, **more}) + "\n"


def test_a_line_has_words_and_a_label_for_each(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(line(["New York", "is", "big"], ["B-LOC", "O", "O"]))
    assert read_examples(file, KIND) == [Example("New York is big", "B-LOC O O", words=("New York", "is", "big"))]
    assert read_examples(file, KIND)[0].tags == ("B-LOC", "O", "O")


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (line(["a", "b"], ["O"]), "line 1: it has 2 tokens and 1 tags; each token needs one tag"),
        (line([], []), "0 tokens and 0 tags"),
        (line(["a", " "], ["O", "O"]), "'tokens' must be a list of non-empty strings"),
        (line(["a"], [3]), "for labels by number, write their names"),
        (line("a", ["O"]), "'tokens' is a string, not a list of strings"),
        (line(["a"], ["B LOC"]), "the tag 'B LOC' has a space in it"),
        (line(["a"], ["B-ORG"]), "tag 'B-ORG' is not one of O, B-LOC"),
        (json.dumps({"text": "a", "label": "b"}) + "\n", "'tokens' is missing; the line has 'text', 'label'"),
        ('{"tokens": ["a"], "tokens": ["b"], "tags": ["O"]}\n', "'tokens' occurs twice"),
    ],
)
def test_what_is_no_such_line_is_refused(tmp_path, written, told):
    (tmp_path / "a.jsonl").write_text(written)
    with pytest.raises(DataError) as error:
        read_examples(tmp_path / "a.jsonl", KIND, ("O", "B-LOC"))
    assert told in str(error.value)


def test_entities_of_a_text():
    tags = ["B-PER", "I-PER", "B-PER", "O", "I-LOC", "I-ORG", "S-LOC", "E-LOC"]
    assert list(spans(tags)) == [
        ("PER", 0, 1),
        ("PER", 2, 2),
        ("LOC", 4, 4),
        ("ORG", 5, 5),
        ("LOC", 6, 6),
        ("LOC", 7, 7),
    ]


def _drawn(draw: random.Random, labels: list[str], noise: float):
    right = [[draw.choice(labels) for _ in range(draw.randint(1, 9))] for _ in range(40)]
    return [[tag if draw.random() > noise else draw.choice(labels) for tag in row] for row in right], right


def test_f1_is_seqeval_s():
    """seqeval 1.2.2's f1_score (its default, as CoNLL's script) of the same labels, run beside: these four figures."""
    draw, bio = random.Random(7), ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    found = [
        span_f1(*_drawn(draw, labels, noise))
        for labels in (bio, [*bio, "E-PER", "S-PER", "S-LOC"])
        for noise in (0.2, 0.6)
    ]
    expected = [0.8381742738589212, 0.44015444015444016, 0.8411214953271028, 0.5099337748344371]
    assert found == pytest.approx(expected, abs=1e-12)
    assert span_f1([["O", "O"]], [["O", "O"]]) == 1
    assert span_f1([["O", "O"]], [["O", "B-X"]]) == 0


def test_parts_of_speech_have_no_entities():
    assert not has_scheme(["NOUN", "VERB"])
    assert not has_scheme(["O"])
    assert has_scheme(["O", "B-LOC", "I-LOC"])


def byte_pairs() -> Tokenizer:
    """RoBERTa's kind: a space belongs to the word after it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    special = ["<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["Anna Weber lives in Rome", "Rome is in Italy"], trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=True)
    return made


def pieces() -> Tokenizer:
    """XLM-R's and DeBERTa-v2's kind."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(["Anna Weber lives in Rome", "Rome is in Italy, Anna"] * 9, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return made


@pytest.mark.parametrize("made", [byte_pairs, pieces])
def test_a_word_s_label_stands_where_transformers_examples_put_it(made):
    words = ["Anna", "Weber,", "lives", "in", "Romé", "is", "Italy"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made())
    ids, places = Tokens.of(tokenizer).words("<s>{text}</s>", words)
    read = tokenizer(words, is_split_into_words=True)
    assert list(ids) == read["input_ids"]
    assert list(places) == [read.word_ids().index(i) for i in range(len(words))]


def test_control_tokens_in_words_are_words_and_a_word_without_a_token_is_told():
    tokens = Tokens(byte_pairs())
    ids, places = tokens.words("<s>{text}</s>", ["Anna", "</s>", "Rome"])
    assert ids.count(1) == 1
    assert len(places) == 3
    assert tokens.tokenizer.decode(ids[places[2] : -1]).strip() == "Rome"
    from tiny_encoders import words as wordpieces

    with pytest.raises(DataError, match=r"gives the word '\\u200b' no token of its own"):
        Tokens.of(wordpieces()).words("[CLS]{text}[SEP]", ["lights", "\u200b", "on"])
