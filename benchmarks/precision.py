"""What a vector loses in bfloat16, as loss curves: float32, plain bfloat16, and the offset from one that QIA³ trains.

    python benchmarks/precision.py                     # benchmarks/results/precision.jsonl and .svg; needs matplotlib for the picture
    python benchmarks/precision.py --draw              # the picture again, from the file

float32          l = 1 + delta, both in float32
plain bfloat16   l itself is a bfloat16 parameter, and so are Adam's moments. Above one its step is 1/128: an update of 0.003 changes nothing.
ours             the forward pass sees 1 + bfloat16(delta), and the optimiser moves a float32 delta (qia3/ia3/vectors.py)

One task (intents, 64 examples), one seed, the same examples at every step, AdamW at 3e-3, T-Few's rate, and at 2e-2,
the demo's. The base is the int4 one and products are in bfloat16 for all three, so that nothing but the vectors
differs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import torch
from quality_methods import BATCH, MODEL, ROW_TOKENS
from quality_parts import slope
from quality_tasks import load
from torch import Tensor, nn

from qia3.base.load import Asked, load_base
from qia3.batching.examples import Examples, Source
from qia3.batching.schedule import Schedule
from qia3.bundle.sites import Site
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import Scaled, attach, detach
from qia3.train.collator import Collator
from qia3.train.compute import set_compute
from qia3.train.model import VectorModel
from qia3.train.prompts import wrapping

RESULTS = Path(__file__).parent / "results" / "precision.jsonl"
KINDS, RATES, STEPS = ("float32", "plain bfloat16", "ours"), (3e-3, 2e-2), 64


class Plain(Scaled):
    """l as a bfloat16 parameter."""

    def __init__(self, base: nn.Module, site: Site) -> None:
        super().__init__(base, site)
        self.delta = nn.Parameter(torch.ones(site.parameters, dtype=torch.bfloat16))

    def vector(self) -> Tensor:
        assert self.rows is None
        return self.delta.float()


def losses(base: Any, slots: Schedule, kind: str, rate: float) -> list[float]:
    sites = find_roles(base.model).sites
    scaled = attach(base.model, sites)
    if kind == "plain bfloat16":
        detach(base.model, scaled)
        scaled = {site.name: Plain(base.model.get_submodule(site.module), site) for site in sites}
        for site in sites:
            base.model.set_submodule(site.module, scaled[site.name])
    for layer in scaled.values():
        layer.precision = torch.float32 if kind == "float32" else torch.bfloat16
    parameters = [layer.delta.requires_grad_(True) for layer in scaled.values()]
    optimiser = torch.optim.AdamW(parameters, rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: slope(step, STEPS))
    wrapped, collate, found = (
        VectorModel(base.model, scaled),
        Collator(False, ROW_TOKENS, base.model.config.hidden_size),
        [],
    )
    for step in range(STEPS):
        loss = wrapped(**collate([slots[i] for i in range(step * BATCH, (step + 1) * BATCH)]))["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        found.append(round(float(loss.detach()), 5))
    detach(base.model, scaled)
    return found


def draw(rows: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "qia3"
    from matplotlib import pyplot as plt

    figure, places = plt.subplots(1, len(RATES), figsize=(9, 3.4), sharey=True, layout="constrained")
    for place, rate in zip(places, RATES, strict=True):
        for row in (r for r in rows if r["rate"] == rate):
            smooth = [statistics.mean(row["losses"][max(0, i - 7) : i + 1]) for i in range(STEPS)]
            shown = {"color": "black", "linestyle": ":", "zorder": 3} if row["kind"] == "float32" else {}
            place.plot(range(1, STEPS + 1), smooth, label=row["kind"], linewidth=2, **shown)
        place.set(title=f"AdamW at {rate:g}", xlabel="step", yscale="log")
        place.grid(alpha=0.3)
    places[0].set_ylabel("loss, mean of 8 steps (nats a token)")
    places[0].legend()
    figure.savefig(RESULTS.with_suffix(".svg"), metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--draw", action="store_true")
    asked = parser.parse_args()
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    missing = [
        (k, r) for k, r in product(KINDS, RATES) if not any(row["kind"] == k and row["rate"] == r for row in rows)
    ]
    if missing and not asked.draw:
        base, split = load_base(Asked(MODEL, block_size=64, calibration="own")), load("intent")
        set_compute(base.model, base.model.get_output_embeddings(), torch.bfloat16)
        wrap, prompt = wrapping(base.tokenizer, None, chat=True), split.task.prompt
        slots = Schedule(
            Examples(base.tokens, [Source((prompt,), prompt, wrap, split.draw(64, 0), split.choices)], 256),
            STEPS,
            BATCH,
            0,
        )
        for kind, rate in missing:
            rows.append({"kind": kind, "rate": rate, "losses": losses(base, slots, kind, rate)})
            with RESULTS.open("a", encoding="utf-8") as out:
                out.write(json.dumps(rows[-1]) + "\n")
            print(
                f"{kind} at {rate:g}: {statistics.mean(rows[-1]['losses'][-10:]):.4f} over the last ten steps",
                flush=True,
            )
    draw(rows)


if __name__ == "__main__":
    main()
