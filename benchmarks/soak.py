"""A server under mixed load: answers, streams that are left, bad requests, adapters that come and go, for as long as asked.

    python benchmarks/soak.py dist/home-intents examples/home-intents/test.jsonl --minutes 30

Every answer is compared with the same question asked alone, of an engine in this process that shares no batch with
anybody. A product of several rows sums in another order than that of one; at accuracy_level 4 activations are rounded to
int8 between products, so a last bit may become a step of 1/127, and logits move by tenths. So an answer that is another
one where the lone run had a near tie is counted apart; a bundle of the target ort-exact has none of them.

Told at the end: answers, wrong ones, requests without an answer, statuses that were not the expected ones, and the
server's memory in the first and the last quarter of the time (medians; the first tenth, in which it grows to its rows, is
left out).
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import numpy as np
from serving import Serving, write_adapters

from qia3.bundle.opened import Bundle
from qia3.bundle.task import Task
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import classify, prompt_of, task_of
from qia3.runtime.bench import machine
from qia3.runtime.cache import Floats
from qia3.runtime.engine import Engine

CLIENTS, QUESTIONS = 12, 40
PATIENCE = 900  # seconds for a request: other work on the machine is no fault of the server
TIE = 0.5  # what int8 activations may move logits by from one number of rows to another; see the header
BAD = [
    (b"{", 400),
    (b'{"model": "nobody", "messages": [{"role": "user", "content": "a"}]}', 404),
    (b'{"model": "home-intents", "messages": []}', 400),
    (b'{"model": "home-intents", "n": 3, "messages": [{"role": "user", "content": "a"}]}', 400),
    (b" " * (1 << 21), 413),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--threads", default="2", help="of the model")
    asked = parser.parse_args()
    questions = alone(asked.bundle, asked.texts)
    with tempfile.TemporaryDirectory() as place:
        write_adapters(Bundle.open(asked.bundle), Path(place))
        serving = Serving(asked.bundle, Path(place), "--threads", asked.threads, "--deadline", str(PATIENCE))
        with serving as http:
            Soak(str(http.base_url), questions, serving.process.pid).run(60 * asked.minutes)


@dataclass(frozen=True)
class Question:
    """`margin`: logits (for labels: nats) between what was chosen and the next best, where they were nearest."""

    adapter: str
    text: str
    answer: str
    margin: float


def alone(folder: Path, file: Path) -> list[Question]:
    """The bundle's tasks, each asked about each text by itself."""
    engine = Engine(Bundle.open(folder))
    bank, found = AdapterBank(engine.bundle), []
    texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    for name in engine.bundle.adapters:
        job, vectors = task_of(engine, name), bank.vectors(name)
        for text in texts[:QUESTIONS]:
            if job.kind == "classify":
                answer = classify(engine, job, vectors, text)
                best, second = sorted(answer.scores.values(), reverse=True)[:2]
                found.append(Question(name, text, answer.label, math.log(best / max(second, 1e-9))))
            else:
                found.append(Question(name, text, *written(engine, job, vectors, text)))
    return found


def written(engine: Engine, job: Task, vectors: Mapping[str, Floats], text: str) -> tuple[str, float]:
    """The likeliest text, and its smallest margin."""
    tokens: list[int] = []
    logits, cache = engine.prefill([prompt_of(engine, job, text)], vectors)
    margin = math.inf
    for _ in range(job.max_new_tokens):
        second, best = np.partition(logits[0], -2)[-2:]
        margin = min(margin, float(best - second))
        token = int(logits[0].argmax())
        if token in engine.bundle.stop_tokens:
            break
        tokens.append(token)
        logits, cache = engine.step([token], cache, vectors)
    return engine.tokenizer.decode(tokens), margin


class Soak:
    def __init__(self, url: str, questions: list[Question], server: int) -> None:
        self.url, self.questions, self.server = url, questions, server
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.memory: list[float] = []
        self.until = 0.0

    def run(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        threads = [threading.Thread(target=self.client, args=(i,)) for i in range(CLIENTS)]
        for thread in threads:
            thread.start()
        while time.monotonic() < self.until:
            self.memory.append(resident(self.server))
            time.sleep(min(2.0, seconds / 50))
        for thread in threads:
            thread.join()
        self.tell(seconds)

    def client(self, seed: int) -> None:
        draw = random.Random(seed)
        with httpx.Client(base_url=self.url, timeout=PATIENCE) as http:
            while time.monotonic() < self.until:
                action = draw.choices((self.answer, self.leave, self.bad, self.churn), (70, 12, 12, 6))[0]
                try:
                    action(http, draw)
                except httpx.HTTPError as error:
                    self.counts["without an answer"] += 1
                    self.wrong.append(f"{action.__name__}: {error!r}")

    def answer(self, http: httpx.Client, draw: random.Random) -> None:
        question = draw.choice(self.questions)
        body = {"model": question.adapter, "messages": [{"role": "user", "content": question.text}]}
        found = http.post("/v1/chat/completions", json=body)
        if found.status_code == 429:
            self.counts["queue full"] += 1
            time.sleep(float(found.headers["Retry-After"]))
            return
        self.counts["answers"] += 1
        said = found.json()["choices"][0]["message"]["content"] if found.status_code == 200 else found.text
        if said != question.answer:
            self.counts["near ties, the other way" if question.margin < TIE else "wrong answers"] += 1
            self.wrong.append(f"{question}: {said!r}")

    def leave(self, http: httpx.Client, draw: random.Random) -> None:
        """Reads a few events of a stream and goes."""
        body = {"model": "task-1", "prompt": draw.choice(self.questions).text, "max_tokens": 64, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as found:
            for _, _line in zip(range(draw.randrange(1, 12)), found.iter_lines(), strict=False):
                pass
        self.counts["streams left"] += 1

    def bad(self, http: httpx.Client, draw: random.Random) -> None:
        body, status = draw.choice(BAD)
        self.expect(http.post("/v1/chat/completions", content=body).status_code, {status})
        self.counts["bad requests"] += 1

    def churn(self, http: httpx.Client, draw: random.Random) -> None:
        name = f"task-{draw.randrange(2, 8)}"
        if draw.random() < 0.5:
            self.expect(http.delete(f"/v1/adapters/{name}").status_code, {204, 404})
        else:
            self.expect(http.post("/v1/adapters", json={"name": name}).status_code, {201})
        self.counts["adapters moved"] += 1

    def expect(self, status: int, right: set[int]) -> None:
        if status not in right:
            self.counts["wrong statuses"] += 1
            self.wrong.append(f"status {status} for {right}")

    def tell(self, seconds: float) -> None:
        print(f"{machine()}; {CLIENTS} clients, {seconds / 60:.0f} minutes")
        print(json.dumps(dict(sorted(self.counts.items()))))
        kept = self.memory[len(self.memory) // 10 :]
        first, last = kept[: len(kept) // 4], kept[-(len(kept) // 4) :]
        before, after = statistics.median(first), statistics.median(last)
        half = kept[len(kept) // 2 :]
        print(f"resident in the second half: {min(half):.1f} to {max(half):.1f} MiB")
        print(f"resident {before:.1f} MiB in the first quarter, {after:.1f} in the last ({after / before - 1:+.1%})")
        for line in self.wrong[:20]:
            print(line)


def resident(process: int) -> float:
    """MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024


if __name__ == "__main__":
    main()
