"""task.json: a task comes back as it was written, and anything else is one line before it is used."""

from __future__ import annotations

import json

import pytest

from qia3.bundle.task import Task, plain_task, read_task, write_task
from qia3.errors import AdapterError

GOOD = {
    "kind": "classify",
    "prompt": "Topic of {text}?",
    "choices": ["a", "b"],
    "ranking": "mean",
    "max_new_tokens": 8,
    "end": "</s>",
}


def test_a_task_comes_back_as_it_was_written(tmp_path):
    for task in (
        Task.from_json("t", GOOD),
        plain_task("t", "Ü: ", "\n", ""),
        Task.from_json("t", GOOD | {"choices": None}),
    ):
        write_task(tmp_path, task)
        assert read_task(tmp_path, "t") == task
    assert Task.from_json("t", GOOD).to_json() == GOOD


def test_a_folder_without_a_task_has_none(tmp_path):
    assert read_task(tmp_path, "t") is None


def test_a_file_of_an_older_bundle_ranks_by_the_sum():
    assert Task.from_json("t", {k: v for k, v in GOOD.items() if k != "ranking"}).ranking == "sum"


@pytest.mark.parametrize("key", [key for key in GOOD if key != "ranking"])
def test_a_missing_key_is_named(key, tmp_path):
    (tmp_path / "task.json").write_text(json.dumps({k: v for k, v in GOOD.items() if k != key}))
    with pytest.raises(AdapterError, match=f"'{key}' is missing"):
        read_task(tmp_path, "t")


WRONG = [
    *(("kind", v) for v in ("translate", 1, None, ["classify"])),
    *(("prompt", v) for v in ("no place", "{text} {text}", 1, ["{text}"], None, "\ud800{text}")),
    *(("choices", v) for v in (7, "ab", [], ["a", "a"], ["a", ""], [1, 2], [["a"]], {"a": 1}, ["\udfff"])),
    *(("ranking", v) for v in ("max", None, 1)),
    *(("max_new_tokens", v) for v in (0, -1, 1.5, "8", True, None, 10**30)),
    *(("end", v) for v in (2, None, ["</s>"])),
    ("surplus", 1),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_value_is_one_line_that_names_the_key(key, value, tmp_path):
    (tmp_path / "task.json").write_text(json.dumps(GOOD | {key: value}))
    with pytest.raises(AdapterError, match=rf"task\.json is not a task: '{key}' is not") as refused:
        read_task(tmp_path, "t")
    assert "\n" not in str(refused.value)


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    (tmp_path / "task.json").write_text(json.dumps({"kind": "generate", "prompt": "{text}", "end": 3, "extra": 1}))
    with pytest.raises(AdapterError) as refused:
        read_task(tmp_path, "t")
    assert all(f"'{key}' is" in str(refused.value) for key in ("choices", "max_new_tokens", "end", "extra"))


def test_generation_has_no_choices():
    with pytest.raises(ValueError, match="for classification"):
        Task.from_json("t", GOOD | {"kind": "generate"})


@pytest.mark.parametrize("text", ["", "[1]", "null", "{", '{"kind": ' + "9" * 5000 + "}", "[" * 100000, "\xff"])
def test_what_is_no_json_object_is_one_line(text, tmp_path):
    (tmp_path / "task.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(AdapterError) as refused:
        read_task(tmp_path, "t")
    assert "\n" not in str(refused.value)
