"""The bank: what was loaded stays what it was, and each row has its own."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_bundle as tiny

from qia3.bundle.adapter import Adapter
from qia3.bundle.opened import Bundle
from qia3.errors import AdapterError
from qia3.runtime.adapters import AdapterBank


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.open(tiny.write_bundle(tmp_path_factory.mktemp("bundle")))


def test_the_bank_gives_each_row_its_own(bundle):
    bank = AdapterBank(bundle)
    rows = bank.rows(["echo", None, "lamps", "none"])
    for name, size in tiny.SIZES.items():
        assert rows[name].shape == (4, 1, size)
        assert rows[name].dtype == np.float32
        np.testing.assert_array_equal(rows[name][0], tiny.random_vectors(2)[name][0])
        np.testing.assert_array_equal(rows[name][2], tiny.random_vectors(1)[name][0])
        np.testing.assert_array_equal(rows[name][[1, 3]], 1)
    assert all(v.shape == (1, 1, tiny.SIZES[n]) for n, v in bank.rows(["echo"]).items())
    assert bank.rows([]) == {}


def test_the_bank_reads_a_file_once_and_only_when_asked(bundle, monkeypatch):
    read = []
    monkeypatch.setattr(
        "qia3.runtime.adapters.load_adapter", lambda path, *_: read.append(path.name) or Adapter({}, None)
    )
    bank = AdapterBank(bundle)
    bank.vectors(None)
    assert read == []
    bank.rows(["lamps", "lamps"])
    bank.vectors("lamps")
    assert read == ["lamps.onnx_adapter"]


def test_an_unknown_name_lists_the_known_ones_nearest_first(bundle):
    bank = AdapterBank(bundle)
    with pytest.raises(AdapterError, match=r"did you mean 'lamps'\? it has: lamps, echo"):
        bank.vectors("lamp")
    with pytest.raises(AdapterError, match=r"no adapter 'zzz'; it has: "):
        bank.rows([None, "zzz"])


def test_a_merged_bundle_answers_to_its_task_alone(tmp_path):
    bank = AdapterBank(Bundle.open(tiny.write_bundle(tmp_path, mode="merged")))
    assert bank.vectors("lamps") == bank.vectors(None) == bank.rows(["lamps", None]) == {}
    with pytest.raises(AdapterError, match="did you mean 'lamps'"):
        bank.vectors("lamp")
