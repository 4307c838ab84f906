"""Files of examples: what is read, and that every bad line is told with its file and number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qia3.config import read_build
from qia3.errors import DataError
from qia3.examples import Example, contradiction, read_examples


def lines(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


GOOD = {"text": "dim the hall", "label": "lights"}


def test_examples_are_read(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"text": "a\xe2\x80\xa8b\xc2\x85c", "label": "lock"}\r\n\n  \n{"text": "d", "label": "lock", "id": 3}'
    )
    assert read_examples(file, "classify", ["lock"]) == [Example("a\u2028b\u0085c", "lock"), Example("d", "lock")]
    assert read_examples(lines(file, {"text": "a", "target": "b", "choices": 7}), "generate") == [Example("a", "b")]
    own = {"text": "a", "label": "b", "choices": ["c", "b"]}
    assert read_examples(lines(file, own, GOOD), "classify", ["lights"]) == [
        Example("a", "b", ("c", "b")),
        Example("dim the hall", "lights"),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{text: 1}", r"line 2: not JSON \(.*column 2\)"),
        ("[" * 100_000, "line 2: not JSON"),
        ("[1]", "line 2: a JSON object is expected"),
        ({"text": "a"}, "line 2: 'label' is missing; the line has 'text'"),
        ({"label": "lights"}, "line 2: 'text' is missing"),
        ({"text": "  ", "label": "lights"}, "line 2: 'text' is empty"),
        ({"text": "a", "label": 3}, "line 2: 'label' is a number, not a string; put it in quotes"),
        ({"text": "a", "label": True}, "line 2: 'label' is true or false, not a string"),
        ({"text": ["a"], "label": "lock"}, "line 2: 'text' is a list, not a string"),
        ('{"text": "a", "label": ' + "1" * 5000 + "}", r"line 2: not JSON \(a number has too many digits\)"),
        ('{"text": "a", "label": "lock", "text": "b"}', "line 2: 'text' occurs twice"),
        ({"text": "a", "label": "lock", "labels": ["lock"]}, "line 2: it has both 'label' and 'labels'"),
        ({"text": "a", "labels": "lock"}, "line 2: 'labels' must be a list of non-empty strings"),
        ({"text": "a", "labels": []}, "line 2: 'labels' needs one or more answers"),
        ({"text": "a", "labels": ["lock", "lock"]}, "line 2: 'labels' needs one or more answers, all different"),
        ({"text": "a", "labels": ["lock", "Lock"]}, "line 2: label 'Lock' is not one of lights, lock"),
        ({"text": "a", "label": "Lights"}, "line 2: label 'Lights' is not one of lights, lock"),
        ({"text": "a", "label": "x" * 10**6}, r"line 2: label 'x{80}'\.\.\. \(1,000,000 characters\) is not one of"),
        (
            {"text": "a", "label": "x", "choices": ["y", "z" * 500]},
            r"line 2: label 'x' is not one of y, 'z{80}'\.\.\. \(500 characters\)",
        ),
        (
            {"text": "a", "label": "x", "choices": [*map(str, range(99))]},
            r"line 2: label 'x' is not one of 0, .*, 19, \.\.\. \(99 in all\)",
        ),
        ({"text": "a", "label": "x", "choices": ["y", "z"]}, "line 2: label 'x' is not one of y, z"),
        (
            {"text": "a", "label": "y", "choices": ["y"]},
            "line 2: 'choices' needs two or more answers, all different; it has 'y'",
        ),
        ({"text": "a", "label": "y", "choices": ["y", "y", "z"]}, "line 2: 'choices' needs two or more answers"),
        (
            {"text": "a", "label": "y", "choices": []},
            "line 2: 'choices' needs two or more answers, all different; it has none",
        ),
        ({"text": "a", "label": "y", "choices": "yz"}, "line 2: 'choices' must be a list of non-empty strings"),
        (
            {"text": "a", "label": "y", "choices": ["y", " "]},
            "line 2: 'choices' must be a list of non-empty strings",
        ),
        ({"text": "a", "label": "y", "choices": ["y", 3]}, "line 2: 'choices' must be a list of non-empty strings"),
        ('{"text": "\\ud83d", "label": "lock"}', "line 2: 'text' holds half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_told_with_its_file_and_number(tmp_path, line, said):
    with pytest.raises(DataError, match=f"a.jsonl, {said}") as told:
        read_examples(lines(tmp_path / "a.jsonl", GOOD, line, GOOD), "classify", ["lights", "lock"])
    assert "\n" not in str(told.value)


def test_several_bad_lines_are_told_together(tmp_path):
    with pytest.raises(DataError) as told:
        read_examples(lines(tmp_path / "a.jsonl", GOOD, *["{"] * 7, GOOD), "classify")
    assert [f"line {i}:" in str(told.value) for i in range(1, 10)] == [False, *[True] * 5, False, False, False]
    assert str(told.value).endswith("and 2 more lines")


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "no examples"), (b"\n \n", "no examples"), (b'{"text": "\xe9"}', "not UTF-8")]
)
def test_a_file_without_examples_is_told(tmp_path, content, said):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_examples(tmp_path / "a.jsonl", "generate")


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    for place, said in ((tmp_path, "is not a regular file"), (tmp_path / "nowhere.jsonl", "cannot read")):
        with pytest.raises(DataError, match=said):
            read_examples(place, "classify")


def test_an_example_knows_its_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(f"\n{json.dumps(GOOD)}\n\n{json.dumps(GOOD)}\n")
    found = read_examples(file, "classify")
    assert [str(e.place) for e in found] == [f"{file}, line 2", f"{file}, line 4"]
    assert found[0] == found[1]


def test_several_right_answers(tmp_path):
    row = {"text": "a noble gas", "labels": ["neon", "argon"], "choices": ["neon", "iron", "argon"]}
    found = read_examples(lines(tmp_path / "a.jsonl", row, {"text": "b", "labels": ["neon"]}), "classify", ["neon"])
    assert found == [Example("a noble gas", "neon", ("neon", "iron", "argon"), ("argon",)), Example("b", "neon")]
    assert found[0].right == ("neon", "argon")


def test_a_text_with_two_answers_is_reported(tmp_path):
    def rows(*pairs):
        return read_examples(lines(tmp_path / "a.jsonl", *({"text": t, "labels": a} for t, a in pairs)), "classify")

    assert contradiction(rows(("a", ["x"]), ("a", ["x"]), ("b", ["y"]), ("b", ["y", "z"]))) is None
    said = contradiction(rows(("a", ["x"]), ("b", ["y"]), ("a", ["y"]), ("a", ["z"])))
    assert said.startswith("2 lines repeat a text with different answers: 'a' is 'x' (")
    assert "line 1) and 'y' (" in said


SHOWN = sorted((Path(__file__).parents[1] / "examples").glob("*/qia3.toml"))


@pytest.mark.parametrize("file", SHOWN, ids=lambda file: file.parent.name)
def test_what_examples_ships_can_be_read_and_is_tested_on_texts_that_it_does_not_train_on(file):
    others = ("notebook", "serving")  # that have no build file
    folders = {path for path in file.parents[1].iterdir() if path.is_dir() and path.name not in others}
    assert {path.parent for path in SHOWN} == folders
    for task in read_build(file).task:
        trained = [e for part in task.train_files for e in read_examples(part, task.kind)]
        asked = read_examples(task.test, task.kind)
        assert not {e.text for e in trained} & {e.text for e in asked}
        assert contradiction(trained + asked) is None
        if task.kind == "classify":
            assert {e.answer for e in asked} == {e.answer for e in trained}
