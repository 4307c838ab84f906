"""Many tasks over a dask cluster, one of whose workers is killed: is any task lost, or trained twice?

A scheduler and workers, each a process of its own, and 64 small tasks that are drawn from a seed. When a few are done, a
worker that has a checkpoint of its task on the disk is killed (SIGKILL). Then: what the ledger says, the table of all
tasks, and the task that was cut, and one of each worker's, beside the same tasks trained here in one go.

    python benchmarks/many_tasks.py dist/many --tasks 64 --workers 2
    python benchmarks/many_tasks.py dist/many --base tiny --steps 24
    python benchmarks/many_tasks.py dist/many --only-ledger        # of a run that was made before
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from qia3.many.outcome import read_ledger

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
TINY = "tiny"  # the tests' random base of a few thousand weights: what is tried is who trains what, not how well
TOPICS = {
    "lights": (
        "the lamp in the {} is too bright",
        "it is dark in the {}",
        "put a light on in the {}",
        "dim the {} lamp",
    ),
    "music": (
        "play a slow song in the {}",
        "the music in the {} is too loud",
        "a louder tune for the {}",
        "stop the song in the {}",
    ),
    "heating": ("it is cold in the {}", "the {} is far too warm", "two degrees more in the {}", "I freeze in the {}"),
    "locks": ("is the door of the {} shut", "lock the {}", "somebody left the {} open", "bolt the door to the {}"),
    "cleaning": ("there is dust in the {}", "sweep the {} floor", "the {} needs a mop", "crumbs all over the {}"),
    "plants": (
        "water the fern in the {}",
        "the {} flowers are dry",
        "a leaf fell in the {}",
        "the palm in the {} droops",
    ),
    "windows": (
        "let some air into the {}",
        "rain comes into the {}",
        "the {} blind is stuck",
        "draw the curtains in the {}",
    ),
    "cooking": (
        "the oven in the {} is on",
        "boil some rice in the {}",
        "a timer for the soup in the {}",
        "the {} kettle whistles",
    ),
}
ROOMS = ("hall", "kitchen", "study", "attic", "cellar", "nursery", "porch", "workshop", "pantry", "library")
FILE = """name = "many"
[base]
model = "{base}"
[train]
steps = {steps}
batch_size = 4
warmup_steps = 2
checkpoint_every = 2
[[task]]
name = "*"
kind = "classify"
prompt = "What is it about? {{text}}"
train = "tasks/*.train.jsonl"
test = "tasks/*.test.jsonl"
"""


def write(folder: Path, tasks: int, base: str, steps: int) -> Path:
    """The build file and its tasks: each tells three topics apart, with 24 lines to train on and 12 to test."""
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    for number in range(tasks):
        draw = random.Random(number)
        lines = [
            {"text": sentence.format(room), "label": topic}
            for topic in draw.sample(sorted(TOPICS), 3)
            for sentence in TOPICS[topic]
            for room in draw.sample(ROOMS, 3)
        ]
        draw.shuffle(lines)
        for part, some in (("train", lines[:24]), ("test", lines[24:])):
            text = "".join(json.dumps(line) + "\n" for line in some)
            (folder / "tasks" / f"task{number:02}.{part}.jsonl").write_text(text)
    file = folder / "qia3.toml"
    file.write_text(FILE.format(base=base, steps=steps))
    return file


def cluster(folder: Path, workers: int) -> tuple[str, list[subprocess.Popen[bytes]]]:
    """Its address, and its processes: the scheduler and the workers, a thread each."""
    known = folder / "scheduler.json"
    known.unlink(missing_ok=True)
    started = [start(folder, "scheduler", "--host", "127.0.0.1", "--port", "0")]
    while not known.exists():
        time.sleep(0.1)
    started += [worker(folder) for _ in range(workers)]
    return json.loads(known.read_text())["address"].removeprefix("tcp://"), started


def worker(folder: Path) -> subprocess.Popen[bytes]:
    return start(folder, "worker", "--nthreads", "1", "--no-nanny")


def start(folder: Path, kind: str, *words: str) -> subprocess.Popen[bytes]:
    """One of dask's processes, with a thread for its arithmetic."""
    files = ["--scheduler-file", str(folder / "scheduler.json"), "--no-dashboard"]
    command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *files, *words]
    with (folder / "dask.log").open("a") as log:
        return subprocess.Popen(command, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def victim(work: Path, done: int) -> tuple[int, str] | None:
    """A worker whose task has a checkpoint, once so many tasks are done."""
    lines = read_ledger(work)
    ended = {line["task"] for line in lines if line["event"] == "ends"}
    if len(ended) < done:
        return None
    for line in lines:
        checkpoints = (work / line["task"]).glob("checkpoints/*/trainer_state.json")
        if line["event"] == "begins" and line["task"] not in ended and list(checkpoints):
            return int(line["worker"].split(":")[1]), line["task"]
    return None


def run(folder: Path, file: Path, workers: int, together: int) -> None:
    """Trains all, killing one worker on the way."""
    work = folder / "work"
    address, started = cluster(folder, workers)
    words = ["--executor", f"dask://{address}", "--work", str(work), "--together", str(together)]
    try:
        with (folder / "table.txt").open("w") as table:
            training = subprocess.Popen([sys.executable, "-m", "qia3", "train", str(file), *words], stdout=table)
            began = time.time()
            while training.poll() is None and (found := victim(work, 5)) is None:
                time.sleep(0.05)
            if training.poll() is None and found:
                os.kill(found[0], signal.SIGKILL)
                started.append(worker(folder))  # as whoever watches over a cluster would
                (folder / "killed.json").write_text(json.dumps({"process": found[0], "task": found[1]}))
            code = training.wait()
        print(f"exit code {code}, {time.time() - began:.0f} s with {workers} workers, one of them killed")
    finally:
        for process in started:
            process.kill()


def ledger(folder: Path) -> list[str]:
    """Prints what happened; returns the task that was cut, and the last one that each worker ended."""
    lines = read_ledger(folder / "work")
    begun, ended = (Counter(line["task"] for line in lines if line["event"] == e) for e in ("begins", "ends"))
    killed = json.loads((folder / "killed.json").read_text())
    print(f"killed: process {killed['process']}, in the midst of {killed['task']}")
    for line in lines:
        if line["task"] == killed["task"]:
            print(f"  {line['at'][11:23]}  {line['worker'].split(':')[1]:>7}  {line['event']:<7} step {line['step']}")
    each = Counter(line["worker"].split(":")[1] for line in lines if line["event"] == "ends")
    records = len(list((folder / "work").glob("*/record.json")))
    print(
        f"{len(ended)} tasks ended, {max(ended.values())} time each; {records} records; begun twice: {[t for t, n in begun.items() if n > 1]}"
    )
    kept = sum(line["event"] == "kept" for line in lines)
    print(f"tasks by worker: {dict(each)}; asked for again though done: {kept}")
    steps = [
        len((path.parent / "log.jsonl").read_text().splitlines()) for path in (folder / "work").glob("*/record.json")
    ]
    print(f"steps in the logs: {sum(steps)}, {min(steps)} to {max(steps)} a task")
    last = {line["worker"]: line["task"] for line in lines if line["event"] == "ends"}
    return list(dict.fromkeys((str(killed["task"]), *last.values())))


def beside(folder: Path, file: Path, tasks: list[str]) -> None:
    """Tasks of the cluster and the same ones trained here in one go."""
    only = [word for task in tasks for word in ("--only", task)]
    words = [sys.executable, "-m", "qia3", "train", str(file), *only, "--work", str(folder / "alone")]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    for task in tasks:
        one, other = (load_file(folder / w / task / "adapter/adapter_model.safetensors") for w in ("work", "alone"))
        apart = max(float(np.abs(one[name] - other[name]).max()) for name in one)
        moved = max(float(np.abs(vector - 1).max()) for vector in other.values())
        print(f"{task}, beside one go here: vectors at most {apart:g} apart; they moved by {moved:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--together", type=int, default=1)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--only-ledger", action="store_true")
    asked = parser.parse_args()
    base = str(Path(asked.base).absolute()) if Path(asked.base).exists() else asked.base
    if asked.base == TINY:
        from tiny_build import write_base

        base = str(write_base(asked.folder.absolute() / "base"))
        os.environ["QIA3_CACHE"] = str(asked.folder.absolute() / "cache")
    file = write(asked.folder, asked.tasks, base, asked.steps)
    if not asked.only_ledger:
        run(asked.folder, file, asked.workers, asked.together)
    tasks = ledger(asked.folder)
    print((asked.folder / "table.txt").read_text())
    beside(asked.folder, file, tasks)


if __name__ == "__main__":
    main()
