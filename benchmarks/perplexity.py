"""What the 4-bit grid costs in quality: perplexity, and KL divergence and top-1 agreement against the float model, by block size.

    python benchmarks/perplexity.py smollm2-135m-instruct --tokens 12000

Text: editorial articles (texts.py), cut into windows of 256 tokens; each window's first 32 tokens are context only. Computed by torch in
float32 on the dequantised weights, so it is the grid alone; what int8 activations add is in each bundle's parity section.
"""

from __future__ import annotations

import argparse
import json
import math

import torch
from texts import articles

from qia3.base.load import _open, _quiet, load_base
from qia3.base.modules import Int4Weight
from qia3.base.sources import resolve
from qia3.footprint.bits import bits_each

WINDOW, CONTEXT = 256, 32


@torch.inference_mode()
def log_probabilities(model: torch.nn.Module, windows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [positions, V] in float16 of every scored position, and the tokens [positions] that came."""
    rows, tokens = [], []
    for ids in windows:
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, CONTEXT - 1 : -1]
        rows.append(logits.float().log_softmax(-1).half())
        tokens.append(torch.tensor(ids[CONTEXT:]))
    return torch.cat(rows), torch.cat(tokens)


def compared(found: torch.Tensor, reference: torch.Tensor, tokens: torch.Tensor) -> dict[str, float]:
    nll = -found.gather(1, tokens[:, None]).float().mean()
    kl, same = 0.0, 0
    for p, q in zip(reference.split(256), found.split(256), strict=True):
        kl += float((p.float().exp() * (p.float() - q.float())).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
    return {"perplexity": math.exp(float(nll)), "kl_nats": kl / len(tokens), "same_top_token": same / len(tokens)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=12000)
    parser.add_argument("--blocks", type=int, nargs="+", default=[16, 32, 64, 128])
    asked = parser.parse_args()
    with _quiet():
        model, tokenizer = _open(resolve(asked.model))
    ids = tokenizer.encode("\n\n".join(articles()))[: asked.tokens]
    windows = [ids[i : i + WINDOW] for i in range(0, len(ids) - WINDOW + 1, WINDOW)]
    reference, tokens = log_probabilities(model.eval(), windows)
    print(json.dumps({"grid": "float32", "positions": len(tokens), **compared(reference, reference, tokens)}), flush=True)
    for symmetric in (False, True):
        for block in asked.blocks:
            base = load_base(asked.model, block, symmetric)
            stores = [m for m in base.model.modules() if isinstance(m, Int4Weight)]
            bits = bits_each(sum(s.grid.nbytes for s in stores), sum(s.inputs * s.outputs for s in stores))
            for store in stores:
                store.hold_dense(torch.float32)
            found, _ = log_probabilities(base.model, windows)
            name = f"int4 {'symmetric' if symmetric else 'asymmetric'} {block}"
            print(json.dumps({"grid": name, "bits_per_weight": bits, **compared(found, reference, tokens)}), flush=True)


if __name__ == "__main__":
    main()
