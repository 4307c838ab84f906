"""Law 7: adapters know their base.

And an .onnx_adapter's tensors are read as they are, or refused, all of them named.
"""

from __future__ import annotations

import gc
import hashlib

import numpy as np
import onnxruntime as ort
import pytest
import tiny_bundle as tiny

import qia3.bundle.adapter as adapter_module
from qia3.bundle.adapter import Adapter, load_adapter, read_adapter, write_adapter
from qia3.errors import AdapterError

OTHER = hashlib.sha256(b"other").hexdigest()


def flat(seed):
    return {name: vector.reshape(-1) for name, vector in tiny.random_vectors(seed).items()}


def load(path):
    return load_adapter(path, tiny.SIZES, tiny.FINGERPRINT)


@pytest.fixture
def file(tmp_path):
    tiny.write_adapter(tmp_path / "lamps.onnx_adapter", tiny.random_vectors(1))
    return tmp_path / "lamps.onnx_adapter"


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_loaded_tensors_are_the_written_ones(file):
    same(load(file).vectors, flat(1))
    same(load(file).inputs, tiny.random_vectors(1))


def test_what_we_write_is_what_onnxruntime_reads(tmp_path):
    """The oracle is ONNX Runtime's own reader, and its writer in tiny_bundle.py."""
    write_adapter(tmp_path / "a.onnx_adapter", flat(1), tiny.FINGERPRINT)
    theirs = ort.AdapterFormat.read_adapter(str(tmp_path / "a.onnx_adapter"))
    assert theirs.get_model_version() == int(tiny.FINGERPRINT[:7], 16)
    held = theirs.get_parameters()  # its arrays are views of what this holds
    same({name: value.numpy() for name, value in held.items()}, tiny.random_vectors(1))
    assert read_adapter(tmp_path / "a.onnx_adapter").base == tiny.FINGERPRINT[:7]


def test_loaded_tensors_own_their_memory(file):
    """ONNX Runtime's arrays are views of the adapter, and become garbage when it goes: seen as an accuracy of 11%
    instead of 87%.
    """
    adapter = load(file)
    assert all(t.flags.owndata and t.base is None for t in (*adapter.vectors.values(), *adapter.inputs.values()))
    gc.collect()
    churn = [np.full(size * k, 7, np.float32) for size in tiny.SIZES.values() for k in range(1, 12) for _ in range(40)]
    same(adapter.vectors, flat(1))
    assert churn


def test_nothing_is_looked_at_after_its_memory_is_freed(tmp_path, monkeypatch):
    """A second reader did not copy: a third of its tensors were other bytes as soon as anything was allocated."""
    rng = np.random.default_rng(0)
    vectors = {f"layers.{i}.x.ia3_l": rng.normal(1, 1, 400 + i).astype(np.float32) for i in range(90)}
    write_adapter(tmp_path / "a.onnx_adapter", vectors, tiny.FINGERPRINT)
    held, check = [], adapter_module._misfit

    def churn(*arguments):
        held.extend(np.full(400 + i, 7, np.float32) for i in range(90))
        return check(*arguments)

    monkeypatch.setattr(adapter_module, "_misfit", churn)
    same(read_adapter(tmp_path / "a.onnx_adapter").vectors, vectors)
    sizes = {name: vector.size for name, vector in vectors.items()}
    same(load_adapter(tmp_path / "a.onnx_adapter", sizes, tiny.FINGERPRINT).vectors, vectors)


def test_another_base_is_refused(tmp_path):
    tiny.write_adapter(tmp_path / "a.onnx_adapter", tiny.random_vectors(1), int(OTHER[:7], 16))
    with pytest.raises(AdapterError, match="was trained on another base"):
        load(tmp_path / "a.onnx_adapter")


def test_every_bad_tensor_is_listed(tmp_path):
    vectors = tiny.random_vectors(1)
    names = list(vectors)
    del vectors[names[0]]
    vectors[names[1]] = np.ones((1, 1, 33), np.float32)
    vectors[names[2]] = vectors[names[2]].reshape(-1)
    vectors[names[3]] = vectors[names[3]].astype(np.float64)
    vectors[names[4]][0, 0, 3] = np.nan
    vectors["layers.9.k_proj.ia3_l"] = np.ones((1, 1, 32), np.float32)
    tiny.write_adapter(tmp_path / "a.onnx_adapter", vectors)
    with pytest.raises(AdapterError) as refused:
        load(tmp_path / "a.onnx_adapter")
    text = str(refused.value)
    assert "6 bad tensors" in text
    for said in (
        f"{names[0]} is missing",
        f"{names[1]} has shape [1, 1, 33] instead of [1, 1, {tiny.SIZES[names[1]]}]",
        f"{names[2]} has shape [{tiny.SIZES[names[2]]}] instead of",
        f"{names[3]} is float64 instead of float32",
        f"{names[4]} holds NaN",
        "layers.9.k_proj.ia3_l is not an input of this base",
    ):
        assert said in text
    assert names[5] not in text


@pytest.mark.parametrize("content", [b"", b"not an adapter at all", b"\0" * 600])
def test_a_file_that_is_no_adapter_is_one_clear_line(tmp_path, content):
    (tmp_path / "a.onnx_adapter").write_bytes(content)
    with pytest.raises(AdapterError, match=r"cannot be read as an \.onnx_adapter") as refused:
        load(tmp_path / "a.onnx_adapter")
    assert "\n" not in str(refused.value)


def test_a_torn_adapter_is_one_clear_line(file, tmp_path):
    whole = file.read_bytes()
    (tmp_path / "a.onnx_adapter").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterError):
        load(tmp_path / "a.onnx_adapter")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(AdapterError, match="there is no adapter file"):
        load(tmp_path / "a.onnx_adapter")


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int8, np.int64])
def test_only_float32_vectors_are_vectors(tmp_path, dtype):
    tiny.write_adapter(tmp_path / "a.onnx_adapter", {n: v.astype(dtype) for n, v in tiny.random_vectors(1).items()})
    for read in (load, read_adapter):
        with pytest.raises(AdapterError, match=f"{len(tiny.SIZES)} bad tensors") as refused:
            read(tmp_path / "a.onnx_adapter")
        assert all(f"{name} is {np.dtype(dtype)} instead of float32" in str(refused.value) for name in tiny.SIZES)


def test_vectors_of_another_shape_are_refused_where_no_graph_says_the_size(tmp_path):
    shapes = {"a": (5,), "b": (5, 1), "c": (2, 1, 5), "d": (1, 1, 5)}
    tiny.write_adapter(tmp_path / "a.onnx_adapter", {n: np.ones(shape, np.float32) for n, shape in shapes.items()})
    with pytest.raises(AdapterError, match="3 bad tensors") as refused:
        read_adapter(tmp_path / "a.onnx_adapter")
    assert all(f"{n} has shape {list(shapes[n])} instead of [1, 1, size]" in str(refused.value) for n in "abc")


def test_what_may_be_left_out_may_be_left_out(tmp_path):
    vectors = tiny.random_vectors(1)
    first = next(iter(vectors))
    del vectors[first]
    tiny.write_adapter(tmp_path / "a.onnx_adapter", vectors)
    found = load_adapter(tmp_path / "a.onnx_adapter", tiny.SIZES, tiny.FINGERPRINT, optional={first})
    assert found.vectors.keys() == vectors.keys()


@pytest.mark.parametrize("base", [None, tiny.FINGERPRINT, tiny.FINGERPRINT[:7]])
def test_a_base_is_known_by_the_forms_that_were_ever_written(base):
    Adapter({}, base).check_base(tiny.FINGERPRINT, "it")


@pytest.mark.parametrize("length", [0, 1, 6, 8, 12, 63])
def test_the_beginning_of_a_fingerprint_is_none(length):
    with pytest.raises(AdapterError, match=f"{tiny.FINGERPRINT[:length][:12]!r} is not a fingerprint"):
        Adapter({}, tiny.FINGERPRINT[:length]).check_base(tiny.FINGERPRINT, "it")
