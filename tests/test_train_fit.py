"""Lines are measured before training: what does not fit is named by its file and line, or cut at the user's words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_bundle
from tiny_build import SAID, write_build, write_lines

from qia3.batching.data import Data
from qia3.batching.prompts import Wrapping
from qia3.build import measured, plan_jobs
from qia3.config import Task, read_build
from qia3.errors import ConfigError, DataError
from qia3.examples import Example, Place
from qia3.recipe import Train
from qia3.tokens import Tokens
from qia3.train.fit import fitted

LONG = "lock the door and " * 60


@pytest.fixture
def place(tmp_path) -> Path:
    write_build(tmp_path)
    (tmp_path / "base" / "model.safetensors").unlink()  # nothing here needs weights
    return tmp_path


def with_line(place: Path, name: str, row: dict) -> None:
    rows = [json.loads(line) for line in (place / name).read_text().splitlines()]
    write_lines(place / name, [rows[0], row, *rows[1:]])


def fit(place: Path, **changes):
    file = place / "qia3.toml"
    text = file.read_text()
    for old, new in changes.get("text", ()):
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    plan = read_build(file)
    return measured(plan, plan_jobs(plan))


def tokens() -> Tokens:
    return Tokens(tiny_bundle.tokenizer())


@pytest.mark.parametrize("name", ["topics.jsonl", "topics-test.jsonl", "commands.jsonl", "commands-test.jsonl"])
def test_a_line_that_does_not_fit_is_refused_by_its_file_and_number(place, name):
    key = "label" if name.startswith("topics") else "target"
    with_line(place, name, {"text": LONG, key: "lock"})
    with pytest.raises(DataError, match=rf"{name}, line 2: 1,080 characters") as told:
        fit(place)
    assert "the context of 96 tokens" in str(told.value)
    assert 'overlong = "cut"' in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["topics.jsonl", "topics-test.jsonl"])
def test_a_line_that_is_cut_keeps_instruction_template_and_answer(place, name, capsys):
    """Oracle: tokenizers alone counts the filled prompt, and one character more does not fit."""
    with_line(place, name, {"text": LONG, "label": "lock"})
    job = fit(place, text=[('kind = "classify"', 'kind = "classify"\noverlong = "cut"')])[0]
    example = (job.data.test if "test" in name else job.data.train)[1]
    assert LONG.startswith(example.text)
    assert len(example.text) > 100

    def needed(text: str) -> int:
        encode = tiny_bundle.tokenizer().encode
        prompt = f"s:{tiny_bundle.END}u:Topic of {text}?{tiny_bundle.END}a:"
        return len(encode(prompt).ids) + max(len(encode(label).ids) + 1 for label in SAID) - 1

    assert needed(example.text) <= 96 < needed(LONG[: len(example.text) + 1])
    assert f"1 line is cut to fit the context of 96 tokens: {place / name}, line 2" in capsys.readouterr().err


def test_what_training_cuts_is_counted_and_keeps_the_line_whole_otherwise(place, capsys):
    with_line(place, "topics.jsonl", {"text": "lock the door and lock up the hall", "label": "lock"})
    job = fit(place, text=[("steps = 8", "steps = 8\nmax_length = 24")])[0]
    said = capsys.readouterr().err
    assert "1 line is cut in training, to max_length = 24 tokens" in said
    assert f"{place / 'topics.jsonl'}, line 2" in said
    assert job.data.train[1].text == "lock the door and lock up the hall"
    assert "warning" not in (fit(place, text=[("max_length = 24", "max_length = 256")]) and capsys.readouterr().err)


def test_a_prompt_that_leaves_no_room_is_told(place):
    with pytest.raises(ConfigError, match=r"its prompt and its longest answer, .* leave no room.*context of 16 tokens"):
        fit(place, text=[("context_length = 96", "context_length = 16"), ('"Topic of {text}?"', '"Topic of 123456789 {text}?"')])  # fmt: skip


def test_a_label_that_leaves_no_room_is_named_with_its_own_line_and_not_written_out(place):
    with_line(place, "topics.jsonl", {"text": "dim", "label": "lights" * 1000})
    with pytest.raises(ConfigError, match=r"its longest answer, 'lights.*\(6,000 characters\)") as told:
        fit(place)
    assert "topics.jsonl, line 2), leave no room for the words of" in str(told.value)
    assert len(str(told.value)) < 800


def test_max_length_that_leaves_no_room_is_told(place):
    with pytest.raises(ConfigError, match=r"max_length = 8 leaves no room"):
        fit(place, text=[("steps = 8", "steps = 8\nmax_length = 8")])


def test_a_token_beyond_the_embedding_is_told_with_its_line(place):
    state = json.loads((place / "base" / "tokenizer.json").read_text())
    entry = state["added_tokens"][0] | {"content": "hallway", "special": False, "id": 300}
    rows = json.loads((place / "base" / "config.json").read_text())["vocab_size"]
    state["added_tokens"].append(entry | {"id": rows})
    (place / "base" / "tokenizer.json").write_text(json.dumps(state))
    with_line(place, "topics.jsonl", {"text": "the hallway is dark", "label": "lights"})
    with pytest.raises(
        DataError, match=rf"topics.jsonl, line 2: the base has no embedding for the token 'hallway' \(id {rows}; "
    ):
        fit(place)


def test_a_template_with_a_token_beyond_the_embedding_is_told_once(place):
    state = json.loads((place / "base" / "tokenizer.json").read_text())
    rows = json.loads((place / "base" / "config.json").read_text())["vocab_size"]
    state["added_tokens"].append(state["added_tokens"][0] | {"content": "<|turn|>", "id": rows})
    (place / "base" / "tokenizer.json").write_text(json.dumps(state))
    template = place / "base" / "chat_template.jinja"
    template.write_text(template.read_text().replace("u:", "") + "<|turn|>")
    with pytest.raises(ConfigError, match=r"no embedding for the token '<\|turn\|>'.*chat = false in the \[\[task\]\]"):
        fit(place)


@pytest.mark.parametrize("room", range(1, 24))
def test_the_longest_beginning_that_fits(room):
    words, template = "lock the door ☂ and é lock up the hall", "Topic of {text}?"
    found = tokens().fitting(template, words, room)
    fits = [n for n in range(len(words) + 1) if len(tokens().prompt(template, words[:n])) <= room]
    assert found == (words[: max(fits)] if fits else None)


def test_a_text_of_megabytes_is_cut_in_no_time():
    cut = tokens().fitting("Topic of {text}?", "lock the door " * 1_000_000, 90)
    assert 100 < len(cut) < 2000


def test_jobs_that_fit_are_what_they_were(place, capsys):
    plan = read_build(place / "qia3.toml")
    jobs = plan_jobs(plan)
    assert [replace(j) for j in measured(plan, jobs)] == jobs
    assert "warning" not in capsys.readouterr().err


def fit_beside(text: str, label: str, context: int, max_length: int = 256) -> Data:
    """One example of an encoder-decoder whose answers begin behind two tokens, cut where it does not fit."""
    task = Task(name="t", kind="generate", prompt="Topic of {text}?", train="a", test="b", overlong="cut")
    example = Example(text, label, place=Place("a.jsonl", 1))
    wrap = Wrapping("", tiny_bundle.END, tiny_bundle.END, (1,), start=(0, 1))
    return fitted(task, Data((example,), (example,), None), tokens(), wrap, [Train(max_length=max_length)], 0, context)


def counted(text: str) -> int:
    return len(tiny_bundle.tokenizer().encode(text).ids)


def test_an_encoder_and_its_decoder_have_a_context_each(capsys):
    """Oracle: tokenizers alone counts the prompt, whatever the answer's length, and one character more does not fit."""
    for label in ("lock", "lock the door and lock up the hall and the lights"):
        for cut in (fit_beside(LONG, label, 40).train[0].text, fit_beside(LONG, label, 40).test[0].text):
            prompt = f"Topic of {cut}?{tiny_bundle.END}"
            assert LONG.startswith(cut)
            assert counted(prompt) <= 40 < counted(f"Topic of {LONG[: len(cut) + 1]}?{tiny_bundle.END}")
    assert "cut to fit the context of 40 tokens" in capsys.readouterr().err


def test_an_answer_that_its_decoder_has_no_room_for_is_told():
    label = "lock the door and lock up"
    needed = 2 + counted(label + tiny_bundle.END) - 1
    assert fit_beside("lights", label, needed).train[0].text == "lights"
    with pytest.raises(
        ConfigError, match=rf"leave no room for the words of a.jsonl, line 1 in a context of {needed - 1} tokens"
    ):
        fit_beside("lights", label, needed - 1)
    with pytest.raises(ConfigError, match=rf"max_length = {needed} leaves no room"):
        fit_beside("lights", label, 96, max_length=needed)
    assert fit_beside("lights", label, 96, max_length=needed + 1)
