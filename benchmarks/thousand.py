"""A server of 1,000 adapters beside one of 2: how soon it starts, what it holds, how fast it writes, and what a swap costs.

    python benchmarks/thousand.py dist/home-intents --rounds 3

The adapters are random vectors near one. Told:

    start      from the command to the first answer of /health; and until each adapter has written its first token
    memory     resident, when every adapter was asked once, beside what 4 bytes a number come to; once more with
               --adapter-memory 64
    tokens/s   eight requests at once, as benchmarks/serving.py has them, of 2 adapters in turn and of any of the 1,000;
               the servers take turns
    a swap     copying a row's vectors in (in this process), and `POST /v1/adapters` while eight streams run: how long it
               takes, and the longest gap between two tokens of any stream beside that without such requests
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import numpy as np
from serving import NEW, PROMPT, ROWS, Serving, ask, text_of, write_adapters
from soak import resident

from qia3.bundle.opened import Bundle
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.bench import machine
from qia3.runtime.engine import Engine
from qia3.runtime.slots import Slots
from qia3.tokens import Tokens

MANY, FEW, POSTS = 1000, 2, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    bundle = Bundle.open(asked.bundle)
    numbers = sum(bundle.vectors.values())
    print(f"{machine()}; {MANY} adapters of {numbers:,} numbers: {MANY * numbers * 4 / 2**20:.0f} MiB", flush=True)
    with tempfile.TemporaryDirectory() as place:
        few, many = Path(place) / "few", Path(place) / "many"
        names = {few: write_adapters(bundle, few, FEW), many: write_adapters(bundle, many, MANY)}
        held(asked.bundle, many, names[many], "64")
        started = time.perf_counter()
        with Serving(asked.bundle, few, "--context", "512") as http:
            print(f"start with {FEW} adapters: {time.perf_counter() - started:.2f} s")
            with held(asked.bundle, many, names[many], "512", stop=False) as other:
                rates({FEW: http, MANY: other}, list(names.values()), bundle, asked.rounds)
                posts(other, names[many])
    swap(bundle)


def held(folder: Path, adapters: Path, names: list[str], mib: str, stop: bool = True) -> Serving:
    """Start, and memory when every adapter was asked once; several clients, since one waits for steps."""
    begun = time.perf_counter()
    serving = Serving(folder, adapters, "--adapter-memory", mib, "--context", "512")
    http = serving.__enter__()
    started, warm = time.perf_counter() - begun, 0.0
    for part in (names[:ROWS], names[ROWS:]):
        with ThreadPoolExecutor(ROWS) as pool:
            list(pool.map(lambda name: one(http, name), part))
        warm = warm or resident(serving.process.pid)
    grown = resident(serving.process.pid) - warm
    entries = http.get("/v1/adapters").json()["data"]
    loaded = [e for e in entries if e["state"] == "loaded"]
    print(
        f"--adapter-memory {mib}: start {started:.2f} s, all {len(names)} asked after {time.perf_counter() - begun:.0f} s; "
        f"{len(loaded)} in memory, {sum(e['bytes'] for e in loaded) / 2**20:.0f} MiB by the list; resident {warm:.0f} MiB "
        f"after the first {ROWS}, {grown:+.0f} MiB after the last",
        flush=True,
    )
    if stop:
        serving.__exit__()
    return serving


def one(http: httpx.Client, name: str) -> None:
    body = {"model": name, "prompt": "dim the hall", "max_tokens": 1}
    http.post("/v1/completions", json=body).raise_for_status()


def rates(clients: dict[int, httpx.Client], names: list[list[str]], bundle: Bundle, rounds: int) -> None:
    tokens, rng = Tokens.read(bundle.path / "tokenizer.json"), np.random.default_rng(1)
    found: dict[int, list[float]] = {count: [] for count in clients}
    for round_ in range(rounds + 1):
        for (count, http), known in zip(clients.items(), names, strict=True):
            asked = [known[i % len(known)] if count == FEW else str(rng.choice(known)) for i in range(ROWS)]
            texts = [text_of(tokens, rng) for _ in asked]
            start = time.perf_counter()
            with ThreadPoolExecutor(ROWS) as pool:
                done = list(pool.map(lambda pair, http=http: ask(http, *pair), zip(asked, texts, strict=True)))
            if round_:
                found[count].append(sum(n for n, _ in done) / (time.perf_counter() - start))
    for count, values in found.items():
        print(f"{count:5} adapters: {statistics.median(values):.1f} tokens/s ({min(values):.1f} to {max(values):.1f})")
    pairs = zip(found[MANY], found[FEW], strict=True)
    print(f"{MANY} for {FEW}: {statistics.median(m / f for m, f in pairs):.3f}; prompts of {PROMPT}, {NEW} new tokens")


def posts(http: httpx.Client, names: list[str]) -> None:
    """Streams of all rows, first alone, then beside POST /v1/adapters."""
    for what in ("alone", "beside POST /v1/adapters"):
        gaps: list[float] = []
        took: list[float] = []
        enough = threading.Event()
        streams = [threading.Thread(target=stream, args=(http, name, gaps, enough)) for name in names[:ROWS]]
        for thread in streams:
            thread.start()
        time.sleep(1.5)  # all are at it
        began = len(gaps)
        for name in names[-POSTS:]:
            start = time.perf_counter()
            if what != "alone":
                http.post("/v1/adapters", json={"name": name}).raise_for_status()
                took.append(1e3 * (time.perf_counter() - start))
            time.sleep(0.2)
        kept = gaps[began:]
        enough.set()
        for thread in streams:
            thread.join()
        told = f"; {len(took)} posts, median {np.median(took):.1f} ms, longest {max(took):.1f}" if took else ""
        print(f"gaps of {ROWS} streams {what}: median {np.median(kept):.1f} ms, longest {max(kept):.1f}{told}")


def stream(http: httpx.Client, name: str, gaps: list[float], enough: threading.Event) -> None:
    """One text after another."""
    body = {"model": name, "prompt": "dim the hall", "max_tokens": 160, "stream": True}
    while not enough.is_set():
        with http.stream("POST", "/v1/completions", json=body) as answer:
            before = None
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    now = time.perf_counter()
                    gaps += [] if before is None else [1e3 * (now - before)]
                    before = now


def swap(bundle: Bundle) -> None:
    engine = Engine(bundle)
    slots, vectors = Slots(engine, ROWS, 512), AdapterBank(bundle).vectors(bundle.adapters[0])
    prompt = slots.prompt(list(range(300, 300 + PROMPT)), vectors)
    while prompt.advance() is None:
        pass
    joins, copies = [], []
    for _ in range(20):
        start = time.perf_counter()
        row = slots.join(prompt.cache, vectors)
        joins.append(1e3 * (time.perf_counter() - start))
        start = time.perf_counter()
        for name, array in slots.vectors.items():
            array[row] = vectors[name][0]
        copies.append(1e3 * (time.perf_counter() - start))
        slots.leave(row)
    print(
        f"a row's vectors copied in: {np.median(copies):.2f} ms, longest {max(copies):.2f}; with the {PROMPT} positions "
        f"of its prompt: {np.median(joins):.2f}, longest {max(joins):.2f}"
    )


if __name__ == "__main__":
    main()
