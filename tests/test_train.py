"""Training: the loss against five plain lines, a frozen base, and runs that stop and go on."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from tiny import tiny

from qia3.base.load import fingerprint
from qia3.base.quantise import quantise_model
from qia3.errors import Interrupted
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, get_vectors, set_vectors
from qia3.recipe import Train
from qia3.runtime.examples import Example
from qia3.train import callbacks
from qia3.train.batches import padded
from qia3.train.callbacks import read_log
from qia3.train.compute import choose_compute
from qia3.train.examples import Examples, Source
from qia3.train.model import VectorModel
from qia3.train.prompts import wrapping
from qia3.train.run import train_vectors
from qia3.train.trees import Tree

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
        return Tree(draw.choice([tree.prompt, tree.prompt[::-1]]), tree.answers, tree.right) if self.drawn and draw else tree


EXAMPLES = Fixed(TREES, drawn=True)


def adapted(family="llama"):
    model = tiny(family)
    quantise_model(model, 32, symmetric=False)
    return model, attach(model, find_roles(model).sites)


@torch.no_grad()
def loss(model, scaled):
    return float(VectorModel(model, scaled)(**padded(TREES))["loss"])


def log(folder):
    """The numbers of a run that do not depend on the clock."""
    return [{k: v for k, v in e.items() if k not in ("seconds", "examples_per_second")} for e in read_log(folder / "log.jsonl")]


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


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch):
    model, scaled = adapted()
    train_vectors(model, scaled, EXAMPLES, SETTINGS, 3, tmp_path / "whole", "t")
    whole = get_vectors(scaled)

    original = callbacks.Interruption.on_step_end

    def stop_at_six(self, args, state, control, **rest):
        if state.global_step == 6 and not self.raised:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, args, state, control, **rest)

    monkeypatch.setattr(callbacks.Interruption, "on_step_end", stop_at_six)
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


class Letters:
    """A tokenizer of single letters with a chat template, in the few methods that prompts use."""

    eos_token, eos_token_id, bos_token, bos_token_id, chat_template = ".", 46, "<", 60, "yes"

    def encode(self, text, add_special_tokens=True):
        return [60] * add_special_tokens + [ord(c) for c in text]

    def apply_chat_template(self, messages, **_):
        if messages[0]["role"] == "system":
            raise ValueError("no system turn")
        return f"<U:{messages[-1]['content']};A:"


def test_a_long_prompt_loses_its_beginning_and_never_the_answer():
    wrap = wrapping(Letters(), None, chat=True)
    assert (wrap.prefix, wrap.suffix, wrap.end, wrap.stop_tokens) == ("<U:", ";A:", ".", (46,))
    source = Source(("{text}",), "{text}", wrap, (Example("abcdefgh", "yes"),), None)
    tree = Examples(Letters(), [source], max_length=8).tree(0)
    assert "".join(map(chr, tree.prompt)) == "h;A:"
    assert "".join(map(chr, tree.answers[0])) == "yes."
    assert wrapping(Letters(), None, chat=False).prefix == "<"
