"""`qia3.open`: what it gives is what the parts give, and the public surface is what it says."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tiny_bundle

import qia3
from qia3.bundle.opened import Bundle
from qia3.errors import AdapterError, ConfigError
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import classify, reply, task_of
from qia3.runtime.engine import Engine

TEXTS = ["dim the hall", "lock up", "play a song", "it is cold"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tiny_bundle.write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def model(place):
    return qia3.open(str(place), threads=1)


@pytest.fixture(scope="module")
def engine(place):
    return Engine(Bundle.open(place), threads=1)


def test_the_surface_is_what_it_says():
    assert sorted(qia3.__all__) == ["Model", "QIA3Error", "__version__", "open"]
    assert all(hasattr(qia3, name) for name in qia3.__all__)
    assert qia3.open is qia3.Model
    with pytest.raises(AttributeError, match="no attribute 'close'"):
        qia3.close  # noqa: B018


def test_importing_it_loads_nothing():
    code = "import sys, qia3; print({'numpy', 'onnxruntime', 'torch', 'tokenizers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_label_its_scores_and_its_batch(model, engine):
    vectors, task = AdapterBank(engine.bundle).vectors("lamps"), task_of(engine, "lamps")
    for text in TEXTS:
        expected = classify(engine, task, vectors, text)
        assert model.label(text, "lamps") == expected.label
        assert model.scores(text, "lamps") == expected.scores
    assert model.labels(TEXTS, "lamps") == [model.label(text, "lamps") for text in TEXTS]
    assert model.label(TEXTS[0], "lamps", choices=["lock", "play"]) in ("lock", "play")


def test_text_comes_in_pieces(model, engine):
    vectors, task = AdapterBank(engine.bundle).vectors("echo"), task_of(engine, "echo")
    expected = "".join(reply(engine, task, vectors, TEXTS[0], 5))
    assert "".join(model.generate(TEXTS[0], "echo", max_new_tokens=5)) == expected
    assert "".join(model.generate(TEXTS[0], "none", max_new_tokens=5)) != expected


def test_what_it_cannot_do_is_one_line(model):
    with pytest.raises(AdapterError, match="no adapter 'lamp'; did you mean 'lamps'"):
        model.label("x", "lamp")
    with pytest.raises(ConfigError, match="several adapters; name one: echo, lamps or none"):
        model.label("x")
    with pytest.raises(ConfigError, match="'echo' has no choices to rank"):
        model.labels(TEXTS, ["lamps", "lamps", "echo", "lamps"])
    with pytest.raises(ConfigError, match="4 texts and 1 adapters"):
        model.labels(TEXTS, ["lamps"])
    with pytest.raises(ConfigError, match="not an encoder"):
        model.embed(TEXTS)
    with pytest.raises(qia3.QIA3Error):
        qia3.open("nowhere")


def test_prepared_it_answers_the_same(place, model):
    own = qia3.open(place, threads=1)
    own.prepare("lamps")
    assert own.engine.begun
    assert [own.label(text, "lamps") for text in TEXTS] == [model.label(text, "lamps") for text in TEXTS]
    assert np.isfinite(list(own.scores(TEXTS[0], "lamps").values())).all()
