"""How long a text that is being written waits for others: gaps between its tokens, alone and while others are asked.

    python benchmarks/stalls.py dist/home-intents --seconds 8

One stream is written with random vectors near one, again and again; meanwhile two clients ask /v1/classify for one text
after another (with 48 choices of the request), then two send prompts of about 128 tokens that write one token. A client reads the
stream's events as they come. Told: the median gap, the 99th percentile and the longest one, in ms.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx2 as httpx
import numpy as np
from serving import Serving, text_of, write_adapters

from qia3.bundle.opened import Bundle
from qia3.runtime.bench import machine
from qia3.tokens import Tokens

NEW = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=8)
    asked = parser.parse_args()
    bundle = Bundle.open(asked.bundle)
    tokens = Tokens.read(bundle.path / "tokenizer.json")
    choices = [f"{word} {i}" for i in range(12) for word in ("lamp", "door", "music", "timer")]
    rng = np.random.default_rng(3)

    def classify(http: httpx.Client) -> None:
        body = {"model": writes, "input": f"dim the lamp {rng.integers(10**6)}", "choices": choices}
        http.post("/v1/classify", json=body).raise_for_status()

    def prompt(http: httpx.Client) -> None:
        body = {"model": writes, "prompt": text_of(tokens, rng), "max_tokens": 1}
        http.post("/v1/completions", json=body).raise_for_status()

    print(f"{machine()}; gaps between a stream's tokens in ms; {len(choices)} choices")
    with tempfile.TemporaryDirectory() as place:
        (writes,) = write_adapters(bundle, Path(place), 1)
        with Serving(asked.bundle, Path(place)) as http:
            compare(
                http,
                writes,
                {"alone": None, "beside /v1/classify": classify, "beside prompts of 128": prompt},
                asked.seconds,
            )


def compare(
    http: httpx.Client, model: str, ways: Mapping[str, Callable[[httpx.Client], None] | None], seconds: float
) -> None:
    gaps(http, model, 2, None)
    for name, other in ways.items():
        found, others = gaps(http, model, seconds, other)
        told = f"median {np.median(found):.1f}, 99 % within {np.quantile(found, 0.99):.1f}, longest {max(found):.1f}"
        print(f"{name:24} {told}; {len(found)} gaps, {others / seconds:.1f} other requests a second", flush=True)


def gaps(
    http: httpx.Client, model: str, seconds: float, other: Callable[[httpx.Client], None] | None
) -> tuple[list[float], int]:
    """Between tokens of one text, in ms, and how many others were answered."""
    until, found, count = time.monotonic() + seconds, list[float](), [0, 0]

    def ask(i: int, do: Callable[[httpx.Client], None]) -> None:
        with httpx.Client(base_url=http.base_url, timeout=60) as mine:
            while time.monotonic() < until:
                do(mine)
                count[i] += 1

    threads = [threading.Thread(target=ask, args=(i, other)) for i in range(2) if other is not None]
    for thread in threads:
        thread.start()
    while time.monotonic() < until:
        body = {"model": model, "prompt": "Once upon a time there was", "max_tokens": NEW, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as answer:
            before = None
            for line in answer.iter_lines():
                if line.startswith("data: {") and json.loads(line.removeprefix("data: "))["choices"][0]["text"]:
                    now = time.perf_counter()
                    found += [] if before is None else [1e3 * (now - before)]
                    before = now
    for thread in threads:
        thread.join()
    return found, sum(count)


if __name__ == "__main__":
    main()
