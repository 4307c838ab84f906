"""The log-probabilities of a GGUF file's model by our loader and by llama.cpp itself, which shares no code with it.

    pip install xllamacpp
    python benchmarks/gguf_load.py MODEL.gguf ... [--tokens 50] [--limit 0.02]

Random token ids are the prompt, so that tokenizers have no part in it. Measured with xllamacpp 2026.10.11549 on x64 (50
tokens): tiny float32 files of 18 architectures agree to 1e-5, those with GELU to some 1e-3, since llama.cpp looks GELU
up in half precision; SmolLM2-135M dequantised to float32 agrees to 1.5e-4. Quantised files say less: llama.cpp rounds
activations to 8 bits before it multiplies (SmolLM2's Q4_1: 0.45), so dequantise them first. A wrong load of the tiny
ones differs by more than 0.1. Exit code 1 if any is past the limit; without xllamacpp nothing is compared.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qia3.base.gguf_parts import open_gguf
from qia3.base.gguf_weights import load_gguf

try:
    import xllamacpp
except ImportError:
    xllamacpp = None


def ours(path: Path, ids: list[int]) -> NDArray[np.float64]:
    """After the last of `ids` [vocabulary]."""
    with torch.no_grad():
        logits = load_gguf(open_gguf(path))(torch.tensor([ids])).logits[0, -1]
    return torch.log_softmax(logits.double(), -1).numpy()


def theirs(path: Path, ids: list[int], count: int) -> NDArray[np.float64]:
    """The same by llama.cpp's server, run in this process."""
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(path), len(ids) + 8, 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    asked: dict[str, Any] = {"prompt": ids, "n_predict": 1, "temperature": 0.0, "n_probs": count}
    asked["grammar"] = (
        "root ::= [a-z ]+"  # it reports no token that is half a letter; what it reports is before grammars
    )
    answer = xllamacpp.Server(settings).handle_completions(asked)
    if "choices" not in answer:
        raise RuntimeError(str(answer))
    found = np.full(count, np.nan)
    for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        found[entry["id"]] = entry["logprob"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--limit", type=float, default=0.02, help="largest difference of two log-probabilities")
    asked = parser.parse_args()
    if xllamacpp is None:
        print("nothing compared: xllamacpp is not installed")
        return 0
    worst = 0.0
    for path in asked.models:
        rows = open_gguf(path).tensors["token_embd.weight"].shape[0]
        ids = np.random.default_rng(0).integers(3, rows, asked.tokens).tolist()
        mine = ours(path, ids)
        try:
            other = theirs(path, ids, rows)
        except RuntimeError as error:
            print(f"{path}: llama.cpp does not run it ({error})", flush=True)
            continue
        likely = other > other.max() - 12  # what llama.cpp gives far below that is rounded away
        difference = float(np.abs(mine - other)[likely].max())
        worst = max(worst, difference)
        print(
            f"{path}: {len(ids)} tokens, largest difference {difference:.2e} over {likely.sum()} of {rows}", flush=True
        )
    return int(worst > asked.limit)


if __name__ == "__main__":
    sys.exit(main())
