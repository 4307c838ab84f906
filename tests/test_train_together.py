"""One pass, many tasks: training some together is training each by itself."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import PROMPTS, SETTINGS, Fixed, adapted, log
from tiny import tiny
from tiny_encoders import tiny_encoder

from qia3.base.family import is_encoder
from qia3.base.pooling import note_pooling
from qia3.base.quantise import Grid, quantise_model
from qia3.batching.trees import Tree
from qia3.errors import ConfigError, Interrupted
from qia3.ia3.adapted import AdaptedBase
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, get_vectors, start_vectors
from qia3.train import apart, callbacks, run
from qia3.train.compute import choose_compute
from qia3.train.headed import new_head
from qia3.train.run import computing_for, train_vectors
from qia3.train.together import Together

LM = ("lm",)
TOLERANCE = (
    2e-4  # of an entry: Adam divides a gradient near nought by its own size, and takes its sign from the sum's order
)
# other examples, lengths, answers, losses, rates, optimisers, batches and steps; the third is validated
TASKS = {
    "a": (Fixed([Tree(p, ((5 + p[0] % 4, 2), (9, 10, 2)), 0) for p in PROMPTS], drawn=True), {"steps": 7}),
    "b": (
        Fixed([Tree((*p, *p), ((3 + p[1] % 5, 8, 2),)) for p in PROMPTS[:7]]),
        {"losses": LM, "steps": 4, "batch_size": 2, "learning_rate": 5e-2, "optimizer": "adafactor"},
    ),
    "c": (Fixed([Tree(p[:3], ((4, 2), (7, 7, 2), (6, 2)), 1) for p in PROMPTS[3:]]), {"batch_size": 1, "steps": 5}),
}
SEEDS = {"a": 0, "b": 3, "c": 5}
VALIDATION = {"c": Fixed([Tree(p[:4], ((4, 2), (7, 7, 2)), 1) for p in PROMPTS[:3]])}


def adapted_of(family):
    if family != "bert":
        return adapted(family)
    model = tiny_encoder("bert")
    quantise_model(model, Grid(32, False))
    note_pooling(model.config, Path("no-such-folder"))
    return model, attach(model, find_roles(model).sites)


def settings_of(name):
    return SETTINGS.model_copy(update=TASKS[name][1])


def one(model, scaled, name, folder, how=None):
    """Its vectors; an encoder tells three labels, by a head, and its weight is among them."""
    examples, settings, validation = TASKS[name][0], settings_of(name), VALIDATION.get(name)
    head = new_head(model, "xyz") if is_encoder(model.config) else None
    if head is not None:
        settings = settings.model_copy(update={"losses": LM})
        examples, validation = labelled(examples), validation and labelled(validation)
    train_vectors(model, scaled, examples, settings, SEEDS[name], folder / name, name, validation, head=head, how=how)
    weight = {} if head is None else {"head": head.weight.detach().numpy()}
    return get_vectors(scaled) | weight


def labelled(examples):
    return Fixed([Tree(tree.prompt, ((tree.prompt[0] % 3,),)) for tree in examples.trees], examples.drawn)


def together(model, scaled, names, folder, lanes=2):
    """With fewer lanes than tasks: one that is done makes room for another."""
    found, waiting = {}, list(names)
    shared = Together(model, scaled, lanes, SETTINGS)

    def body(lane):
        while waiting:
            name = waiting.pop(0)
            found[name] = one(model, lane.scaled, name, folder, lane)

    with computing_for(model, choose_compute("float32"), SETTINGS), shared.flag.listening():
        shared.work(body)
    return found


@pytest.fixture
def exact(monkeypatch):
    """Offsets are not rounded to bfloat16, in which sums in another order may fall to the other side."""

    def start(scaled, vectors):
        count = start_vectors(scaled, vectors)
        for layer in scaled.values():
            layer.precision = torch.float32
        return count

    monkeypatch.setattr(run, "start_vectors", start)


@pytest.mark.parametrize(("family", "lanes"), [("llama", 2), ("t5", 3), ("bert", 3)])
def test_law_tasks_of_one_pass_train_as_each_does_alone(family, lanes, tmp_path, exact):
    model, scaled = adapted_of(family)
    alone = {name: one(model, scaled, name, tmp_path / "alone") for name in TASKS}
    ours = together(model, scaled, TASKS, tmp_path / "ours", lanes)
    for name in TASKS:
        expected, found = log(tmp_path / "alone" / name), log(tmp_path / "ours" / name)
        assert [e["step"] for e in found] == [e["step"] for e in expected]
        for mine, theirs in zip(found, expected, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5, rel=0)
        for site, vector in alone[name].items():
            np.testing.assert_allclose(ours[name][site], vector, atol=TOLERANCE, rtol=0)
    assert not any(layer.chosen for layer in scaled.values())


def test_stopped_among_others_it_goes_on_alone(tmp_path, monkeypatch, exact):
    """And the other way round: a checkpoint is the task's own."""
    model, scaled = adapted()
    alone = {name: one(model, scaled, name, tmp_path / "alone") for name in ("a", "b")}
    with monkeypatch.context() as patch:
        original, sent = callbacks.Interruption.on_step_end, []

        def stop(self, args, state, control, **rest):
            if state.global_step == 3 and not sent:
                sent.append(os.kill(os.getpid(), signal.SIGINT))
            return original(self, args, state, control, **rest)

        patch.setattr(callbacks.Interruption, "on_step_end", stop)
        with pytest.raises(Interrupted, match=r"step \d+ of"):
            together(model, scaled, ("a", "b"), tmp_path / "ours")
    assert 3 <= len(log(tmp_path / "ours" / "a")) < 7
    ours = {"a": one(model, scaled, "a", tmp_path / "ours")}
    ours |= together(model, scaled, ("b",), tmp_path / "ours", 1)
    for name in alone:
        assert [e["step"] for e in log(tmp_path / "ours" / name)] == [e["step"] for e in log(tmp_path / "alone" / name)]
        for site, vector in alone[name].items():
            np.testing.assert_allclose(ours[name][site], vector, atol=TOLERANCE, rtol=0)


def test_rows_are_packed_as_they_are_alone(tmp_path):
    """In bfloat16 the probe would see its rounding: it is asked before."""
    model, scaled = adapted()
    settings = SETTINGS.model_copy(update={"compute": "bfloat16", "steps": 1})
    shared, records = Together(model, scaled, 1, settings), []

    def body(lane):
        records.append(train_vectors(model, lane.scaled, TASKS["a"][0], settings, 0, tmp_path, "a", how=lane))

    with computing_for(model, torch.bfloat16, settings):
        shared.work(body)
    assert records[0].packed


def test_one_that_fails_takes_no_other_along(tmp_path):
    model, scaled = adapted()
    shared = Together(model, scaled, 2, SETTINGS)
    names = iter(("a", "b"))

    def body(lane):
        name = next(names)
        one(model, lane.scaled, name, tmp_path, lane)
        if name == "b":
            raise ConfigError("b is done first, and says so")

    with pytest.raises(ConfigError, match="b is done first"):
        shared.work(body)
    assert len(log(tmp_path / "a")) == 7


@pytest.mark.parametrize("family", ["llama", "t5", "bert"])
def test_the_probe_tells_models_that_keep_rows_apart(family, monkeypatch):
    model, scaled = adapted_of(family)
    base = AdaptedBase(type("Base", (), {"model": model}), None, scaled)
    assert apart.why_apart(base) is None
    monkeypatch.setattr(
        apart, "worn", lambda scaled, lanes, rows, others: apart_worn(scaled, lanes[::-1], rows, others)
    )
    assert "does not compute the same" in apart.why_apart(base)


apart_worn = apart.worn


def test_a_model_that_drops_at_random_trains_one_by_one():
    model = tiny("gpt2")
    model.transformer.drop.p = 0.1
    assert "uses dropout" in apart.why_apart(AdaptedBase(type("Base", (), {"model": model}), None, {}))
