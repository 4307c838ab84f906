"""What learning on a device takes in memory (qia3.learn), before anything is built: one part of a step.

    weights     kernels at accuracy_level 0 (kernels.py, "float32"), what is mapped from the weight file, and one weight
                in float32 at a time, of LARGE bytes at most (qia3.graph.backward)
    kept        MORE times what autograd saves of a part of PART tokens in float32, counted (qia3.ia3.activations)
    state       16 bytes per trained number
    beside      the process and the graph's nodes: BESIDE

MORE and BESIDE are measured on SmolLM2-135M (x64, ONNX Runtime 1.32): parts of 75, 155 and 253 tokens had peaks of 461, 640
and 850 MiB. A random Llama of 10 layers, 1,024 wide, took 545 MiB where this says 547. The graph keeps results of
torch's operators where autograd keeps their inputs once.

LoRA's column is what the same graph would need for r = 8 on all linear layers: its inputs are kept, too. Nobody has
built that graph; it is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qia3.footprint.lora import AdapterCost
from qia3.footprint.shapes import Shapes
from qia3.footprint.verdict import Verdict
from qia3.footprint.weights import USUAL, weights_of

PART = 160  # tokens that `qia3 learn` computes at once
ON_DEVICE = " on a device"
MORE, BESIDE = 1.55, 155 * 2**20
LARGE = 32 * 2**20  # bytes of a float32 weight that the graph makes at once (qia3.graph.backward)


@dataclass(frozen=True)
class Learning:
    """One method's bytes, the largest that are there at once."""

    method: str
    parameters: int
    weights_bytes: int
    state_bytes: int
    kept_bytes: int
    beside_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.state_bytes + self.kept_bytes + self.beside_bytes


@dataclass(frozen=True)
class Learner:
    """Whether a device has room for it."""

    device: str
    usable_bytes: int
    fits: bool
    fits_lora: bool


def learns(shapes: Shapes) -> bool:
    """Whether a build of this model can have the graph: a decoder alone, without experts."""
    shape = shapes.architecture
    alone = shape.pooling is None and shape.encoder_layers is None
    return alone and not any(matrix.role == "experts" for matrix in shapes.matrices)


def learning(shapes: Shapes, ia3: AdapterCost, lora: AdapterCost, kept: Mapping[str, int]) -> list[Learning]:
    """IA³'s and LoRA's; nothing for a model whose builds have no such graph."""
    if "ia3" + ON_DEVICE not in kept:
        return []
    weights = weights_of(shapes, USUAL)
    assert weights.kernels is not None, "int4 has kernels"
    at_once = min(LARGE, 4 * max(matrix.numbers for matrix in shapes.matrices))
    held = weights.kernels["float32"].held_bytes + weights.disk_bytes + at_once
    return [
        Learning(
            cost.method, cost.parameters, held, cost.training_state_bytes, round(MORE * kept[name + ON_DEVICE]), BESIDE
        )
        for name, cost in (("ia3", ia3), ("lora", lora))
    ]


def learners(found: Sequence[Learning], verdicts: Sequence[Verdict]) -> list[Learner]:
    """For each device that was asked for."""
    if not found:
        return []
    needed = [one.total_bytes for one in found]
    return [
        Learner(v.estimate.device, v.estimate.usable_ram_bytes, *(n <= v.estimate.usable_ram_bytes for n in needed))
        for v in verdicts
    ]
