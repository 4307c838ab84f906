"""An encoder-decoder's logits for a prompt and tokens forced after its decoder's start, from torch and from ONNX
Runtime.

    prompt -> encoder -> states          start, forced[0], forced[1], ... -> decoder(states) -> logits after each

The counterpart of forced.py, whose `torch_logits` and `torch_choices` call this for such models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from transformers.modeling_outputs import BaseModelOutput

from qia3.base.start import start_of
from qia3.bundle.ports import (
    ATTENTION_MASK,
    CROSS,
    ENCODER_MASK,
    ENCODER_STATES,
    INPUT_IDS,
    LAST_STATE,
    LOGITS,
    PAST,
    PRESENT,
)
from qia3.graph.parity import Floats
from qia3.ia3.roles import device_of


@torch.no_grad()
def logits(model: Any, prompt: Sequence[int], forced: Sequence[int]) -> Floats:
    """[1 + len(forced), V] float32, from one pass over all tokens without a cache."""
    start, device = start_of(model), device_of(model)
    ids, answer = (torch.tensor([list(tokens)], device=device) for tokens in (prompt, [*start, *forced]))
    masks = {"attention_mask": torch.ones_like(ids), "decoder_attention_mask": torch.ones_like(answer)}
    found = model(input_ids=ids, decoder_input_ids=answer, **masks, use_cache=False).logits[0, len(start) - 1 :]
    result: Floats = found.float().cpu().numpy()
    return result


@torch.no_grad()
def choices(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """The `count` tokens that torch itself would choose after the start."""
    device = device_of(model)
    states = BaseModelOutput(last_hidden_state=states_of(model, prompt))
    mask = torch.ones(1, len(prompt), dtype=torch.long, device=device)
    chosen: list[int] = []
    newest, cache = list(start_of(model)), None
    for _ in range(count):
        ids = torch.tensor([newest], device=device)
        fed = {"encoder_outputs": states, "attention_mask": mask, "decoder_input_ids": ids}
        out = model(**fed, past_key_values=cache, use_cache=True)
        cache, newest = out.past_key_values, [int(out.logits[0, -1].argmax())]
        chosen += newest
    return chosen


@torch.no_grad()
def states_of(model: Any, prompt: Sequence[int]) -> torch.Tensor:
    """The encoder's states [1, S, hidden] for a prompt."""
    ids = torch.tensor([list(prompt)], device=device_of(model))
    states: torch.Tensor = model.get_encoder()(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
    return states


class OrtPair:
    """The two graphs opened without our runtime and fed as stock loaders do: no `past_length`, and the full states at
    every step, whose keys are those of the first call.
    """

    def __init__(self, encoder: ort.InferenceSession, decoder: ort.InferenceSession, start: Sequence[int]) -> None:
        self.encoder, self.decoder, self.start = encoder, decoder, list(start)
        self.outputs = [o.name for o in decoder.get_outputs()]
        self.past = {i.name: i.shape for i in decoder.get_inputs() if i.name.startswith(PAST)}
        present = {o.name: o.shape for o in decoder.get_outputs()}
        # the head size is a number in the outputs, but may be a name in the inputs
        self.sizes = {n: present[n.replace(PAST, PRESENT)][3] for n in self.past}

    @classmethod
    def read(cls, encoder: Path, decoder: Path, start: Sequence[int]) -> OrtPair:
        """From their files."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        first, second = (
            ort.InferenceSession(str(p), options, providers=["CPUExecutionProvider"]) for p in (encoder, decoder)
        )
        return cls(first, second, start)

    def logits(
        self, prompt: Sequence[int], forced: Sequence[int], vectors: Mapping[str, NDArray[np.float32]]
    ) -> Floats:
        """[1 + len(forced), V]. `vectors` are [1, 1, d] by input name, for both graphs; empty for the base."""
        result: Floats = self.rows([prompt], [forced], vectors)[1][0]
        return result

    def rows(
        self,
        prompts: Sequence[Sequence[int]],
        forced: Sequence[Sequence[int]],
        vectors: Mapping[str, NDArray[np.float32]],
    ) -> tuple[Floats, Floats]:
        """States [rows, S, hidden] of prompts padded on the right, and logits [rows, 1 + steps, V], one token per step."""
        count, lengths = len(prompts), np.array([len(p) for p in prompts])
        tokens = np.zeros((count, lengths.max()), np.int64)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        mask = (np.arange(lengths.max())[None] < lengths[:, None]).astype(np.int64)
        feeds = {INPUT_IDS: tokens, ATTENTION_MASK: mask, **worn(self.encoder, vectors)}
        states: Floats = self.encoder.run([LAST_STATE], feeds)[0]
        past = {n: np.zeros((count, shape[1], 0, self.sizes[n]), np.float32) for n, shape in self.past.items()}
        given = {ENCODER_MASK: mask, ENCODER_STATES: states, **worn(self.decoder, vectors)}
        found: list[Floats] = []
        for piece in ([self.start] * count, *([[token] for token in step] for step in zip(*forced, strict=True))):
            values = self.decoder.run(None, {INPUT_IDS: np.array(piece, np.int64), **given, **past})
            out = dict(zip(self.outputs, values, strict=True))
            past = {n: a if found and f".{CROSS}." in n else out[n.replace(PAST, PRESENT)] for n, a in past.items()}
            found.append(out[LOGITS][:, -1])
        return states, np.stack(found, axis=1)


def worn(session: ort.InferenceSession, vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    """The `vectors` that this graph takes, and ones for inputs without a default."""
    required = {i.name: i.shape[2] for i in session.get_inputs() if i.shape[:2] == ["rows", 1]}
    names = required.keys() | {i.name for i in session.get_overridable_initializers()}
    rows = len(next(iter(vectors.values()))) if vectors else 1
    ones: dict[str, Any] = {n: np.ones((rows, 1, size), np.float32) for n, size in required.items()}
    return ones | {n: v for n, v in vectors.items() if n in names}
