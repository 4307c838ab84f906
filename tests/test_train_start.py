"""Where training starts from: an adapter of the same base, whole, in either form."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from qia3.bundle.adapter import Adapter, write_adapter
from qia3.bundle.peft import write_peft
from qia3.bundle.sites import Site
from qia3.errors import AdapterError
from qia3.train.start import read_start

BASE = hashlib.sha256(b"base").hexdigest()
SITES = (
    Site("layers.0.q", "query", "output", 12),
    Site("layers.0.k", "key", "output", 8),
    Site("layers.0.gate_up", "feed_forward", "output", 10, rows=tuple(range(5, 10)), down="layers.0.down"),
)


def vectors(sites=SITES):
    made = {}
    for i, site in enumerate(sites):
        made[site.name] = np.ones(site.size, np.float32)
        made[site.name][list(site.rows or range(site.size))] = 1.5 + i
    return made


def start(folder, found, form, sites=SITES, base=BASE):
    """What training starts from, of vectors written in one form or the other."""
    if form == "onnx":
        write_adapter(folder / "a.onnx_adapter", found, base)
        return read_start(folder / "a.onnx_adapter", SITES, BASE)
    write_peft(folder / "a", Adapter(found, base), sites, "base")
    return read_start(folder / "a", SITES, BASE)


@pytest.mark.parametrize("form", ["onnx", "peft"])
def test_training_starts_from_the_vectors_that_were_written(form, tmp_path):
    for sites in (SITES, SITES[1:]):  # an adapter that was made without query vectors has ones there
        for name, vector in start(tmp_path, vectors(sites), form, sites).items():
            np.testing.assert_array_equal(vector, vectors(sites)[name])


@pytest.mark.parametrize("form", ["onnx", "peft"])
def test_another_base_is_refused(form, tmp_path):
    with pytest.raises(AdapterError, match="was trained on another base"):
        start(tmp_path, vectors(), form, base=hashlib.sha256(b"other").hexdigest())


@pytest.mark.parametrize("left", [{}, {"layers.0.q.ia3_l": np.ones(12, np.float32)}])
def test_what_is_missing_is_named_and_not_taken_for_ones(left, tmp_path):
    with pytest.raises(AdapterError, match=r"layers\.0\.k\.ia3_l is missing; layers\.0\.gate_up\.ia3_l is missing"):
        start(tmp_path, left, "onnx")


def test_rows_that_do_not_train_stay_at_one(tmp_path):
    scaled = vectors() | {SITES[2].name: np.full(10, 2, np.float32)}
    with pytest.raises(AdapterError, match="gate rows of a fused layer"):
        start(tmp_path, scaled, "onnx")
