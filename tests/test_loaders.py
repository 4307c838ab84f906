"""PEFT, transformers.js and optimum-onnx make of every family what the last columns of the two tables say (`make interop`)."""

from __future__ import annotations

import pytest
from loaders import COLUMNS, COMMANDS, HAVE, LABELS, Loader, cells, named

pytestmark = pytest.mark.skipif(not all(HAVE.values()), reason="both loaders are wanted (make interop)")
ROWS = {named(row): row for table in LABELS for row in table.read_text(encoding="utf-8").splitlines()}


@pytest.fixture(scope="module")
def loaders():
    found = [Loader(name) for name in COMMANDS]
    yield found
    for loader in found:
        loader.close()


@pytest.mark.parametrize("name", [name for names in LABELS.values() for name in names])
def test_a_family_opens_as_the_table_says(name, loaders):
    """A column that was not run yet may turn out either way, but not wrong in silence."""
    said = [cell.strip() for cell in ROWS[name].split("|")[-1 - len(COLUMNS) : -1]]
    found = cells(name, loaders)
    assert [s if s != "not run" else f for s, f in zip(said, found, strict=True)] == found
    assert not any(cell.startswith("WRONG") for cell in found)
