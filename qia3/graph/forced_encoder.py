"""The output of an encoder alone for a text, from torch and from ONNX Runtime: the two sides of its comparisons.

The counterpart of forced.py, with nothing to force: an adapter's logits [1, labels], or per token [S, labels], or the
states [S, hidden] of the base, which has no head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from qia3.base.pooling import embedded, pooled, pooling_of
from qia3.bundle.head import Head
from qia3.bundle.ports import ATTENTION_MASK, EMBEDDING, HEAD, HEAD_WEIGHT, INPUT_IDS, LAST_STATE, LOGITS, TOKEN_LOGITS
from qia3.graph.forced_seq2seq import worn
from qia3.graph.parity import Floats
from qia3.ia3.roles import device_of


@torch.no_grad()
def read(model: Any, text: Sequence[int], head: Head | None) -> dict[str, Floats]:
    """By torch: states [1, S, d], the embedding [1, d] and, with a head, logits [1, labels] and [1, S, labels]."""
    ids = torch.tensor([list(text)], device=device_of(model))
    mask, how = torch.ones_like(ids), pooling_of(model.config)
    states = model(input_ids=ids, attention_mask=mask)[0].float()
    vector = pooled(states, mask, how)
    found = {LAST_STATE: states, EMBEDDING: embedded(vector, how)}
    made: dict[str, Floats] = {name: tensor.cpu().numpy() for name, tensor in found.items()}
    if head is None:
        return made
    return made | {LOGITS: head.logits(vector.cpu().numpy()), TOKEN_LOGITS: head.logits(made[LAST_STATE])}


def logits(model: Any, text: Sequence[int], head: Head | None) -> Floats:
    """The tensor to compare, by torch."""
    found = read(model, text, head)
    if head is None:
        states: Floats = found[LAST_STATE][0]
        return states
    made: Floats = found[TOKEN_LOGITS][0] if head.per_token else found[LOGITS]
    return made


class OrtEncoder:
    """The graph opened without our runtime. `merged`: its head is part of it."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.session = session
        open_ = {i.name: i.shape for i in session.get_inputs()}
        self.merged = HEAD_WEIGHT not in open_.keys() | {i.name for i in session.get_overridable_initializers()}
        width = open_[HEAD_WEIGHT][2] if HEAD_WEIGHT in open_ else 0
        nought = [np.zeros((1, 1, width), np.float32), np.zeros((1, 1), np.float32)] if width else []
        self.nought: dict[str, Any] = dict(zip(HEAD, nought, strict=False))

    @classmethod
    def read(cls, path: Path) -> OrtEncoder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        return cls(ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))

    def rows(self, texts: Sequence[Sequence[int]], given: Mapping[str, NDArray[np.float32]]) -> dict[str, Floats]:
        """States, embeddings and logits of texts padded on the right. `given`: vectors and head by input name."""
        lengths = np.array([len(text) for text in texts])
        tokens = np.zeros((len(texts), lengths.max()), np.int64)
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text)] = text
        mask = (np.arange(lengths.max())[None] < lengths[:, None]).astype(np.int64)
        vectors = {name: v for name, v in given.items() if name not in HEAD}
        head = {name: v for name, v in given.items() if name in HEAD}
        fed = {INPUT_IDS: tokens, ATTENTION_MASK: mask, **worn(self.session, vectors), **self.nought, **head}
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, fed), strict=True))

    def logits(
        self, text: Sequence[int], given: Mapping[str, NDArray[np.float32]], headed: bool, per_token: bool
    ) -> Floats:
        """The tensor to compare."""
        found = self.rows([text], given)
        if not headed:
            states: Floats = found[LAST_STATE][0]
            return states
        made: Floats = found[LOGITS if self.merged or not per_token else TOKEN_LOGITS]
        return made[0] if per_token else made
