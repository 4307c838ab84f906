"""Puts a base that trained on NF4 on the grid that it ships on, and measures what that changes on the tasks' own
prompts.

Law 1 does not hold across this step, and cannot: the codes are others. So the difference is a figure in the report: how
far the weights moved, and, for the base and for each adapter, the largest difference of a logit, KL divergence and
top-1 agreement. Parity with ONNX Runtime is measured after it, on the model that ships.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from qia3.base.frozen import BaseModel
from qia3.base.recode import Recoded, recode
from qia3.bundle.sites import Vectors
from qia3.graph.forced import torch_choices, torch_logits
from qia3.graph.parity import Floats, compare
from qia3.ia3.vectors import Scaled, set_vectors
from qia3.progress import say
from qia3.train.compute import computing

Prompts = Mapping[str, Sequence[Sequence[int]]]


def recode_base(
    base: BaseModel,
    scaled: Mapping[str, Scaled],
    vectors: Mapping[str, Vectors],
    prompts: Prompts,
    to: Recoded,
    steps: int,
) -> dict[str, Any]:
    """Recodes the base in place.

    `vectors` and `prompts` by adapter; "none" is the base alone. `steps` tokens are forced after each prompt.
    """
    say(f"writing the NF4 base as {to}, and measuring what that changes")
    forced: dict[str, list[list[int]]] = {}
    before: dict[str, Floats] = {}
    with computing(base.model, torch.float32):
        for name, own in vectors.items():
            set_vectors(scaled, own)
            forced[name] = [torch_choices(base.model, prompt, steps) for prompt in prompts[name]]
            before[name] = _logits(base, prompts[name], forced[name])
    drift = recode(base.model, to, base.block_size)
    assert drift is not None, "a base on NF4 has layers on NF4"
    agreement = {}
    with computing(base.model, torch.float32):
        for name, own in vectors.items():
            set_vectors(scaled, own)
            agreement[name] = compare(before[name], _logits(base, prompts[name], forced[name])).to_dict()
    return asdict(drift) | {"logits": agreement}


def _logits(base: BaseModel, prompts: Sequence[Sequence[int]], forced: Sequence[Sequence[int]]) -> Floats:
    return np.concatenate([torch_logits(base.model, p, f) for p, f in zip(prompts, forced, strict=True)])
