"""Tasks spread over processes and machines: killed, stopped, refused, and all of them in a table."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_build import complaint, qia3
from tiny_build import FILE, SAID, write_base, write_lines

from qia3 import build as building
from qia3 import publish
from qia3.bundle.opened import Bundle
from qia3.config import read_build
from qia3.many.outcome import read_ledger
from qia3.many.tasks import _receive
from qia3.many.work import Order, carry_out
from qia3.runtime.adapters import AdapterBank

NAMES = ("a", "b", "c")
STEPS = 24
# workers take seconds to import torch: `make test` has test_many_pool, which kills processes that do not
slow = pytest.mark.skipif(not os.environ.get("QIA3_ALL_FAMILIES"), reason="make families")
HEAD, TAIL = FILE.format(steps=8).split("[[task]]")[0], "[export]" + FILE.split("[export]")[1]
STAR = '[[task]]\nname = "*"\nkind = "classify"\nprompt = "Topic of {text}?"\ntrain = "tasks/*.train.jsonl"\ntest = "tasks/*.test.jsonl"\n'


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Bases that are kept for workers stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QIA3_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(building, "exported", lambda *_: {})  # the graph's trial is test_build's, and takes seconds
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Three tasks in files, and what training them one after the other gives in WORK `whole.work`."""
    folder = tmp_path_factory.mktemp("many")
    write_base(folder / "base")
    (folder / "tasks").mkdir()
    rows = [{"text": text, "label": label} for label, texts in SAID.items() for text in texts]
    for k, name in enumerate(NAMES):
        write_lines(folder / f"tasks/{name}.train.jsonl", [r for i, r in enumerate(rows) if i % 4 != k])
        write_lines(folder / f"tasks/{name}.test.jsonl", [r for i, r in enumerate(rows) if i % 4 == k])
    (folder / "qia3.toml").write_text(HEAD + STAR + TAIL)
    return folder


@pytest.fixture(scope="module")
def whole(place) -> Path:
    plan = read_build(place / "qia3.toml", output=str(place / "whole"), **{"train.steps": STEPS})
    assert [outcome.failure for outcome in building.train(plan, building.How(executor=None))] == [None] * len(NAMES)
    return place / "whole.work"


def order(place: Path, work: Path, **changes: object) -> Order:
    """Of the first task, for STEPS steps."""
    plan = read_build(place / "qia3.toml", work=str(work), **{"train.steps": STEPS})
    jobs = building.measured(plan, building.plan_jobs(plan))
    return replace(building._orders(plan, building.load(plan, True), jobs, False)[0], **changes)


def same_adapters(one: Path, other: Path, names=NAMES) -> None:
    """Another number of threads may add up in another order."""
    for name in names:
        ours, theirs = (load_file(w / name / "adapter/adapter_model.safetensors") for w in (one, other))
        for site, vector in theirs.items():
            np.testing.assert_allclose(ours[site], vector, atol=5e-3)
            assert np.abs(vector - 1).max() > 0.05


def trained_once(work: Path) -> dict[str, list[int]]:
    """Where each task's runs began; each began where a checkpoint was, and ended once."""
    begun: dict[str, list[int]] = {name: [] for name in NAMES}
    ends = []
    for line in read_ledger(work):
        if line["event"] == "begins":
            begun[line["task"]].append(line["step"])
        elif line["event"] == "ends":
            ends.append(line["task"])
    assert sorted(ends) == sorted(NAMES)
    assert all(steps[0] == 0 and steps == sorted(steps) and len({*steps}) == len(steps) for steps in begun.values())
    return begun


def when(condition, act) -> threading.Thread:
    """A thread that acts when the condition gives something."""

    def watch() -> None:
        for _ in range(24000):
            if found := condition():
                act(found)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def at_work(work: Path, count: int = 1):
    """The process that began a task as the one of number `count`, once there is a checkpoint of it."""

    def found() -> int | None:
        begun = [line for line in read_ledger(work) if line["event"] == "begins"]
        if len(begun) < count:
            return None
        last = begun[count - 1]
        steps = [int(p.parent.name[11:]) for p in (work / last["task"]).glob("checkpoints/*/trainer_state.json")]
        return int(last["worker"].split(":")[1]) if max(steps, default=0) > last["step"] else None

    return found


@slow
def test_one_killed_and_all_stopped_lose_nothing(place, whole, tmp_path, capsys):
    """A worker is killed, its successor goes on and is stopped with all of them, and then it is done here."""
    work = tmp_path / "work"
    words = ("train", place / "qia3.toml", "--work", work, "--steps", STEPS)
    when(at_work(work), lambda pid: os.kill(pid, signal.SIGKILL))
    when(at_work(work, 2), lambda _: os.kill(os.getpid(), signal.SIGTERM))
    code, out, err = qia3(capsys, *words, "--executor", "process:1")
    assert (code, out) == (130, ""), err
    assert "of 3 tasks are trained; run the same command to resume" in err.splitlines()[-1]
    assert "loss" not in err  # no progress of a worker
    code, out, err = qia3(capsys, *words, "--json")
    assert code == 0, err
    begun = trained_once(work)
    assert len(begun["a"]) == 3
    assert begun["a"][1] > 0
    same_adapters(work, whole)
    assert [task["kept"] for task in json.loads(out)["tasks"]] == [False] * 3
    assert sorted(path.name for path in work.iterdir()) == [*NAMES, "runs.jsonl"]


@slow
def test_a_dask_cluster_loses_a_worker_and_no_task(place, whole, tmp_path, capsys):
    """A real scheduler and two workers, one of them killed in the midst of a task."""
    pytest.importorskip("distributed")
    started: list[subprocess.Popen[bytes]] = []
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}

    def start(*words: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.{words[0]}", *words[1:]]
        started.append(subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL))

    try:
        start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", "s.json")
        while not (tmp_path / "s.json").exists():
            time.sleep(0.05)
        for _ in range(2):
            start("dask_worker", "--scheduler-file", "s.json", "--nthreads", "1", "--no-nanny", "--no-dashboard")
        address = json.loads((tmp_path / "s.json").read_text())["address"].removeprefix("tcp://")
        work = tmp_path / "work"
        when(at_work(work, 3), lambda pid: os.kill(pid, signal.SIGKILL))  # it has another task's result by then
        words = (
            "train",
            place / "qia3.toml",
            "--work",
            work,
            "--steps",
            STEPS,
            "--executor",
            f"dask://{address}",
            "--json",
        )
        code, out, err = qia3(capsys, *words)
        assert code == 0, err
        assert all(task["failure"] is None for task in json.loads(out)["tasks"])
        begun = trained_once(work)
        assert sorted(len(steps) for steps in begun.values()) == [1, 1, 2]
        assert len({line["worker"] for line in read_ledger(work)}) == 2
        assert "kept" not in {line["event"] for line in read_ledger(work)}  # what is done is not asked for again
        same_adapters(work, whole)
    finally:
        for process in started:
            process.kill()
            process.wait()


@slow
def test_a_build_spreads_its_training_and_exports_here(place, whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(building, "exported", publish.exported)
    words = ("build", place / "qia3.toml", "--steps", STEPS, "--output", tmp_path / "out", "--executor", "process:2")
    code, _, err = qia3(capsys, *words)
    assert code == 0, err
    assert len({line["worker"] for line in read_ledger(tmp_path / "out.work")}) == 2
    same_adapters(tmp_path / "out.work", whole)
    bundle = Bundle.open(tmp_path / "out")
    assert bundle.adapters == NAMES
    for name in NAMES:
        trained = load_file(tmp_path / "out.work" / name / "adapter/adapter_model.safetensors")
        shipped = AdapterBank(bundle).vectors(name)
        assert sorted(float(v.sum()) for v in shipped.values()) == pytest.approx(
            sorted(float(v.sum()) for v in trained.values())
        )


@slow
def test_submitit_s_own_processes(place, whole, tmp_path, capsys):
    """Where there is no Slurm; one task, for each job is a process that imports torch."""
    pytest.importorskip("submitit")
    words = ("train", place / "qia3.toml", "--work", tmp_path / "work", "--steps", STEPS, "--only", "a")
    code, _, err = qia3(capsys, *words, "--executor", f"submitit:{tmp_path / 'jobs'}")
    assert code == 0, err
    same_adapters(tmp_path / "work", whole, ("a",))


def test_no_scheduler_is_one_line(place, capsys, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(building, "load", None)  # it is told before anything is loaded
    told = complaint(capsys, "train", place / "qia3.toml", "--work", place / "x", "--executor", "dask://127.0.0.1:9")
    assert "no dask scheduler answers at 127.0.0.1:9" in told


def test_another_base_is_refused_by_the_worker(place, tmp_path):
    (found,) = carry_out(order(place, tmp_path / "work", fingerprint="f" * 64))
    assert found.record is None
    assert "but the tasks are for ffffffffffffffff" in str(found.failure)
    assert "\n" not in str(found.failure)
    assert not (tmp_path / "work" / "a").exists()


def test_a_worker_finds_the_base_by_its_fingerprint(place, tmp_path):
    """Wherever it was made from: here the model is not there any more."""
    asked = order(place, tmp_path / "work")
    (found,) = carry_out(replace(asked, asked=replace(asked.asked, model=str(tmp_path / "gone"))))
    assert found.failure is None


def test_what_was_made_on_another_disk_travels_back(place, whole, tmp_path):
    """The worker's WORK does not hold the asker's token."""
    (found,) = carry_out(order(place, tmp_path / "there"))
    _receive(found, tmp_path / "here" / "a")
    same_adapters(tmp_path / "here", whole, ("a",))
    assert (tmp_path / "here" / "a" / "record.json").read_bytes() == (tmp_path / "there/a/record.json").read_bytes()


def test_one_that_fails_takes_no_other_with_it(place, tmp_path, capsys):
    """An adapter of another base is found when its turn comes."""
    own = '[[task]]\nname = "b"\nkind = "classify"\ntrain = "tasks/b.train.jsonl"\ntest = "tasks/b.test.jsonl"\n'
    shutil.copytree(place / "base", tmp_path / "other")
    write_base(tmp_path / "other", seed=1)
    (tmp_path / "o.toml").write_text(
        (HEAD + own + TAIL).replace('"base"', '"other"').replace('"tasks/', f'"{place}/tasks/')
    )
    assert qia3(capsys, "train", tmp_path / "o.toml", "--steps", 1, "--work", tmp_path / "o")[0] == 0
    file = place / "bad.toml"
    file.write_text(HEAD + STAR + own + f'[task.training]\ninit_adapter = "{tmp_path / "o/b/adapter"}"\n' + TAIL)
    code, out, err = qia3(capsys, "train", file, "--work", tmp_path / "work", "--json")
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith(f"qia3: 1 of 3 tasks failed (the others are kept in {tmp_path / 'work'}): b: ")
    assert "another base" in last
    tasks = {task["task"]: task for task in json.loads(out)["tasks"]}
    assert {name: task["failure"] is None for name, task in tasks.items()} == {"a": True, "b": False, "c": True}
    assert tasks["a"]["scores"]["n"] == 3
    code, out, _ = qia3(capsys, "train", file, "--work", tmp_path / "work")
    table = [line.split() for line in out.splitlines() if line.split()[:1] in (["a"], ["b"], ["c"])]
    assert table[0][0] == "b"
    assert float(table[1][4]) <= float(table[2][4])  # of the others the worse one first
    assert out.count("already trained, kept") == 2
    assert "b" not in {line["task"] for line in read_ledger(tmp_path / "work")}  # it never began


def test_tasks_in_one_pass_end_as_those_one_by_one(place, whole, tmp_path, capsys):
    """Two lanes, three tasks, scores after all; a task whose batches are cut trains by itself."""
    words = ("train", place / "qia3.toml", "--work", tmp_path, "--steps", STEPS, "--together", 2)
    code, out, err = qia3(capsys, *words, "--json")
    assert code == 0, err
    same_adapters(tmp_path, whole)
    trained_once(tmp_path)
    kept = json.loads((whole / "b" / "scores.json").read_text())
    assert [task["scores"]["before"] for task in json.loads(out)["tasks"] if task["task"] == "b"] == [kept["before"]]
    file = place / "cut.toml"
    own = '[[task]]\nname = "b"\nkind = "classify"\ntrain = "tasks/b.train.jsonl"\ntest = "tasks/b.test.jsonl"\n'
    file.write_text(HEAD + STAR + own + "[task.training]\naccumulate = 2\n" + TAIL)
    code, out, err = qia3(capsys, "train", file, "--work", tmp_path, "--steps", 2, "--together", 3)
    assert code == 0, err
    assert "b trains by itself: its batches are split into parts (accumulate)" in err


def test_resume_refuses_what_was_trained_for_another_plan(place, tmp_path, capsys):
    words = ("train", place / "qia3.toml", "--only", "a", "--work", tmp_path)
    assert qia3(capsys, *words, "--resume")[0] == 0  # nothing there yet
    assert qia3(capsys, *words, "--resume")[0] == 0
    told = complaint(capsys, *words, "--resume", "--steps", 9)
    assert "were trained with another: a (training.steps was 8, is 9)" in told
    assert qia3(capsys, *words, "--steps", 9)[0] == 0


def test_accelerate_and_an_executor_are_not_for_one_run(place, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = complaint(capsys, "train", place / "qia3.toml", "--executor", "process:2")
    assert "cannot be combined with --executor" in told
