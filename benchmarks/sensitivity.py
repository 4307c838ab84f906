"""Which layers' rounding costs most: the KL divergence that each 4-bit layer alone brings, by role and by layer of the
model.

    python benchmarks/sensitivity.py smollm2-135m-instruct --grid own:64

The estimate is the one that `[base] bits` chooses by (qia3/base/sensitivity.py), of a base as it was quantised, on
editorials (texts.py).
"""

from __future__ import annotations

import argparse

import torch
from texts import articles

from qia3.base.load import Asked, load_base, load_float
from qia3.base.modules import GridLinear
from qia3.base.sensitivity import divergences
from qia3.base.windows import LENGTH, ROWS
from qia3.ia3.roles import find_roles
from qia3.progress import bar


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("--grid", default="own:64")
    asked = parser.parse_args()
    calibration, block = asked.grid.split(":")
    base = load_base(Asked(asked.model, block_size=int(block), calibration=calibration)).model
    model, tokenizer = load_float(asked.model)
    ids = torch.tensor(tokenizer.encode("\n\n".join(articles()))[: ROWS * LENGTH])
    stores = {name: layer.store for name, layer in base.named_modules() if isinstance(layer, GridLinear)}
    nats = divergences(model.eval(), stores, ids.view(-1, LENGTH), bar)
    roles = find_roles(base).linears
    for role in dict.fromkeys(roles.values()):
        parts = [nats[name] for name in stores if roles[name] == role]
        print(f"{role:18} {sum(parts):.4f}   1e-4 each: {' '.join(f'{1e4 * part:.0f}' for part in parts)}")


if __name__ == "__main__":
    main()
