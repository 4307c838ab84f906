"""Memory and speed of a bundle, meant to run in a separate process:

    python -m qia3.runtime.bench dist/home-intents --json

Resident memory is read from /proc/self/status after loading, after the prompt and after decoding; the largest value is
reported. Anonymous pages are memory that the system cannot reclaim; file-backed pages are the mapped weights and
libraries, which it can drop and read again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qia3.bundle.manifest import Architecture
from qia3.bundle.opened import Bundle
from qia3.errors import ConfigError, QIA3Error
from qia3.machine import processor
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.cache import Cache, Floats
from qia3.runtime.encoder import Encoder
from qia3.runtime.engine import Engine
from qia3.runtime.load import open_engine

STATUS = Path("/proc/self/status")
REPEATS = 5
PROMPT_TOKENS, NEW_TOKENS = 128, 64


def resident() -> dict[str, int]:
    """RssAnon, RssFile and VmHWM in bytes; empty if the system has no /proc."""
    if not STATUS.is_file():
        return {}
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return {key: int(lines[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile", "VmHWM") if key in lines}


def machine() -> str:
    """Processor, cores and system, in words."""
    return f"{processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def bench(
    path: Path,
    adapter: str | None = None,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
    threads: int | None = None,
    packed: Path | None = None,
) -> dict[str, Any]:
    """The figures, with the manifest's keys; medians of a few repeats.

    Raises ConfigError if the tokens do not fit the context.

    By default 128 prompt tokens and 64 new tokens, or two thirds and one third of a shorter context. With an
    encoder-decoder, the prompt's speed includes encoder and first decoder token; an encoder alone has no new tokens.
    """
    bundle = Bundle.open(path, verify=False)  # hashing would count the whole file as resident memory
    shape = bundle.architecture
    limit = shape.context_length
    prompt_tokens = min(PROMPT_TOKENS, 2 * limit // 3) if prompt_tokens is None else prompt_tokens
    alone = shape.pooling is not None
    if alone and new_tokens:
        raise ConfigError(f"{path} is an encoder, which generates nothing; leave out the new tokens")
    new_tokens = 0 if alone else min(NEW_TOKENS, limit // 3) if new_tokens is None else new_tokens
    _check(shape, prompt_tokens, new_tokens)
    started = time.perf_counter()
    engine = open_engine(bundle, threads, packed)
    load_seconds = time.perf_counter() - started
    vectors = AdapterBank(bundle).vectors(adapter) if adapter else {}
    seen = [resident()]
    prompt = np.random.default_rng(0).integers(0, shape.vocab_size, prompt_tokens).tolist()
    prompts, steps = [], []
    for _ in range(REPEATS):
        started = time.perf_counter()
        if isinstance(engine, Encoder):
            engine.logits([prompt], vectors)
            prompts.append(prompt_tokens / (time.perf_counter() - started))
            seen.append(resident())
            continue
        logits, cache = engine.prefill([prompt], vectors, room=new_tokens)
        prompts.append(prompt_tokens / (time.perf_counter() - started))
        seen.append(resident())
        steps.append(_decode(engine, int(logits[0].argmax()), cache, vectors, new_tokens))
        seen.append(resident())
        del cache  # otherwise it would exist beside the next prompt's
    peak = {key: max((s[key] for s in seen if key in s), default=None) for key in ("RssAnon", "RssFile", "VmHWM")}
    return {
        "load_seconds": round(load_seconds, 3),
        "peak_anonymous_bytes": peak["RssAnon"],
        "peak_file_bytes": peak["RssFile"],
        "peak_resident_bytes": peak["VmHWM"],
        "prompt_tokens_per_second": round(statistics.median(prompts), 1),
        "decode_tokens_per_second": round(statistics.median(steps), 1) if steps else None,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "threads": engine.threads,
        "machine": machine(),
    }


def _check(shape: Architecture, prompt_tokens: int, new_tokens: int) -> None:
    limit = shape.context_length
    if shape.pooling is not None and 1 <= prompt_tokens <= limit:
        return
    if prompt_tokens < 1 or new_tokens < 1 or shape.positions(prompt_tokens, new_tokens) > limit:
        fit = "together they fit" if shape.encoder_layers is None else "each fits"
        raise ConfigError(
            f"{prompt_tokens} prompt and {new_tokens} new tokens: each must be at least 1, and {fit} the "
            f"context of {limit}"
        )


def _decode(engine: Engine, token: int, cache: Cache, vectors: Mapping[str, Floats], count: int) -> float:
    """Tokens per second, with greedy decoding."""
    started = time.perf_counter()
    for _ in range(count):
        logits, cache = engine.step([token], cache, vectors)
        token = int(logits[0].argmax())
    return count / (time.perf_counter() - started)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of `python -m qia3.runtime.bench`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--adapter", metavar="NAME")
    parser.add_argument("--prompt-tokens", type=int)
    parser.add_argument("--new-tokens", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--packed", type=Path, metavar="FOLDER", help="cache the weights there, packed for this processor"
    )
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    try:
        figures = bench(asked.folder, asked.adapter, asked.prompt_tokens, asked.new_tokens, asked.threads, asked.packed)
    except QIA3Error as error:
        print(f"qia3: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps(figures) if asked.json else "\n".join(f"{key:28} {value}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
