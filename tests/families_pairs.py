"""Tiny random encoder-decoders, and what becomes of each.

    python tests/families_pairs.py      writes docs/encoder-decoders.md

The oracle is the family's own model from transformers with the dequantised weights and the vectors put on by hooks
(seq2seq_pair.py); the graphs are run a token at a time as a padded batch with a set of vectors per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from families import FOLDS_NOWHERE, LOADERS, VERSIONS, with_loaders
from seq2seq_pair import Oracle, Pair, batch, quantised, vector_rows
from tiny_seq2seq import SEQ2SEQ

from qia3.errors import AdapterError
from qia3.graph.export_seq2seq import export_seq2seq
from qia3.ia3.vectors import fold, set_vectors, start_vectors

TABLE = Path(__file__).parent.parent / "docs" / "encoder-decoders.md"
AGREES = 1e-4  # of the largest logit, or of one
ANSWER = np.array([[0, 7, 9, 11, 13, 55, 80], [0, 91, 3, 3, 17, 20, 5], [0, 4, 44, 7, 9, 9, 9]])
SOURCES = (30, 4, 17)


@dataclass(frozen=True)
class Works:
    """Largest differences, in parts of the oracle's largest logit: `side` with vectors per row, `merged` None where a vector
    has nowhere to fold; `idle` vectors get no gradient.
    """

    side: float
    merged: float | None
    idle: int


def outcome(name: str) -> Works:
    model, scaled = quantised(name)
    pair, oracle = Pair(export_seq2seq(model, 0, 48, "last")), Oracle(name, model, scaled)
    vectors = vector_rows(scaled, len(SOURCES))
    ids, mask = batch(SOURCES)
    expected = [oracle.logits(ids[i : i + 1], mask[i : i + 1], ANSWER[i : i + 1], v)[0] for i, v in enumerate(vectors)]
    size = max(1.0, max(float(np.abs(e).max()) for e in expected))
    found = stepped(pair, ids, mask, vectors)
    side = max(float(np.abs(f - e).max()) for f, e in zip(found, expected, strict=True)) / size
    start_vectors(scaled, None)
    answers(model, ids, mask).square().mean().backward()
    idle = sum(layer.delta.grad is None or not bool(layer.delta.grad.any()) for layer in scaled.values())
    set_vectors(scaled, vectors[0])
    try:
        fold(scaled)
    except AdapterError:
        return Works(side, None, idle)
    merged = Pair(export_seq2seq(model, 0, 48, "last"))
    found = stepped(merged, ids[:1], mask[:1], [{}])
    return Works(side, float(np.abs(found[0] - expected[0]).max()) / size, idle)


def answers(model, ids: np.ndarray, mask: np.ndarray) -> torch.Tensor:
    given = [torch.from_numpy(a) for a in (ids, mask, ANSWER[: len(ids)])]
    return model(input_ids=given[0], attention_mask=given[1], decoder_input_ids=given[2], use_cache=False).logits


def stepped(pair: Pair, ids: np.ndarray, mask: np.ndarray, vectors: list[dict[str, np.ndarray]]) -> np.ndarray:
    """[B, S, V], a token at a time."""
    fed = pair.vectors(pair.decoder, vectors) if vectors[0] else {}
    states = pair.states(ids, mask, vectors) if vectors[0] else pair.states(ids, mask, [{}])
    past, found = pair.empty(len(ids)), []
    for step in range(ANSWER.shape[1]):
        feeds = {"input_ids": ANSWER[: len(ids), step : step + 1], "encoder_attention_mask": mask}
        out = pair.run(feeds | {"encoder_hidden_states": states} | past | fed)
        found.append(out["logits"][:, -1])
        past |= {n: out[n.replace("past_key_values", "present")] for n in past if ".decoder." in n or step == 0}
    return np.stack(found, 1)


def told(name: str, found: Works) -> str:
    """A row of the table, without the loaders' columns."""

    def cell(difference: float | None) -> str:
        if difference is None:
            return FOLDS_NOWHERE
        return "yes" if difference < AGREES else f"WRONG by {difference:.2g}"

    trains = "yes" if not found.idle else f"NO: {found.idle} vectors get no gradient"
    return f"| {' | '.join([name, trains, cell(found.side), cell(found.merged)])} |"


HEAD = """# Encoder-decoders

What happens to an encoder-decoder, by family: tiny random models from transformers with unequal dimensions.
"unmerged" means that the two exported graphs agree with transformers' own model on the dequantised weights to 1e-4 of
the largest logit: three texts of 30, 4 and 17 tokens as one padded batch, each with its own vectors, 7 steps of one
token. "merged" is the same with one text and its vectors folded into the scales. "trains" means that every vector
gets a gradient. The last three columns show the results of other loaders (tests/loaders.py), as in families.md: PEFT
loads our checkpoint into a plain model and gives our logits; transformers.js {js} and optimum-onnx {optimum}
open one of our folders by name and give the tokens of transformers, singly and in a batch.

Written by `python tests/families_pairs.py` and `python tests/loaders.py`; tests/test_families_pairs.py checks every
row, and `make interop` the last columns.

| family | trains | unmerged, a task per row | merged | {loaders} |
|---|---|---|---|---|---|---|
"""


def table(rows: list[str]) -> str:
    head = HEAD.format(steps=ANSWER.shape[1], loaders=" | ".join(LOADERS), **VERSIONS)
    return head + "\n".join(rows) + "\n"


def main() -> None:
    rows = []
    for name in SEQ2SEQ:
        rows.append(told(name, outcome(name)))
        print(rows[-1], flush=True)
    TABLE.write_text(table(with_loaders(rows, TABLE.read_text(encoding="utf-8"), 1)), encoding="utf-8")


if __name__ == "__main__":
    main()
