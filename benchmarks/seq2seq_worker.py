"""One contender of benchmarks/decode.py on an encoder-decoder; needs nothing but numpy and the contender itself.

Loads its model, then answers "pp512" (a source of 512 tokens encoded, and the first token decoded), "tg64" (64 more,
greedily, after a source of 128) and "memory" with a line of JSON. The 64 are what a run with 65 tokens takes longer than
one with 1, in every contender: CTranslate2 gives out no step of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = 128  # tokens that are encoded before "tg"
Answer = Callable[[list[int], int], int]  # a source and how many tokens to decode, whatever they are -> how many it did
Loaded = tuple[Answer, dict[str, Any]]


def qia3(folder: Path, threads: int, adapter: str | None, packed: Path | None = None) -> Loaded:
    from qia3.bundle.opened import Bundle
    from qia3.runtime.adapters import AdapterBank
    from qia3.runtime.load import open_engine

    bundle = Bundle.open(folder, verify=False)
    engine = open_engine(bundle, threads, packed)
    vectors = AdapterBank(bundle).vectors(adapter) if adapter else {}

    def answer(source: list[int], new: int) -> int:
        logits, cache = engine.prefill([source], vectors, room=new)
        for _ in range(new - 1):
            logits, cache = engine.step([int(logits[0].argmax())], cache, vectors)
        return new

    return answer, {"versions": {"qia3": bundle.manifest.qia3}}


def qia3_packed(folder: Path, threads: int, adapter: str | None) -> Loaded:
    """With its weights mapped as this processor wants them, from where seq2seq_models.py put them."""
    return qia3(folder, threads, adapter, folder.with_name(f"{folder.name}.packed"))


def ctranslate2(folder: Path, threads: int, _: str | None) -> Loaded:
    import ctranslate2 as ct

    translator = ct.Translator(str(folder), device="cpu", inter_threads=1, intra_threads=threads, compute_type="int8")
    words = json.loads((folder / "shared_vocabulary.json").read_text(encoding="utf-8"))

    def answer(source: list[int], new: int) -> int:
        limits = {"beam_size": 1, "min_decoding_length": new, "max_decoding_length": new}
        found = translator.translate_batch([[words[t] for t in source]], max_input_length=0, **limits)
        return len(found[0].hypotheses[0])

    return answer, {"versions": {"ctranslate2": version("ctranslate2")}}


def transformers(folder: Path, threads: int, _: str | None) -> Loaded:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    torch.set_num_threads(threads)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    return generating(model), {"versions": {n: version(n) for n in ("torch", "transformers")}}


def optimum(folder: Path, threads: int, _: str | None) -> Loaded:
    import onnxruntime
    from optimum.onnxruntime import ORTModelForSeq2SeqLM  # noqa: TID251 (in an environment of its own)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    model = ORTModelForSeq2SeqLM.from_pretrained(folder, session_options=options)
    return generating(model), {"versions": {n: version(n) for n in ("optimum-onnx", "onnxruntime", "transformers")}}


def generating(model: Any) -> Answer:
    """By transformers' own loop."""
    import torch

    @torch.inference_mode()
    def answer(source: list[int], new: int) -> int:
        ids = torch.tensor([source])
        limits = {"min_new_tokens": new, "max_new_tokens": new, "do_sample": False, "num_beams": 1}
        return int(model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **limits).shape[1]) - 1

    return answer


KINDS = {
    "qia3": qia3,
    "qia3-packed": qia3_packed,
    "ctranslate2": ctranslate2,
    "transformers": transformers,
    "optimum": optimum,
}


def seconds(answer: Answer, source: int, new: int) -> float:
    ids = np.random.default_rng(source).integers(3, 32000, source).tolist()
    start = time.perf_counter()
    done = answer(ids, new)
    taken = time.perf_counter() - start
    if done != new:
        raise SystemExit(f"{done} tokens were decoded, not {new}")
    return taken


def resident() -> dict[str, int]:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    keys = {"anonymous_bytes": "RssAnon", "file_bytes": "RssFile", "peak_bytes": "VmHWM"}
    return {name: int(lines[key].split()[0]) * 1024 for name, key in keys.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("place", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--adapter")
    asked = parser.parse_args()
    start = time.perf_counter()
    answer, facts = KINDS[asked.kind](asked.place, asked.threads, asked.adapter)
    loaded = time.perf_counter() - start
    seconds(answer, SOURCE, 2)
    first = time.perf_counter() - start
    print(json.dumps(facts | {"load_seconds": loaded, "first_token_seconds": first} | resident()), flush=True)
    for line in sys.stdin:
        match line.strip():
            case "memory":
                print(json.dumps(resident()), flush=True)
            case test if test.startswith("pp"):
                count = int(test[2:])
                print(json.dumps({"tokens_per_second": count / seconds(answer, count, 1)}), flush=True)
            case test:
                count = int(test[2:])
                alone = seconds(answer, SOURCE, 1)
                print(
                    json.dumps({"tokens_per_second": count / (seconds(answer, SOURCE, 1 + count) - alone)}), flush=True
                )


if __name__ == "__main__":
    main()
