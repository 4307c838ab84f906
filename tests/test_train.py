"""Training: the loss against five plain lines, a frozen base, and runs that stop and go on."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from tiny import tiny
from tiny_pairs import PAIRS, START, adapted_pair

from qia3.base.load import fingerprint
from qia3.base.quantise import Grid, quantise_model
from qia3.batching.log import read_log
from qia3.batching.schedule import order
from qia3.batching.trees import Tree
from qia3.errors import Interrupted
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, get_vectors, set_vectors
from qia3.recipe import Train
from qia3.train import callbacks
from qia3.train.batches import padded
from qia3.train.compute import choose_compute
from qia3.train.model import VectorModel
from qia3.train.pairs import beside
from qia3.train.run import train_vectors

PROMPTS = tuple(tuple(np.random.default_rng(i).integers(3, 101, 4 + i % 5).tolist()) for i in range(16))
TREES = [Tree(p, ((5 + p[0] % 4, 2), (9, 10, 2)), 0) for p in PROMPTS]
SETTINGS = Train(steps=12, batch_size=4, learning_rate=2e-2, warmup_steps=2, checkpoint_every=4, compute="float32")


class Fixed:
    """Examples that are trees already. A draw may turn their answers round, as a drawn prompt changes a tree."""

    def __init__(self, trees, drawn=False):
        self.trees, self.drawn = trees, drawn

    def __len__(self):
        return len(self.trees)

    def longest_path(self):
        return max(t.longest_path for t in self.trees)

    def tree(self, index, draw=None):
        tree = self.trees[index]
        return (
            Tree(draw.choice([tree.prompt, tree.prompt[::-1]]), tree.answers, tree.right)
            if self.drawn and draw
            else tree
        )


EXAMPLES = Fixed(TREES, drawn=True)


def adapted(family="llama"):
    if family in PAIRS:
        return adapted_pair(family)
    model = tiny(family)
    quantise_model(model, Grid(32, False))
    return model, attach(model, find_roles(model).sites)


@torch.no_grad()
def loss(model, scaled):
    return float(VectorModel(model, scaled)(**padded(TREES))["loss"])


def log(folder):
    """The numbers of a run that do not depend on the clock."""
    return [
        {k: v for k, v in e.items() if k not in ("seconds", "examples_per_second")}
        for e in read_log(folder / "log.jsonl")
    ]


def stopping_at(step):
    """Interruption.on_step_end, with a SIGINT to ourselves after that step."""
    original = callbacks.Interruption.on_step_end

    def stop(self, args, state, control, **rest):
        if state.global_step == step and not self.raised:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, args, state, control, **rest)

    return stop


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_an_encoder_decoder_s_loss_falls_and_it_is_left_as_it_was(compute, tmp_path):
    model, scaled = adapted("t5 v1.1")
    before = fingerprint(model.encoder.block[1].layer[1].DenseReluDense.wi_0)
    settings = SETTINGS.model_copy(update={"steps": 30, "compute": compute, "learning_rate": 5e-2})
    record = train_vectors(model, scaled, EXAMPLES, settings, 0, tmp_path, "t")
    assert record.packed
    first, last = (np.mean([e["loss"] for e in part]) for part in (log(tmp_path)[:5], log(tmp_path)[-5:]))
    assert last < 0.8 * first
    assert fingerprint(model.encoder.block[1].layer[1].DenseReluDense.wi_0) == before
    assert model.config.dropout_rate == 0.1
    assert all(m.p == 0.1 for m in model.modules() if isinstance(m, torch.nn.Dropout))
    assert not model.training


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_the_loss_falls_and_the_base_stays_frozen(compute, tmp_path):
    model, scaled = adapted("qwen3")
    before = fingerprint(model.model.embed_tokens)
    settings = SETTINGS.model_copy(update={"steps": 40, "compute": compute, "learning_rate": 5e-2})
    record = train_vectors(model, scaled, EXAMPLES, settings, 0, tmp_path, "t")
    vectors = get_vectors(scaled)
    set_vectors(scaled, None)
    first = loss(model, scaled)
    set_vectors(scaled, vectors)
    last = loss(model, scaled)
    assert last < 0.8 * first
    assert fingerprint(model.model.embed_tokens) == before
    assert record.parameters == sum(s.site.parameters for s in scaled.values())
    assert sum(record.state_bytes.values()) == 16 * record.parameters


def test_what_is_saved_is_what_the_forward_pass_saw(tmp_path):
    model, scaled = adapted()
    train_vectors(model, scaled, EXAMPLES, SETTINGS, 0, tmp_path, "t")
    for layer in scaled.values():
        offset = layer.vector().detach() - 1
        assert torch.equal(offset.to(torch.bfloat16).float() + 1, layer.vector().detach())
        assert layer.delta.dtype == torch.float32


def test_a_signal_while_the_processes_are_asked_is_not_lost(tmp_path, monkeypatch):
    model, scaled = adapted()
    asked = []

    def any_of(flag, device):
        asked.append(flag)
        if len(asked) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return flag

    monkeypatch.setattr(callbacks.processes, "any_of", any_of)
    with pytest.raises(Interrupted, match="step 7 of 12"):
        train_vectors(model, scaled, EXAMPLES, SETTINGS, 3, tmp_path, "t")


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(family, tmp_path, monkeypatch):
    model, scaled = adapted(family)
    train_vectors(model, scaled, EXAMPLES, SETTINGS, 3, tmp_path / "whole", "t")
    whole = get_vectors(scaled)

    monkeypatch.setattr(callbacks.Interruption, "on_step_end", stopping_at(6))
    with pytest.raises(Interrupted, match="step 6 of 12"):
        train_vectors(model, scaled, EXAMPLES, SETTINGS, 3, tmp_path / "parts", "t")
    monkeypatch.undo()
    for step, state in ((9, None), (10, ""), (11, '{"epoch": 1,')):  # as a kill in the middle of saving leaves them
        (tmp_path / "parts" / "checkpoints" / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / "parts" / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    train_vectors(model, scaled, EXAMPLES, SETTINGS, 3, tmp_path / "parts", "t")
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    for name, vector in get_vectors(scaled).items():
        np.testing.assert_array_equal(vector, whole[name])


RANKED = SETTINGS.model_copy(
    update={"losses": ("lm", "unlikelihood", "length-normalised"), "steps": 6, "batch_size": 8}
)


CHANGES = [{"accumulate": 2}, {"accumulate": 8}, {"gradient_checkpointing": True}, {"row_tokens": 8}]
CHANGED = [*(("llama", change) for change in CHANGES), *(("t5", change) for change in CHANGES), ("bart", CHANGES[2])]


@pytest.mark.parametrize(("family", "change"), CHANGED)
def test_how_a_step_is_computed_does_not_change_what_is_trained(tmp_path, family, change):
    runs = []
    for name, settings in (("plain", RANKED), ("other", RANKED.model_copy(update=change))):
        model, scaled = adapted(family)
        train_vectors(model, scaled, EXAMPLES, settings, 0, tmp_path / name, "t")
        assert not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
        runs.append((log(tmp_path / name), get_vectors(scaled)))
    for one, other in zip(*(entries for entries, _ in runs), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=5e-5)
        assert one == pytest.approx(other, rel=1e-4)
    # a bfloat16 offset may round to its neighbour; where a gradient is near zero, as more are in the tiny T5, Adam makes
    # a part of a step of a rounding (steps are 2e-2)
    for name, vector in runs[0][1].items():
        np.testing.assert_allclose(runs[1][1][name], vector, atol=1e-3 if family == "llama" else 3e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_the_log_has_a_line_a_step_with_the_losses_and_the_rate(tmp_path, optimizer):
    model, scaled = adapted()
    settings = RANKED.model_copy(update={"optimizer": optimizer, "steps": 8, "warmup_steps": 3})
    record = train_vectors(model, scaled, EXAMPLES, settings, 0, tmp_path, "t")
    entries = read_log(tmp_path / "log.jsonl")
    assert [e["step"] for e in entries] == list(range(1, 9))
    np.testing.assert_allclose(
        [e["learning_rate"] for e in entries], [2e-2 * x for x in (0, 1 / 3, 2 / 3, 1, 0.8, 0.6, 0.4, 0.2)]
    )
    for e in entries:
        assert e["loss"] == pytest.approx(e["lm"] + e["unlikelihood"] + e["length-normalised"])
        assert e["examples_per_second"] == pytest.approx(8 / e["seconds"], rel=0.2)
    assert record.final_loss == pytest.approx(np.mean([e["loss"] for e in entries[-2:]]))
    assert record.packed
    assert record.state_bytes["optimizer"] == {"adamw": 8, "adafactor": 4}[optimizer] * record.parameters


@pytest.mark.parametrize("family", ["llama", "t5", "marian"])
def test_the_first_step_s_loss_is_that_of_its_examples(family, tmp_path):
    model, scaled = adapted(family)
    examples = Fixed(TREES)
    train_vectors(model, scaled, examples, SETTINGS, 5, tmp_path, "t")
    set_vectors(scaled, None)
    first = [TREES[i] for i in order(16, 48, 5)[:4]]
    batch = beside(first, START, 1, 96) if family in PAIRS else padded(first)
    assert read_log(tmp_path / "log.jsonl")[0]["loss"] == pytest.approx(
        float(VectorModel(model, scaled, SETTINGS.losses)(**batch)["loss"].detach()), rel=1e-5
    )


def test_every_example_comes_once_before_any_comes_again():
    rounds = order(7, 30, 0)
    for start in (0, 7, 14, 21):
        assert sorted(rounds[start : start + 7]) == list(range(7))
    assert list(rounds[:7]) != list(rounds[7:14])


def test_validation_keeps_the_best_state_and_stops(tmp_path):
    """Validation calls right what training makes unlikely, so its loss goes up."""
    model, scaled = adapted()
    other = Fixed([Tree(t.prompt, (t.answers[1][:2],)) for t in TREES[:6]])
    settings = RANKED.model_copy(update={"steps": 60, "checkpoint_every": 3, "patience": 2, "learning_rate": 5e-2})
    record = train_vectors(model, scaled, EXAMPLES, settings, 0, tmp_path, "t", other)
    assert record.steps == record.best_step + 2 * 3 < 60
    found = float(VectorModel(model, scaled)(**padded(other.trees))["loss"].detach())
    assert found == pytest.approx(record.validation_loss, rel=1e-5)


def test_a_run_with_validation_goes_on_as_if_it_had_not_stopped(tmp_path, monkeypatch):
    model, scaled = adapted()
    settings = SETTINGS.model_copy(update={"steps": 13, "checkpoint_every": 3, "patience": 4})
    whole = train_vectors(model, scaled, EXAMPLES, settings, 0, tmp_path / "whole", "t", Fixed(TREES[:3]))
    vectors = get_vectors(scaled)
    monkeypatch.setattr(callbacks.Interruption, "on_step_end", stopping_at(8))
    with pytest.raises(Interrupted):
        train_vectors(model, scaled, EXAMPLES, settings, 0, tmp_path / "parts", "t", Fixed(TREES[:3]))
    monkeypatch.undo()
    parts = train_vectors(model, scaled, EXAMPLES, settings, 0, tmp_path / "parts", "t", Fixed(TREES[:3]))
    assert (parts.best_step, parts.validation_loss, parts.steps) == (
        whole.best_step,
        whole.validation_loss,
        whole.steps,
    )
    for name, vector in get_vectors(scaled).items():
        np.testing.assert_array_equal(vector, vectors[name])


def test_training_starts_from_given_vectors(tmp_path):
    model, scaled = adapted()
    train_vectors(model, scaled, EXAMPLES, SETTINGS, 0, tmp_path / "first", "t")
    start = get_vectors(scaled)
    settings = SETTINGS.model_copy(update={"steps": 1, "learning_rate": 1e-9, "warmup_steps": 0})
    train_vectors(model, scaled, Fixed(TREES), settings, 0, tmp_path / "second", "t", start=start)
    for name, vector in get_vectors(scaled).items():
        np.testing.assert_array_equal(vector, start[name])


def test_a_model_that_cannot_pack_is_trained_with_a_row_for_each_answer(tmp_path, capsys):
    model, scaled = adapted("mistral")  # its window of 7 is shorter than the examples
    record = train_vectors(model, scaled, EXAMPLES, SETTINGS, 0, tmp_path, "t")
    assert not record.packed
    assert "MistralForCausalLM does not compute the same with several answers per row" in capsys.readouterr().err


def test_seeds_decide_the_run(tmp_path):
    model, scaled = adapted()
    results = []
    for i, seed in enumerate((0, 0, 1)):
        train_vectors(model, scaled, EXAMPLES, SETTINGS, seed, tmp_path / str(i), "t")
        results.append(np.concatenate(list(get_vectors(scaled).values())))
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()


def test_compute_follows_what_was_asked():
    assert choose_compute("float32") == torch.float32
    assert choose_compute("bfloat16") == torch.bfloat16
    assert choose_compute("auto") in (torch.float32, torch.bfloat16)
