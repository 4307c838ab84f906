"""A task's training on an encoder-decoder from its files: prompts, mixture, demonstrations, a start, processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train_processes import LAUNCH, ROOT
from tiny import ALL
from tiny_bundle import END, tokenizer
from tiny_seq2seq import write_seq2seq
from train_pair import SAID, SETTINGS, job, trained

from qia3.base.load import Asked, load_base
from qia3.ia3.adapted import AdaptedBase
from qia3.train.task import load_task

NAMES = ["t5", *(["bart"] if ALL else [])]


@pytest.fixture(scope="module", params=NAMES)
def place(request, tmp_path_factory):
    """A folder with a base, and a task trained on it."""
    folder = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QIA3_CACHE", str(folder / "cache"))
        write_seq2seq(folder / "base", request.param)
        yield request.param, folder, trained(folder / "base", folder / "work")


def losses(work: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (work / "log.jsonl").read_text().splitlines()]


def test_what_ships_is_asked_as_it_was_trained(place):
    name, folder, done = place
    assert done.prompt.endswith("Topic of {text}?")
    assert done.prompt.count("\n\n") == 1  # the demonstration
    assert done.wrapping.start == (0,)
    assert done.record.packed == (name == "t5")
    assert done.record.examples == 12
    asked = json.loads((folder / "work" / "plan.json").read_text())
    assert [source["template"]["start"] for source in asked["sources"]] == [[0], [0]]


def test_the_validation_loss_is_that_of_each_pair_alone(place):
    """Oracle: the base in transformers with the vectors that were kept, a pair at a time."""
    _, folder, done = place
    adapted = AdaptedBase.of(load_base(Asked(str(folder / "base"), block_size=32)))
    encode = tokenizer().encode
    lm, ul, ln = [], [], []
    with adapted.wearing(done.vectors), torch.no_grad():
        for place_of, example in enumerate(job().data.validation):
            prompt, beta = question(place_of).replace("{text}", example.text), []
            for label in SAID:
                answer = encode(label + END).ids
                given, ahead = torch.tensor([encode(prompt).ids]), torch.tensor([[0, *answer[:-1]]])
                logits = adapted.model(input_ids=given, decoder_input_ids=ahead).logits
                each = logits[0].double().log_softmax(-1)[range(len(answer)), answer]
                beta.append(each.mean())
                lm += (-each).tolist() if label == example.answer else []
                ul += (-torch.log(1 - each.exp())).tolist() if label != example.answer else []
            ln.append(-torch.stack(beta).log_softmax(0)[list(SAID).index(example.answer)])
    expected = np.mean(lm) + np.mean(ul) + float(torch.stack(ln).mean())
    assert done.record.validation_loss == pytest.approx(expected, rel=1e-5)


def question(asked: int) -> str:
    """Of a validation example: the same demonstration each time, drawn from the others by its place."""
    others = [e for i, e in enumerate(job().data.validation) if i != asked]
    shown = random.Random(asked).sample(others, 1)[0]
    return f"Topic of {shown.text}? {shown.answer}\n\nTopic of {{text}}?"


def test_a_finished_task_is_taken_as_it_is_and_another_plan_is_not(place, capsys):
    _, folder, done = place
    again = trained(folder / "base", folder / "work")
    assert "already trained with the same plan" in capsys.readouterr().err
    adapted = AdaptedBase.of(load_base(Asked(str(folder / "base"), block_size=32)))
    for found in (again, load_task(adapted.base, adapted.scaled, job(), folder / "work")):
        assert found.vectors.keys() == done.vectors.keys()
        for name, vector in done.vectors.items():
            np.testing.assert_array_equal(found.vectors[name], vector)


def test_training_starts_from_an_adapter_of_the_same_base(place):
    _, folder, done = place
    still = {"init_adapter": folder / "work" / "adapter", "steps": 1, "learning_rate": 1e-9, "warmup_steps": 0}
    started = trained(folder / "base", folder / "started", SETTINGS.model_copy(update=still))
    assert any((vector != 1).any() for vector in done.vectors.values())
    for name, vector in done.vectors.items():
        np.testing.assert_array_equal(started.vectors[name], vector)


def test_two_processes_give_the_loss_of_one(place):
    _, folder, done = place
    words = [sys.executable, *LAUNCH, "--num_processes", "2", "--main_process_port", "0"]
    program = [str(Path(__file__).with_name("train_pair.py")), str(folder / "base"), str(folder / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    told = subprocess.run([*words, *program], capture_output=True, text=True, env=environment, timeout=600)
    assert told.returncode == 0, told.stderr
    ours, theirs = losses(folder / "two"), losses(folder / "work")
    assert ours[:2] == pytest.approx(theirs[:2], rel=1e-6)
    assert ours == pytest.approx(theirs, rel=2e-4)
    record = json.loads((folder / "two" / "record.json").read_text())
    assert record["validation_loss"] == pytest.approx(done.record.validation_loss, rel=1e-4)
