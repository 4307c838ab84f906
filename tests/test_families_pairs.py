"""Every family of encoder-decoders is what docs/encoder-decoders.md says of it."""

from __future__ import annotations

import pytest
from families_pairs import AGREES, TABLE, outcome, table, told
from tiny import ALL
from tiny_seq2seq import SEQ2SEQ

ROWS = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("name", SEQ2SEQ if ALL else [])
def test_an_encoder_decoder_is_what_the_table_says(name):
    found = outcome(name)
    assert found.side < AGREES
    assert found.merged is None or found.merged < AGREES
    assert not found.idle
    assert any(row.startswith(told(name, found)) for row in ROWS)


def test_the_table_has_every_family_once():
    assert [row.split("|")[1].strip() for row in ROWS] == [*SEQ2SEQ]
    assert TABLE.read_text(encoding="utf-8") == table(ROWS)
    assert "WRONG" not in TABLE.read_text(encoding="utf-8")
