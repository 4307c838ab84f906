"""What stands around a user's words: the base's chat template, tried before anything is loaded; and the end token."""

from __future__ import annotations

import os
import time
from datetime import datetime
from types import SimpleNamespace

import pytest
import tiny_bundle
from tiny_build import CHAT, write_base
from tokenizers import AddedToken
from transformers import BartTokenizer, PreTrainedTokenizerFast, T5Tokenizer

from qia3.base.reach import check_ids
from qia3.base.text import read_base_text
from qia3.batching.prompts import Wrapping, ask
from qia3.bounded import bounded
from qia3.errors import ConfigError
from qia3.tokens import Tokens
from qia3.train.prompts import check_end, wrapping
from qia3.train.template import render


def each(turn: str) -> str:
    """A template that says this of every turn."""
    return "{% for m in messages %}" + turn + "{% endfor %}a:"


PARTS = each("{{ m.role }}:{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}<|end|>")
DATED = "{{ strftime_now('%d %b %Y') }} " + each("{{ m.content }}<|end|>")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHAT
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
GROWING = "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}"


T5_WORDS = [
    ("<pad>", 0.0),
    ("</s>", 0.0),
    ("<unk>", 0.0),
    ("▁", -2.0),
    ("a", -3.0),
    ("b", -3.5),
    ("▁a", -3.2),
    ("<extra_id_0>", 0.0),
]
BART_WORDS = {w: i for i, w in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "b", "Ġ", "<mask>"])}


def words(chat=CHAT, **settings) -> PreTrainedTokenizerFast:
    settings = {"eos_token": tiny_bundle.END, "pad_token": "<pad>"} | settings
    return PreTrainedTokenizerFast(tokenizer_object=tiny_bundle.tokenizer(), chat_template=chat, **settings)


@pytest.mark.parametrize("chat", [CHAT, PARTS, NO_SYSTEM, each("<|end|>{{ m.content }}")])
def test_what_stands_around_the_words_is_the_template_s_own(chat):
    """transformers renders a question as what we put around it."""
    found, text = render(words(chat)), 'turn  the "lights" off\n<b>'
    content = [{"type": "text", "text": text}] if chat == PARTS else text
    turns = [] if chat == NO_SYSTEM else [{"role": "system", "content": content[:0]}]
    expected = words(chat).apply_chat_template(
        [*turns, {"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert found.prefix + text + found.suffix == expected
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        (each("{{ m.content | upper }}"), "it changes a question's words"),
        (each("{{ m.content | tojson }}"), "it changes a question's words"),
        (each("{{ m.content | replace('  ', ' ') }}"), "it changes a question's words"),
        (each("{{ m.content | center(200) }}"), "it writes different text around some questions"),
        (
            each("{% if m.content | length > 999 %}Be brief.{% endif %}{{ m.content }}"),
            "writes different text around some",
        ),
        (each("{{ m.content }}{% if '?' in m.content %}!{% endif %}"), "writes different text around some questions"),
        (each("{% if m.content.isdigit() %}A number: {% endif %}{{ m.content }}"), "writes different text around some"),
        ("hello", "it changes a question's words"),
        ("{{ raise_exception('no luck') }}", "no luck"),
        ("{% for x in %}", "Expected an expression"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ({"tool_use": CHAT, "rag": CHAT}, "no default"),
        ("{{ 'a' * 10**11 }}" + CHAT, "more memory than allowed"),
        (GROWING + CHAT, "more memory than allowed"),
    ],
)
def test_a_template_that_cannot_be_used_is_told_with_the_way_out(chat, said):
    with pytest.raises(ConfigError, match=said) as told:
        wrapping(words(chat), None, chat=True)
    assert "set chat = false in this [[task]]" in str(told.value)
    assert "\n" not in str(told.value)
    assert wrapping(words(chat), None, chat=False).prefix == ""


def test_a_template_is_tried_with_the_questions_of_a_task():
    """A template that minds a word which only this task's users say."""
    minds = words(each("{{ m.content }}{% if 'garage' in m.content %} (careful){% endif %}<|end|>"))
    assert wrapping(minds, None, True, questions=["turn the lights off", " spaces around "]).prefix
    with pytest.raises(ConfigError, match=r"writes different text around some questions .*careful?"):
        wrapping(minds, None, True, questions=["turn the lights off", "open the garage"])


def test_a_template_is_tried_once_and_anew_with_other_special_tokens(monkeypatch):
    monkeypatch.setattr("qia3.train.template.TRIED", {})
    chat = each("{{ bos_token }}{{ m.content }}")
    found = render(words(chat, bos_token="<pad>"))
    with monkeypatch.context() as patch:
        patch.setattr("qia3.train.template.bounded", None)  # calling it would be a defect
        assert render(words(chat, bos_token="<pad>")) == found
    assert found.prefix.replace("<pad>", tiny_bundle.END) == render(words(chat, bos_token=tiny_bundle.END)).prefix
    assert f"b{found.prefix}" == render(words(f"b{chat}", bos_token="<pad>")).prefix


def test_a_template_that_never_ends_is_ended(monkeypatch):
    fork, children = os.fork, []
    monkeypatch.setattr("qia3.bounded.os.fork", lambda: children.append(fork()) or children[-1])
    monkeypatch.setattr("qia3.train.template.bounded", lambda work: bounded(work, 0.5))
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"takes more than 0\.5 seconds"):
        render(words(LOOP + CHAT))
    assert time.monotonic() - started < 5
    assert children
    for child in children:
        with pytest.raises(ChildProcessError):  # it is gone
            os.waitpid(child, os.WNOHANG)


def test_a_template_that_never_ends_does_not_hold_up_a_base_that_does_without_it(monkeypatch):
    monkeypatch.setattr("qia3.base.reach.bounded", lambda work: bounded(work, 0.5))
    own, started = words(LOOP + CHAT), time.monotonic()
    own.add_tokens([AddedToken("<|turn|>", special=True)])
    check_ids(own, len(own) - 1)
    assert time.monotonic() - started < 5


def test_a_date_in_a_template_is_held_and_told():
    found = render(words(DATED))
    assert found.prefix.startswith("26 Jul 2024 ")
    assert any("26 Jul 2024" in warning for warning in found.warnings)
    assert f"{datetime.now():%d %b %Y}" in words(DATED).apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False
    )


def test_a_template_that_takes_spaces_away_is_told():
    found = render(words(each("{{ m.content | trim }}<|end|>")))
    assert any("spaces around a question" in warning for warning in found.warnings)


def test_the_end_of_an_answer_is_a_control_token_that_somebody_named():
    tokens = Tokens.of(words())
    check_end(tokens, tiny_bundle.END, known=True, task="t")
    with pytest.raises(ConfigError, match="it names no end token"):
        check_end(tokens, "", known=True, task="t")
    with pytest.raises(ConfigError, match="is not one control token"):
        check_end(tokens, "lock", known=True, task="t")
    with pytest.raises(ConfigError, match="the library's guess"):
        check_end(tokens, tiny_bundle.END, known=False, task="t")
    with pytest.raises(ConfigError, match="the base has 1 embeddings") as told:
        check_end(Tokens.of(words(), rows=1), tiny_bundle.END, known=True, task="t")
    assert 'set end = "..." in the [[task]]' in str(told.value)


def test_an_end_of_the_task_s_own_ends_its_answers():
    own = words()
    own.add_tokens([AddedToken("<|stop|>", special=True)])
    wrap = wrapping(own, SimpleNamespace(eos_token_id=[1]), True, "<|stop|>")
    assert (wrap.end, wrap.stop_tokens) == ("<|stop|>", (own.convert_tokens_to_ids("<|stop|>"), 1))
    assert wrapping(words(), None, True).end == tiny_bundle.END


def test_a_base_s_text_is_known_without_its_weights(tmp_path):
    base = write_base(tmp_path / "base")
    (base / "model.safetensors").unlink()
    found = read_base_text(str(base))
    assert (found.rows, found.positions, found.names_end) == (len(words()), 128, True)
    assert found.tokens.encode("lock the door") == Tokens.of(words()).encode("lock the door")


def test_what_a_child_does_stays_there():
    seen: list[int] = []
    assert bounded(lambda: seen.append(1) or {"a": 1}) == {"a": 1}
    assert seen == []
    with pytest.raises(ValueError, match="no luck"):
        bounded(lambda: (_ for _ in ()).throw(KeyError("no luck")))


@pytest.mark.parametrize(("kind", "around"), [(T5Tokenizer, ("", "</s>")), (BartTokenizer, ("<s>", "</s>"))])
def test_an_encoder_reads_what_its_tokenizer_puts_around_a_text(kind, around):
    """Oracle: transformers' encode, which adds it."""
    own = kind(vocab=T5_WORDS, extra_ids=1) if kind is T5Tokenizer else kind(vocab=BART_WORDS, merges=[])
    wrap = wrapping(own, SimpleNamespace(eos_token_id=1), chat=True, start=(0,))
    assert (wrap.prefix, wrap.suffix) == around
    assert (wrap.start, wrap.end, wrap.stop_tokens) == ((0,), "</s>", (1, *([] if own.eos_token_id == 1 else [own.eos_token_id])))  # fmt: skip
    assert list(Tokens.of(own).prompt(ask(wrap, "ab {text}"), "b a")) == own.encode("ab b a")


def test_an_encoder_decoder_s_chat_template_comes_before_what_its_tokenizer_adds():
    wrap = wrapping(words(), None, chat=True, start=(0,))
    assert (wrap.prefix, wrap.suffix) == (render(words()).prefix, render(words()).suffix)
    assert wrapping(words(), None, chat=False, start=(0,)).suffix == ""


def test_what_a_limit_leaves_for_a_prompt():
    decoder, pair = Wrapping("", "", ".", (1,)), Wrapping("", "", ".", (1,), start=(7, 8))
    assert [decoder.room(10, n) for n in (3, 9, 12)] == [7, 1, -2]
    assert [pair.room(10, n) for n in (3, 8, 9)] == [10, 10, 0]
