"""One pass, many tasks: examples a second with 1, 4 and 16 tasks in a pass, beside the same tasks one by one.

Every cell trains its tasks for a few steps on SmolLM2-135M-Instruct (classification of four choices, T-Few's losses; or
`--losses lm`), each task with its own examples, and times steps after the first. Cells run in turn, and again in
another order, in one process; the median of a cell's steps is told, as examples of all tasks a second.

    python benchmarks/together.py --rounds 3 --out benchmarks/results/together.jsonl
    python benchmarks/together.py --table benchmarks/results/together.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch

from qia3.base.load import Asked, load_base
from qia3.batching.examples import Examples, source_of
from qia3.examples import Example
from qia3.ia3.adapted import AdaptedBase
from qia3.progress import muted
from qia3.recipe import Train
from qia3.train.compute import choose_compute
from qia3.train.prompts import wrapping
from qia3.train.run import Alone, computing_for, train_vectors
from qia3.train.together import Lane, Together

WORDS = "the lamp song door window floor plant oven is too very far bright loud cold open dry warm in hall attic study"
LABELS = ("lights", "music", "locks", "plants")
WARM, COUNTED = 1, 3  # steps


def examples(adapted: AdaptedBase, number: int, settings: Train) -> Examples:
    """A task's own lines, of 8 to 20 words."""
    from qia3.config import Task

    draw = random.Random(number)
    lines = tuple(
        Example(" ".join(draw.choices(WORDS.split(), k=draw.randint(8, 20))), draw.choice(LABELS), LABELS)
        for _ in range(32)
    )
    task = Task(name=f"t{number}", kind="classify", prompt="What is it about? {text}", train="x", test="x")
    base = adapted.base
    wrap = wrapping(base.tokenizer, base.model.generation_config, True, None)
    source = source_of(base.tokens, wrap, task, lines, LABELS)
    return Examples(base.tokens, [source], settings.max_length, settings.ranked, at_most=settings.answers)


def train(adapted: AdaptedBase, tasks: int, batch: int, settings: Train, joined: bool) -> float:
    """Examples of all tasks a second."""
    settings = settings.model_copy(update={"batch_size": batch, "steps": WARM + COUNTED})
    given = [examples(adapted, number, settings) for number in range(tasks)]
    model, scaled = adapted.model, adapted.scaled
    with tempfile.TemporaryDirectory() as place, muted():
        if not joined:
            clock = Clock()
            for number, lines in enumerate(given):
                train_vectors(model, scaled, lines, settings, 0, Path(place) / str(number), "t", how=clock)
            runs = [clock.ended[i : i + WARM + COUNTED] for i in range(0, len(clock.ended), WARM + COUNTED)]
            return batch / statistics.median([seconds for run in runs for seconds in between(run)])
        shared, waiting, ended = Together(model, scaled, tasks, settings), list(range(tasks)), []

        def body(lane: Lane) -> None:
            number = waiting.pop()
            train_vectors(model, lane.scaled, given[number], settings, 0, Path(place) / str(number), "t", how=lane)

        shared.told = lambda more, note: ended.append(time.perf_counter())
        with computing_for(model, choose_compute(settings.compute), settings):
            shared.work(body)
    return tasks * batch / statistics.median(between(ended[tasks - 1 :: tasks]))  # a pass ends with its last task


class Clock(Alone):
    """A task by itself, whose steps' ends are noted."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[float] = []

    @contextmanager
    def training(self, model, settings, title):
        with super().training(model, settings, title):
            yield lambda step, note: self.ended.append(time.perf_counter())


def between(ends: list[float]) -> list[float]:
    """Seconds of each step after the first ones."""
    return [after - before for before, after in pairwise(ends[WARM - 1 :])]


def measure(asked: argparse.Namespace) -> None:
    adapted = AdaptedBase.of(load_base(Asked("smollm2-135m-instruct", calibration=asked.calibration)))
    settings = Train(losses=("lm",)) if asked.losses == "lm" else Train()
    cells = [(tasks, batch, joined) for batch in asked.batches for tasks in asked.tasks for joined in (True, False)]
    cells = [
        cell for cell in cells if cell[2] or cell[0] == min(asked.tasks)
    ]  # one by one costs the same for any count
    for number in range(asked.rounds):
        for tasks, batch, joined in cells[number % len(cells) :] + cells[: number % len(cells)]:
            rate = train(adapted, tasks, batch, settings, joined)
            cell = {
                "tasks": tasks,
                "batch": batch,
                "joined": joined,
                "losses": asked.losses,
                "examples_per_second": round(rate, 3),
            }
            cell |= {"threads": torch.get_num_threads(), "round": number}
            print(json.dumps(cell), flush=True)
            with asked.out.open("a") as file:
                file.write(json.dumps(cell) + "\n")
            time.sleep(0.5)


def table(path: Path) -> None:
    """Medians of the rounds, and what a pass gains over one by one."""
    found = defaultdict(list)
    for line in path.read_text().splitlines():
        cell = json.loads(line)
        found[cell["losses"], cell["batch"], cell["tasks"], cell["joined"]].append(cell["examples_per_second"])
    for losses, batch in dict.fromkeys((key[0], key[1]) for key in found):
        alone = statistics.median(
            [rate for key, rates in found.items() if key[:2] == (losses, batch) and not key[3] for rate in rates]
        )
        print(f"{losses}, batch {batch}: one by one {alone:.2f} examples/s")
        for key, rates in sorted((k, v) for k, v in found.items() if k[:2] == (losses, batch) and k[3]):
            middle = statistics.median(rates)
            print(
                f"  {key[2]:>3} in a pass: {middle:.2f} ({min(rates):.2f} to {max(rates):.2f}), {middle / alone:.2f} times"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--losses", choices=["lm", "t-few"], default="t-few")
    parser.add_argument("--calibration", default="own")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/together.jsonl"))
    parser.add_argument("--table", type=Path)
    asked = parser.parse_args()
    if asked.table:
        table(asked.table)
    else:
        measure(asked)


if __name__ == "__main__":
    main()
