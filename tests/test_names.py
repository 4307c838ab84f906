"""A name is a file's name on every disk that a bundle is copied to."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from qia3.config import Task
from qia3.names import check_file_name, check_name

GOOD = ["topics", "a", "7", "home-intents", "v1.2_b", "console", "com", "com10", "nullable", "A" * 64]
BAD = [
    *("", ".", "..", "a/b", "a\\b", "a b", "é", "-a", "A" * 65, "topics\n", "\ntopics", "a\x00"),
    *("a.", "con", "CON", "Nul", "com1", "LPT9.txt", "aux.b.c"),
]


@pytest.mark.parametrize("name", GOOD)
def test_good_names_are_names(name):
    assert check_name(name, ["other"]) == check_file_name(name) == name


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_cannot_name_a_file_everywhere_is_refused_in_one_line(name):
    for check in (check_file_name, check_name):
        with pytest.raises(ValueError, match=r".") as refused:
            check(name)
        assert "\n" not in str(refused.value)
    with pytest.raises(ValidationError):
        Task.model_validate({"name": name, "kind": "generate", "train": "a", "test": "b"})


@pytest.mark.parametrize("name", ["none", "None", "a.onnx_adapter", "a.ONNX_ADAPTER"])
def test_an_adapter_is_called_neither_none_nor_by_its_file(name):
    assert check_file_name(name) == name
    with pytest.raises(ValueError, match=r"without an adapter|leave it out"):
        check_name(name)


def test_two_names_that_differ_in_case_alone_are_one_file_on_some_disks():
    assert check_name("topics", ["topics", "other"]) == "topics"
    with pytest.raises(ValueError, match="'TOPICS' and 'topics' differ in case only"):
        check_name("TOPICS", ["other", "topics"])
