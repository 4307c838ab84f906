"""What `POST /v1/adapters` costs while every row writes: on the server, and on its way there and back.

    python benchmarks/swaps.py dist/home-intents --adapters 8 1000 --posts 100

A server has so many adapters, random vectors near one. A second process reads a stream of each row, one text after
another, and notes the gaps between their tokens. This one sends requests of three kinds in turn, each after a pause of
a tenth of a second or so: GET /health, which does nothing; POST /v1/adapters of an adapter that is there; and POST of one
whose base is another, which is refused. Told: what the client waited, what the server's log says of the same requests,
and the gaps of the streams in a time without such requests and beside them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import httpx2 as httpx
import numpy as np
from serving import ROWS, Serving, write_adapters
from thousand import stream

from qia3.bundle.adapter import Adapter
from qia3.bundle.opened import Bundle
from qia3.bundle.peft import write_peft
from qia3.runtime.bench import machine

OTHER = "of-another-base"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--adapters", type=int, nargs="+", default=[8, 1000])
    parser.add_argument("--posts", type=int, default=100)
    parser.add_argument("--idle", action="store_true", help="without streams")
    asked = parser.parse_args()
    bundle = Bundle.open(asked.bundle)
    print(f"{machine()}; {0 if asked.idle else ROWS} streams; milliseconds", flush=True)
    for count in asked.adapters:
        with tempfile.TemporaryDirectory() as place:
            names = write_adapters(bundle, Path(place) / "adapters", count)
            sites = bundle.manifest.sites
            ones = {s.name: np.ones(s.size, np.float32) for s in sites}
            write_peft(Path(place) / "adapters" / OTHER, Adapter(ones, "0" * 64), sites, "any")
            log = Path(place) / "log"
            with log.open("w") as file, Serving(asked.bundle, Path(place) / "adapters", log=file) as http:
                measure(http, log, names, asked.posts, 0 if asked.idle else ROWS)


def measure(http: httpx.Client, log: Path, names: Sequence[str], posts: int, streams: int) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    reader = context.Process(target=read, args=(str(http.base_url), list(names[:streams]), theirs), daemon=True)
    reader.start()
    ours.recv()
    time.sleep(3)  # all rows are at it
    ours.send("gaps")
    ours.recv()
    began = time.perf_counter()
    time.sleep(6)
    ours.send("gaps")
    alone = ours.recv()
    took: dict[str, list[float]] = defaultdict(list)
    at = len(log.read_text().splitlines())
    began = time.perf_counter()
    for i in range(posts):
        for what, name in (("health", ""), ("read", names[-1 - i % len(names)]), ("refused", OTHER)):
            time.sleep(random.uniform(0.05, 0.15))
            start = time.perf_counter()
            answer = http.post("/v1/adapters", json={"name": name}) if name else http.get("/health")
            took[what].append(1e3 * (time.perf_counter() - start))
            assert answer.status_code == {"health": 200, "read": 201, "refused": 409}[what], answer.text
    seconds = time.perf_counter() - began
    ours.send("gaps")
    beside = ours.recv()
    ours.send("end")
    reader.join()
    logged = defaultdict(list)
    for line in log.read_text().splitlines()[at:]:
        if line.startswith("{") and (entry := json.loads(line))["route"] in ("/v1/adapters", "/health"):
            kind = {200: "health", 201: "read", 409: "refused"}[entry["status"]]
            logged[kind].append(entry["ms"])
    print(f"{len(names)} adapters")
    for what in took:
        print(f"  {what:8} client {told(took[what])}; on the server {told(logged[what])}")
    for when, gaps, over in (("alone", alone, 6.0), ("beside", beside, seconds)):
        if gaps:
            print(f"  gaps {when:7} {told(gaps)}; {len(gaps) / over:.0f} tokens/s", flush=True)


def told(values: Sequence[float]) -> str:
    return f"median {np.median(values):5.1f}, 95 % within {np.quantile(values, 0.95):5.1f}, longest {max(values):5.1f}"


def read(url: str, names: list[str], pipe: multiprocessing.connection.Connection) -> None:
    """Streams of a process of its own, so that reading them costs the one that measures nothing."""
    gaps: list[float] = []
    enough = threading.Event()
    with httpx.Client(base_url=url, timeout=600) as http:
        threads = [threading.Thread(target=stream, args=(http, name, gaps, enough)) for name in names]
        for thread in threads:
            thread.start()
        pipe.send("ready")
        while pipe.recv() == "gaps":
            found, gaps[:] = list(gaps), []
            pipe.send(found)
        enough.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
