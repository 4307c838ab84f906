"""What a server writes per second: one request alone, eight at once of one task, and eight at once of eight tasks.

    python benchmarks/serving.py dist/home-intents --rounds 5

`qia3 serve` runs in a process of its own; the requests come from threads of this one, with the real client's routes and
streams. The eight adapters are random vectors near one, which write as long as any: what they say does not matter here.
Prompts are of 128 tokens that differ from the first on (`--shared 96`: all prompts of a task begin with the same 96, as
prompts with instructions or examples do), 64 new ones are asked. The three ways take turns; medians, and
the time to the first token in the slowest twentieth.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import httpx2 as httpx
import numpy as np

from qia3.bundle.adapter import Adapter
from qia3.bundle.opened import Bundle
from qia3.bundle.peft import write_peft
from qia3.bundle.task import Task
from qia3.runtime.bench import machine
from qia3.tokens import Tokens

PROMPT, NEW, ROWS = 128, 64, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shared", type=int, default=0)
    asked = parser.parse_args()
    bundle = Bundle.open(asked.bundle)
    beginning = text_of(Tokens.read(asked.bundle / "tokenizer.json"), np.random.default_rng(7), asked.shared)
    with tempfile.TemporaryDirectory() as place:
        names = write_adapters(bundle, Path(place), prompt=beginning + "{text}")
        with Serving(asked.bundle, Path(place)) as http:
            measure(http, bundle, names, asked.rounds, PROMPT - asked.shared)


def write_adapters(bundle: Bundle, place: Path, count: int = ROWS, prompt: str = "{text}") -> list[str]:
    """Random ones, of one prompt."""
    rng, sites = np.random.default_rng(0), bundle.manifest.sites
    job = Task("any", "generate", prompt, None, NEW, "")
    for i in range(count):
        # at most one, or an int8 cache would refuse them
        vectors = {s.name: np.minimum(rng.normal(1, 0.02, s.size), 1).astype(np.float32) for s in sites}
        write_peft(place / f"task-{i}", Adapter(vectors, bundle.fingerprint, job), sites, "any")
    return [f"task-{i}" for i in range(count)]


class Serving:
    """`qia3 serve` on a free port; a client of it."""

    def __init__(self, bundle: Path, adapters: Path, *more: str, log: IO[str] | int = subprocess.DEVNULL) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "qia3", "serve", str(bundle), "--port", str(port), "--adapters", str(adapters)]
        self.process = subprocess.Popen([*command, "--rows", str(ROWS), *more], stderr=log)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600)

    def __enter__(self) -> httpx.Client:
        while True:
            try:
                self.http.get("/health")
                return self.http
            except httpx.TransportError:
                if self.process.poll() is not None:
                    raise SystemExit("the server did not start") from None
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.process.terminate()
        self.process.wait()


def measure(http: httpx.Client, bundle: Bundle, names: list[str], rounds: int, own: int = PROMPT) -> None:
    """`own`: tokens of a prompt that no other has."""
    tokens = Tokens.read(bundle.path / "tokenizer.json")
    rng = np.random.default_rng(1)
    ways = {"one request alone": [names[0]], "eight of one task": names[:1] * ROWS, "eight of eight tasks": names}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    firsts: dict[str, list[float]] = {way: [] for way in ways}
    counts: dict[str, list[int]] = {way: [] for way in ways}  # one that ends early leaves its row to nobody
    for round_ in range(rounds + 1):
        for way, asked in ways.items():
            texts = [text_of(tokens, rng, own) for _ in asked]
            start = time.perf_counter()
            with ThreadPoolExecutor(len(asked)) as pool:
                found = list(pool.map(lambda pair: ask(http, *pair), zip(asked, texts, strict=True)))
            seconds = time.perf_counter() - start
            if round_:
                rates[way].append(sum(count for count, _ in found) / seconds)
                firsts[way] += [first for _, first in found]
                counts[way] += [count for count, _ in found]
    print(
        f"{machine()}; {ROWS} rows, prompts of about {PROMPT} tokens, {PROMPT - own} of them shared, {NEW} new, {rounds} rounds"
    )
    alone = rates["one request alone"]
    for way, values in rates.items():
        ratio = statistics.median(v / a for v, a in zip(values, alone, strict=True))
        late = float(np.quantile(firsts[way], 0.95))
        spread = f"({min(values):.1f} to {max(values):.1f}), {ratio:.2f} of one alone"
        told = f"first token within {late:.2f} s for 95 %; {statistics.mean(counts[way]):.0f} tokens each"
        print(f"{way:22} {statistics.median(values):7.1f} tokens/s {spread}; {told}")
    mixed = statistics.median(
        m / o for m, o in zip(rates["eight of eight tasks"], rates["eight of one task"], strict=True)
    )
    print(f"eight tasks for one: {mixed:.3f}")


def text_of(tokens: Tokens, rng: np.random.Generator, count: int = PROMPT) -> str:
    """Digits in words, about `count` tokens."""
    text = ""
    while count and len(tokens.encode(text)) < count:
        text += f"{rng.integers(10**6)} "
    return text


def ask(http: httpx.Client, name: str, text: str) -> tuple[int, float]:
    """New tokens, and seconds to the first."""
    body = {"model": name, "prompt": text, "max_tokens": NEW, "stream": True, "stream_options": {"include_usage": True}}
    start, first, count = time.perf_counter(), 0.0, 0
    with http.stream("POST", "/v1/completions", json=body) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            first = first or time.perf_counter() - start
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise SystemExit(chunk["error"]["message"])
            count = chunk.get("usage", {}).get("completion_tokens", count)
    return count, first


if __name__ == "__main__":
    main()
