"""Speed and memory of one base on a CPU, QIA³ beside its peers, in one interleaved run, in the style of llama-bench.

    pip install ".[build,bench]"
    python benchmarks/decode_models.py smollm2 dist/bench           # makes every contender's model of the same weights
    python benchmarks/decode.py dist/bench/smollm2 --rounds 7 --json dist/bench/smollm2.json

    python benchmarks/seq2seq_models.py flan-t5-base dist/bench --ctranslate2 PYTHON --optimum PYTHON      # and encoder-decoders
    python benchmarks/decode.py dist/bench/flan-t5-base --tests pp128 pp512 tg64 --ctranslate2 PYTHON --optimum PYTHON

Each contender lives in a process of its own, loaded once. A round asks each of them in turn for pp128, pp512 (prompt
tokens a second, no cache before) and tg128 (tokens a second, one at a time, after a prompt of one); what is asked of
encoder-decoders stands in seq2seq_worker.py. Each round begins with another contender, and before each there is a pause:
an ONNX Runtime process that has just ended a run slows the next one down, for its threads still spin. Medians over
rounds, the range beside them, and the median of each round's ratio to the best peer (the one with the best median):
what the machine does from round to round falls out of it. Close differences want many short rounds: --tests tg32
--rounds 40. All greedy work is left out: a fixed token is fed, so that every contender does the same number of steps.

Roofline: the bytes that a token streams (codes, scales and block sums, as qia3.footprint.kernels has them) over the
read bandwidth that a process measures in the same rounds (a sum over 1 GiB by torch on the same threads).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("decode_worker.py")
PAIRS = Path(__file__).with_name("seq2seq_worker.py")
MAKERS = {  # what peers with environments of their own are made by
    "ctranslate2": "seq2seq_models.py",
    "optimum": "seq2seq_models.py",
    "openvino": "decode_models.py",
}


class Contender:
    """A process that holds one model and answers one line with one line."""

    def __init__(
        self, name: str, words: list[str], threads: int, worker: Path = WORKER, python: str = sys.executable
    ) -> None:
        self.name = name
        self.disk_bytes = sum(f.stat().st_size for f in _weights(Path(words[1])))
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        command = [python, str(worker), *words, "--threads", str(threads)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.loaded = self.answer()

    def ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit(f"{self.name} ended with code {self.process.wait()}")


def contenders(folder: Path) -> dict[str, list[str]]:
    """Name -> the worker's words, for every model that is in `folder`."""
    known: dict[str, list[str]] = {}
    for block in (32, 64, 128):
        known[f"qia3 block {block}, no adapter"] = ["qia3", f"side-{block}"]
        known[f"qia3 block {block}, side adapter"] = ["qia3", f"side-{block}", "--adapter", "first"]
        known[f"qia3 block {block}, merged"] = ["qia3", f"merged-{block}"]
    known |= {
        "genai builder, IO binding": ["ort", "genai"],
        "genai builder, own API": ["genai", "genai"],
        "llama.cpp Q4_0": ["llama", "q4_0.gguf"],
        "llama.cpp Q4_K_M": ["llama", "q4_k_m.gguf"],
        "OpenVINO int4": ["openvino", "openvino"],
        "transformers float32 + PEFT IA³": ["peft", "float"],
    }
    return {
        name: [kind, str(folder / place), *rest]
        for name, (kind, place, *rest) in known.items()
        if (folder / place).exists()
    }


def pairs(folder: Path) -> dict[str, list[str]]:
    """The same for encoder-decoders."""
    known = {
        f"qia3 {place.name}, {form}": ["qia3", place.name, *rest]
        for place in sorted(folder.glob("*-*"))
        if (place / "manifest.json").exists()
        for form, rest in (
            [("no adapter", []), ("side adapter", ["--adapter", "first"])] if "side" in place.name else [("merged", [])]
        )
    }
    kept = folder.glob("merged-*.packed")  # what this processor wants of them, in files
    known |= {f"qia3 {p.stem}, mapped": ["qia3-packed", p.stem] for p in sorted(kept)}
    known |= {
        "CTranslate2 int8": ["ctranslate2", "ct2-int8"],
        "optimum-onnx float32": ["optimum", "onnx-float"],
        "optimum-onnx int8": ["optimum", "onnx-int8"],
        "transformers float32": ["transformers", "float"],
    }
    return {n: [kind, str(folder / p), *r] for n, (kind, p, *r) in known.items() if (folder / p).exists()}


def _weights(place: Path) -> list[Path]:
    """A model's graphs and weights, without tokenizer, adapters and reports."""
    kinds = (".onnx", ".onnx_data", ".safetensors", ".bin", ".gguf", ".data", ".xml")
    files = [place] if place.is_file() else [f for f in place.rglob("*") if f.is_file() and "cache" not in f.parts]
    return [f for f in files if f.suffix in kinds and "adapters" not in f.parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tests", nargs="+", default=["pp128", "pp512", "tg128"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", help="contenders whose names hold one of these words")
    parser.add_argument(
        "--bundle", nargs="+", default=[], metavar="NAME=FOLDER", help="further QIA³ bundles, to compare graphs"
    )
    parser.add_argument("--pause", type=float, default=1.5, help="seconds before each contender's turn")
    for peer in ("ctranslate2", "optimum", "openvino"):
        parser.add_argument(f"--{peer}", metavar="PYTHON", help=f"a Python that has {peer} ({MAKERS[peer]})")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round after so long")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()

    pair = "T5" in (asked.folder / "float" / "config.json").read_text(encoding="utf-8")
    found = pairs(asked.folder) if pair else contenders(asked.folder)
    pythons = {name: vars(asked)[name] for name in MAKERS}
    found = {n: w for n, w in found.items() if pythons.get(w[0], "ours")}
    chosen = {n: w for n, w in found.items() if not asked.only or any(o in n for o in asked.only)}
    chosen |= {f"qia3, {name}": ["qia3", folder] for name, folder in (b.split("=", 1) for b in asked.bundle)}
    alive = {}
    for name, words in chosen.items():
        print(f"loading {name}", file=sys.stderr, flush=True)
        python = pythons.get(words[0]) or sys.executable
        alive[name] = Contender(name, words, asked.threads, PAIRS if pair else WORKER, python)
    memory = Contender("memory", ["bandwidth", "-"], asked.threads)
    speeds: dict[str, dict[str, list[float]]] = {name: {t: [] for t in asked.tests} for name in alive}
    bandwidth = []
    begun, rounds = time.monotonic(), 0
    for round_ in range(asked.rounds + 1):  # the first warms up and is not counted
        if time.monotonic() - begun > asked.seconds and rounds:
            break
        print(f"round {round_} of {asked.rounds}", file=sys.stderr, flush=True)
        for test in asked.tests:
            turn = list(alive.items())
            for name, contender in turn[round_ % len(turn) :] + turn[: round_ % len(turn)]:
                time.sleep(asked.pause)
                value = contender.ask(test)["tokens_per_second"]
                if round_:
                    speeds[name][test].append(value)
        rounds = round_
        bandwidth.append(memory.ask("read")["bytes_per_second"])
    result = {
        "machine": memory.loaded["machine"],
        "threads": asked.threads,
        "rounds": rounds,
        "read_bytes_per_second": statistics.median(bandwidth),
        "contenders": {
            name: {
                "versions": contender.loaded.get("versions"),
                "load_seconds": contender.loaded["load_seconds"],
                "first_token_seconds": contender.loaded["first_token_seconds"],
                "streamed_bytes": contender.loaded.get("streamed_bytes"),
                "disk_bytes": contender.disk_bytes,
                **contender.ask("memory"),
                "tokens_per_second": speeds[name],
            }
            for name, contender in alive.items()
        },
    }
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(text(result))


def text(result: dict[str, Any]) -> str:
    """The table: median (low to high) of each test, its ratio to the best peer, memory at the end, time to the first
    token.
    """
    rows = result["contenders"]
    tests = next(iter(rows.values()))["tokens_per_second"]
    median = {n: {t: statistics.median(r["tokens_per_second"][t]) for t in tests} for n, r in rows.items()}
    peers = [n for n in rows if not n.startswith("qia3")]
    best = {t: max(peers, key=lambda n: median[n][t], default=None) for t in tests}
    lines = [
        f"{result['machine']}, {result['threads']} threads, {result['rounds']} rounds, "
        f"read bandwidth {result['read_bytes_per_second'] / 1e9:.1f} GB/s; medians (lowest to highest), x is the median ratio to the best peer",
        "",
        "| | "
        + " | ".join(f"{t}, tokens/s | x" for t in tests)
        + " | disk, MB | held, MiB | mapped, MiB | load, s | first token, s | of the roofline |",
        "|---|" + "---:|" * (2 * len(tests) + 6),
    ]
    for name, row in rows.items():
        cells = []
        for t in tests:
            values = row["tokens_per_second"][t]
            cells.append(f"{median[name][t]:.0f} ({min(values):.0f} to {max(values):.0f})")
            peer = best[t] and rows[best[t]]["tokens_per_second"][t]
            cells.append(f"{statistics.median(a / b for a, b in zip(values, peer, strict=True)):.2f}" if peer else "-")
        roof = row["streamed_bytes"] and result["read_bytes_per_second"] / row["streamed_bytes"]
        cells.append(f"{row['disk_bytes'] / 1e6:.1f}")
        cells += [f"{row[k] / 2**20:.0f}" for k in ("anonymous_bytes", "file_bytes")]
        cells += [f"{row['load_seconds']:.2f}", f"{row['first_token_seconds']:.2f}"]
        decoding = next((median[name][t] for t in tests if t.startswith("tg")), None)
        cells.append(f"{decoding / roof:.0%}" if roof and decoding else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
