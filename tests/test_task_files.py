"""A table with a star is a task for each file that it matches."""

from __future__ import annotations

import re

import pytest
from test_config import complaint, read

MANY = """\
name = "many"
[base]
model = "smollm2-135m-instruct"
[[task]]
name = "first"
kind = "generate"
train = "first.jsonl"
test = "first.jsonl"
[[task]]
name = "*"
kind = "classify"
prompt = "2 * 2 {text}"
train = "tasks/*.train.jsonl"
test = "tasks/*.test.jsonl"
[task.training]
steps = 70
validation = "tasks/*.held.jsonl"
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "tasks").mkdir()
    for name in ("films.train", "bikes.train", "bikes.test", "other"):
        (tmp_path / "tasks" / f"{name}.jsonl").write_text("")
    return tmp_path


def test_each_file_is_a_task_with_the_star_in_its_paths(place):
    first, bikes, films = read(place, MANY).task
    assert [t.name for t in (first, bikes, films)] == ["first", "bikes", "films"]
    assert (films.train, films.test) == (place / "tasks/films.train.jsonl", place / "tasks/films.test.jsonl")
    assert films.overrides == {"steps": 70, "validation": place / "tasks/films.held.jsonl"}
    assert films.prompt == "2 * 2 {text}"  # a star in words is a star


def test_folders_match_too_and_an_absolute_pattern(place):
    for name in ("a", "b"):
        (place / "data" / name).mkdir(parents=True)
        (place / "data" / name / "train.jsonl").write_text("")
    for pattern in ("data/*/train.jsonl", f"{place}/data/*/train.jsonl"):
        plan = read(place, MANY.replace("tasks/*.train.jsonl", pattern))
        assert [t.name for t in plan.task] == ["first", "a", "b"]


def test_a_table_of_its_own_name_wins(place):
    own = '[[task]]\nname = "films"\nkind = "generate"\ntrain = "f.jsonl"\ntest = "f.jsonl"\n'
    plan = read(place, MANY + own)
    assert [(t.name, t.kind) for t in plan.task] == [
        ("first", "generate"),
        ("bikes", "classify"),
        ("films", "generate"),
    ]


def test_a_mistake_in_the_table_is_told_once_at_its_line(place):
    assert complaint(place, MANY.replace('kind = "classify"', 'kind = "clasify"')).count("line 11") == 1
    told = complaint(place, MANY.replace("steps = 70", "step = 70"))
    assert "unknown key 'step'" in told
    assert told.count("unknown key") == 1
    after = MANY + '[[task]]\nname = "last"\nkind = "x"\ntrain = "f.jsonl"\ntest = "f.jsonl"\n'
    assert "task.2.kind (line 20)" in complaint(place, after)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("tasks/*.none.jsonl", "no file in .* matches train = 'tasks/\\*.none.jsonl'"),
        ("tasks/train.jsonl", "exactly one star"),
        ("*/*.jsonl", "exactly one star"),
        ("tasks/?*.jsonl", "exactly one star"),
    ],
)
def test_a_pattern_that_is_none_or_matches_nothing_is_refused(place, pattern, said):
    assert re.search(said, complaint(place, MANY.replace("tasks/*.train.jsonl", pattern)))


def test_a_file_whose_name_is_no_task_s_is_told(place):
    (place / "tasks" / "a b.train.jsonl").write_text("")
    assert "'a b' is not a name" in complaint(place, MANY)
