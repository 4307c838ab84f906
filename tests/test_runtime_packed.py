"""Weights packed for this processor and kept: the same answers, made once, one for each graph and processor, whole or
absent.
"""

from __future__ import annotations

import numpy as np
import pytest
import tiny_bundle as tiny

from qia3.bundle.opened import Bundle
from qia3.errors import BundleError, StorageError
from qia3.runtime import packed
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.engine import Engine

ROWS = [[5, 9, 250, 17], [8, 44]]


@pytest.fixture(scope="module", params=[0, 4])
def bundle(request, tmp_path_factory):
    return Bundle.open(tiny.write_bundle(tmp_path_factory.mktemp("bundle"), level=request.param))


def logits(engine, vectors):
    first, cache = engine.prefill(ROWS, vectors)
    return np.stack([first, engine.step([7, 9], cache, vectors)[0]])


def test_packed_weights_give_the_same_answers_with_and_without_adapters(bundle, tmp_path):
    plain, kept = Engine(bundle, threads=1), Engine(bundle, threads=1, packed=tmp_path)
    bank = AdapterBank(bundle)
    for vectors in ({}, bank.vectors("lamps"), bank.rows(["lamps", "echo"])):
        np.testing.assert_array_equal(logits(kept, vectors), logits(plain, vectors))


def test_packing_is_done_once_and_leaves_nothing_else(bundle, tmp_path):
    Engine(bundle, packed=tmp_path)
    (folder,) = tmp_path.iterdir()
    before = (folder / packed.PACKED).stat().st_mtime_ns
    Engine(bundle, packed=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]
    assert (folder / packed.PACKED).stat().st_mtime_ns == before


def test_another_processor_version_or_graph_has_its_own(bundle, tmp_path, monkeypatch):
    graph = bundle.manifest.decoder
    names = {packed._key(bundle, graph)}
    with monkeypatch.context() as patch:
        patch.setattr(packed, "_processor", lambda: ["another"])
        names.add(packed._key(bundle, graph))
    with monkeypatch.context() as patch:
        patch.setattr(packed.ort, "__version__", "0.0")
        names.add(packed._key(bundle, graph))
    merged = Bundle.open(tiny.write_bundle(tmp_path, mode="merged"))
    names.add(packed._key(merged, merged.manifest.decoder))
    assert len(names) == 4


def test_a_folder_that_cannot_be_written_is_one_clear_line(bundle, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        Engine(bundle, packed=tmp_path / "file")


def test_torn_packed_weights_are_one_clear_line(bundle, tmp_path):
    Engine(bundle, packed=tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / packed.PACKED).write_bytes(b"torn")
    with pytest.raises(BundleError, match="cannot load"):
        Engine(bundle, packed=tmp_path)


def test_a_graph_that_cannot_be_packed_is_one_clear_line_and_leaves_nothing(tmp_path):
    broken = Bundle.open(tiny.write_bundle(tmp_path / "bundle"), verify=False)
    (broken.path / broken.graph).write_bytes(b"torn")
    with pytest.raises(BundleError, match="cannot pack") as caught:
        Engine(broken, packed=tmp_path / "kept")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "kept").iterdir()) == []
