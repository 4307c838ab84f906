"""Which numbers PEFT trains when IA³ is asked for on a T5, and where counts in tutorials come from.

    python benchmarks/peft_counts.py

An IA³ vector of PEFT has one entry for each output of a layer in `target_modules`, or for each input where the layer is in
`feedforward_modules`, too. So the count follows from the names in those lists, and a wrong one is no error. Shapes are
those of the published models, without weights (torch's meta device); every count below is PEFT's own. Besides what its
defaults give, all lists of one to four of T5's layers are tried for COUNTS, in the whole model, and the shortest are shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import torch
from peft import IA3Config, get_peft_model
from transformers import AutoModelForSeq2SeqLM, T5Config

from qia3.base.load import quiet

# Raffel et al. 2020, Shazeer 2020 and Xue et al. 2021: width, heads, inner width, layers of each stack, gated; heads are of 64
SHAPES = {
    "t5-small": (512, 8, 2048, 6, False),
    "t5-base": (768, 12, 3072, 12, False),
    "t5-large": (1024, 16, 4096, 24, False),
    "flan-t5-small, mt0-small": (512, 6, 1024, 8, True),
    "flan-t5-base, mt0-base": (768, 12, 2048, 12, True),
    "flan-t5-large, mt0-large": (1024, 16, 2816, 24, True),
    "flan-t5-xl, mt0-xl": (2048, 32, 5120, 24, True),
}
COUNTS = (53_248, 98_304, 147_456)
ATTENTION, GATED, PLAIN = ("q", "k", "v", "o"), ("wi_0", "wi_1", "wo"), ("wi", "wo")
SHORTEST = 3


def counted(shape: str, targets: tuple[str, ...], feed_forward: tuple[str, ...]) -> int:
    """What PEFT trains."""
    with torch.device("meta"):
        peft = get_peft_model(
            empty(shape),
            IA3Config(task_type="SEQ_2_SEQ_LM", target_modules=list(targets), feedforward_modules=list(feed_forward)),
        )
    return sum(p.numel() for p in peft.parameters() if p.requires_grad)


def empty(shape: str) -> Any:
    """A T5 of this shape on the device that is current, with few words: they train nothing."""
    width, heads, inner, layers, gated = SHAPES[shape]
    config = T5Config(
        vocab_size=64,
        d_model=width,
        d_kv=64,
        num_heads=heads,
        d_ff=inner,
        num_layers=layers,
        num_decoder_layers=layers,
        feed_forward_proj="gated-gelu" if gated else "relu",
    )
    return AutoModelForSeq2SeqLM.from_config(config)


def closed(shape: str, targets: tuple[str, ...], feed_forward: tuple[str, ...]) -> int:
    """The same by arithmetic: three attentions and two feed-forwards for each layer of a stack."""
    width, heads, inner, layers, _ = SHAPES[shape]
    outputs = (
        {"o": width, "wo": width} | dict.fromkeys("qkv", 64 * heads) | dict.fromkeys(("wi", "wi_0", "wi_1"), inner)
    )
    inputs = {"o": 64 * heads, "wo": inner}
    each = {t: (inputs.get(t, width) if t in feed_forward else outputs[t]) for t in targets}
    return layers * sum((3 if t in ATTENTION else 2) * n for t, n in each.items())


def lists(shape: str) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Targets, and which of them are feed-forward, the shortest first."""
    names = (*ATTENTION, *(GATED if SHAPES[shape][-1] else PLAIN))
    for size in range(1, 5):
        for targets in combinations(names, size):
            for count in range(size + 1):
                for feed_forward in combinations(targets, count):
                    yield targets, feed_forward


def main() -> None:
    print(
        "| shape | k, v, wo | k, v | k, v, wi_1 (mt5's default) | k, v, wi_1 with wi_1 as feed-forward |\n|---|---:|---:|---:|---:|"
    )
    with quiet():
        for shape, (*_, gated) in SHAPES.items():
            up = "wi_1" if gated else "wi"
            asked = ((("k", "v", "wo"), ("wo",)), (("k", "v"), ()), (("k", "v", up), ()), (("k", "v", up), (up,)))
            print(f"| {shape} | {' | '.join(f'{_agreed(shape, *lists):,}' for lists in asked)} |")
        for count in COUNTS:
            print(f"\n{count:,} is")
            for shape in SHAPES:
                found = [pair for pair in lists(shape) if closed(shape, *pair) == count]
                for targets, feed_forward in found[:SHORTEST]:
                    assert _agreed(shape, targets, feed_forward) == count
                    print(
                        f"  {shape}: {', '.join(targets)}"
                        + (f"; feed-forward: {', '.join(feed_forward)}" * bool(feed_forward))
                    )


def _agreed(shape: str, targets: tuple[str, ...], feed_forward: tuple[str, ...]) -> int:
    """PEFT's count, which arithmetic has to give, too."""
    count = counted(shape, targets, feed_forward)
    if count != closed(shape, targets, feed_forward):
        raise SystemExit(
            f"{shape}, {targets}: PEFT trains {count:,}, arithmetic says {closed(shape, targets, feed_forward):,}"
        )
    return count


if __name__ == "__main__":
    main()
