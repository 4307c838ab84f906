"""The one boundary for JSON and TOML: whatever is in a file, a value or one line of the reader's own error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qia3.errors import DataError, first_line
from qia3.parse import each_once, parse_json, parse_toml, read_bytes, read_json, read_json_table

BAD_JSON = {
    "digits": "[" + "9" * 5000 + "]",
    "deep": "[" * 100_000,
    "cut": '{"a": ',
    "empty": "",
    "bytes": b"\xff\xfe{}",
    "two values": "{} {}",
}
BAD_TOML = {
    "digits": "a = " + "9" * 5000,
    "deep": "a = " + "[" * 100_000,
    "cut": "a = ",
    "twice": "a = 1\na = 2",
    "key": "= 1",
}


@pytest.mark.parametrize("text", BAD_JSON.values(), ids=BAD_JSON)
def test_json_that_cannot_be_read_is_one_line(text, tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        parse_json(text)
    with pytest.raises(DataError, match=r"^[^\n]*x\.json[^\n]*; fetch it again$"):
        read_json(file, DataError, "fetch it again")


def test_a_key_stands_once_in_our_files_and_the_last_one_counts_in_others(tmp_path):
    file = tmp_path / "x.json"
    file.write_text('{"a": {"integer digits": 1, "b": 2, "integer digits": 3}}')
    assert read_json(file, DataError) == {"a": {"integer digits": 3, "b": 2}}
    with pytest.raises(DataError, match=r"x\.json is not valid JSON: the key 'integer digits' occurs twice$"):
        read_json_table(file, DataError, pairs=each_once)
    file.write_text('{"a": {"b": 1}, "b": 2}')
    assert read_json(file, DataError, pairs=each_once) == {"a": {"b": 1}, "b": 2}


@pytest.mark.parametrize("text", BAD_TOML.values(), ids=BAD_TOML)
def test_toml_that_cannot_be_read_is_one_line(text):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        parse_toml(text)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "x.json", DataError) == [1]


@pytest.mark.parametrize("text", ["[]", "1", "null", '"a"', "true"])
def test_a_table_is_a_table(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match="a JSON object is expected"):
        read_json_table(tmp_path / "x.json", DataError)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        read_json(tmp_path / "pipe", DataError)


def test_what_is_not_there_and_what_is_too_large(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_bytes(tmp_path / "none", DataError)
    with pytest.raises(DataError, match="cannot read"):
        read_bytes(Path("a\0b"), DataError)
    (tmp_path / "long").write_bytes(b"12345")
    with pytest.raises(DataError, match="5 bytes, more than the limit of 4"):
        read_bytes(tmp_path / "long", DataError, largest=4)


def test_an_error_without_words_has_its_name():
    assert first_line(KeyError()) == "KeyError"
    assert first_line(ValueError("\n two\nthree")) == "two"
