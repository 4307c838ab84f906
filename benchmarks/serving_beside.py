"""The server beside llama.cpp's, on the same weights and the same requests: one alone, eight of one adapter, eight of eight.

    python benchmarks/serving_beside.py dist/home-intents SmolLM2-135M-Instruct.Q4_1.gguf LLAMA_SERVER --rounds 3

LLAMA_SERVER is llama.cpp's `llama-server`, built with GGML_NATIVE; it gets eight slots, two threads, and eight LoRA
adapters of rank 8 on queries and values (random and small), which a request names by `lora`. Requests with different
adapters are not batched there. Prompts of 128 tokens of digits, not kept from one request to the next, 64 new tokens; the
servers take turns. Ours has eight IA³ adapters, random and near one. Bases: the GGUF's own codes there, the bundle's
grid made of the same file here.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import httpx2 as httpx
import numpy as np
from serving import NEW, PROMPT, ROWS, Serving, ask, text_of, write_adapters

from qia3.bundle.opened import Bundle
from qia3.runtime.bench import machine
from qia3.tokens import Tokens

RANK = 8
Ask = Callable[[int, str], tuple[int, float]]  # adapter and text to new tokens and seconds to the first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("server", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    bundle = Bundle.open(asked.bundle)
    with tempfile.TemporaryDirectory() as place:
        ours, theirs = Path(place) / "ours", Path(place) / "theirs"
        names = write_adapters(bundle, ours)
        theirs.mkdir()
        loras = [write_lora(theirs / f"{i}.gguf", asked.gguf, i) for i in range(ROWS)]
        with Serving(asked.bundle, ours) as http, Llama(asked.server, asked.gguf, loras) as other:
            asks: dict[str, Ask] = {
                "qia3": lambda i, text: ask(http, names[i], text),
                "llama.cpp": lambda i, text: ask_llama(other, i, text),
            }
            compare(asks, Tokens.read(asked.bundle / "tokenizer.json"), asked.rounds)


def compare(asks: dict[str, Ask], tokens: Tokens, rounds: int) -> None:
    rng = np.random.default_rng(1)
    ways = {"one alone": [0], "eight of one adapter": [0] * ROWS, "eight of eight adapters": list(range(ROWS))}
    rates: dict[tuple[str, str], list[float]] = {(way, who): [] for way in ways for who in asks}
    for round_ in range(rounds + 1):
        for way, adapters in ways.items():
            texts = [text_of(tokens, rng) for _ in adapters]
            for who, one in asks.items():
                start = time.perf_counter()
                with ThreadPoolExecutor(len(adapters)) as pool:
                    found = list(pool.map(one, adapters, texts))
                if round_:
                    rates[way, who].append(sum(count for count, _ in found) / (time.perf_counter() - start))
    print(f"{machine()}; prompts of {PROMPT} tokens, {NEW} new, {rounds} rounds; tokens/s")
    for (way, who), values in rates.items():
        print(f"{way:24} {who:10} {statistics.median(values):7.1f} ({min(values):.1f} to {max(values):.1f})")
    for way in ways:
        pairs = zip(rates[way, "qia3"], rates[way, "llama.cpp"], strict=True)
        print(f"{way:24} qia3 for llama.cpp: {statistics.median(a / b for a, b in pairs):.2f}")


def write_lora(path: Path, base: Path, seed: int) -> Path:
    """A LoRA of queries and values, in llama.cpp's form."""
    rng, reader = np.random.default_rng(seed), gguf.GGUFReader(str(base))
    made = gguf.GGUFWriter(str(path), "llama")
    made.add_type(gguf.GGUFType.ADAPTER)
    made.add_string(gguf.Keys.Adapter.TYPE, "lora")
    made.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(RANK))
    for tensor in reader.tensors:
        if tensor.name.endswith(("attn_q.weight", "attn_v.weight")):
            inputs, outputs = (int(n) for n in tensor.shape)
            made.add_tensor(f"{tensor.name}.lora_a", rng.normal(0, 0.01, (RANK, inputs)).astype(np.float32))
            made.add_tensor(f"{tensor.name}.lora_b", rng.normal(0, 0.01, (outputs, RANK)).astype(np.float32))
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return path


class Llama:
    """llama-server on a free port; a client of it."""

    def __init__(self, server: Path, model: Path, loras: list[Path]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [
            str(server),
            "-m",
            str(model),
            "--port",
            str(port),
            "-np",
            str(ROWS),
            "-c",
            str(ROWS * 256),
            "-t",
            "2",
        ]
        command += ["--lora-init-without-apply", "--lora", ",".join(map(str, loras))]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600)

    def __enter__(self) -> httpx.Client:
        while True:
            try:
                if self.http.get("/health").status_code == 200:
                    return self.http
            except httpx.TransportError:
                pass
            if self.process.poll() is not None:
                raise SystemExit("llama-server did not start")
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.process.terminate()
        self.process.wait()


def ask_llama(http: httpx.Client, adapter: int, text: str) -> tuple[int, float]:
    scales = [{"id": i, "scale": float(i == adapter)} for i in range(ROWS)]
    body = {"prompt": text, "n_predict": NEW, "stream": True, "cache_prompt": False, "temperature": 0, "lora": scales}
    start, first, count = time.perf_counter(), 0.0, 0
    with http.stream("POST", "/completion", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - start
                count = json.loads(line.removeprefix("data: ")).get("tokens_predicted") or count
    return count, first


if __name__ == "__main__":
    main()
