"""Logits for a prompt and tokens forced after it, from torch and from ONNX Runtime: the two sides of the parity gate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from qia3.base.family import is_encoder
from qia3.bundle.head import Head
from qia3.bundle.ports import PAST, PRESENT, cache_type
from qia3.graph import forced_encoder, forced_seq2seq
from qia3.graph.parity import Floats

ENTRIES = 1 << 26  # of the logits of a pass, at most, in one row per prompt


def torch_logits(model: Any, prompt: Sequence[int], forced: Sequence[int], head: Head | None = None) -> Floats:
    """[1 + len(forced), V] float32, from one pass over the whole sequence without a cache. An encoder-decoder gets the
    prompt in its encoder and the forced tokens after its decoder's start. An encoder alone returns its head's logits,
    or its states.
    """
    if is_encoder(model.config):
        return forced_encoder.logits(model, prompt, head)
    if model.config.is_encoder_decoder:
        return forced_seq2seq.logits(model, prompt, forced)
    ids, kept = torch.tensor([[*prompt, *forced]]), 1 + len(forced)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits[0, -kept:]
    result: Floats = logits.float().numpy()
    return result


def torch_choices(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """The `count` tokens that torch itself would choose after the prompt; none for an encoder."""
    if is_encoder(model.config):
        return []
    if model.config.is_encoder_decoder:
        return forced_seq2seq.choices(model, prompt, count)
    chosen: list[int] = []
    newest, cache = list(prompt), None
    with torch.no_grad():
        for _ in range(count):
            out = model(input_ids=torch.tensor([newest]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, newest = out.past_key_values, [int(out.logits[0, -1].argmax())]
            chosen += newest
    return chosen


def torch_continued(
    model: Any,
    prompts: Sequence[Sequence[int]],
    counts: Sequence[int],
    guesses: Sequence[Sequence[int]] | None,
    head: Head | None = None,
) -> list[tuple[list[int], Floats]]:
    """For each prompt the `count` tokens that torch itself would choose after it, and torch_logits with them.

    `guesses`, of a decoder alone, save passes: asked about all prompts and tokens at once, torch may choose the same.
    """
    found: list[tuple[list[int], Floats] | None] = [None] * len(prompts)
    if guesses is not None:
        for i, logits in enumerate(_together(model, list(zip(prompts, guesses, strict=True)))):
            if len(guesses[i]) == counts[i] and logits[:-1].argmax(-1).tolist() == list(guesses[i]):
                found[i] = list(guesses[i]), logits
    return [_continued(model, prompts[i], counts[i], head) if one is None else one for i, one in enumerate(found)]


def _continued(model: Any, prompt: Sequence[int], count: int, head: Head | None) -> tuple[list[int], Floats]:
    chosen = torch_choices(model, prompt, count)
    return chosen, torch_logits(model, prompt, chosen, head)


def _together(model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[Floats]:
    """torch_logits of several prompts and forced tokens, padded on the right, in as few passes as ENTRIES allows: a
    base that is too large to be held dequantised is dequantised once per pass.
    """
    longest = max((len(prompt) + len(forced) for prompt, forced in pairs), default=1)
    entries = longest * model.get_output_embeddings().out_features
    step = max(1, ENTRIES // entries)
    for start in range(0, len(pairs), step):
        part = pairs[start : start + step]
        size = max(len(prompt) + len(forced) for prompt, forced in part)
        ids = torch.tensor([[*p, *f, *[0] * (size - len(p) - len(f))] for p, f in part])
        kept = size + 1 - min(len(prompt) for prompt, _ in part)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits[:, -kept:].float().numpy()
        for row, (prompt, forced) in zip(logits, part, strict=True):
            first = len(prompt) - 1 - (size - kept)
            yield row[first : first + 1 + len(forced)]


class OrtDecoder:
    """A graph opened without our runtime: one prompt, then one token at a time, with its cache. `prompts`: another
    graph that runs the prompt. Each is a file or an open session.
    """

    def __init__(self, path: Path | ort.InferenceSession, prompts: Path | None = None) -> None:
        self.session = _session(path)
        self.first = self.session if prompts is None else _session(prompts)
        self.outputs = [o.name for o in self.session.get_outputs()]
        vectors = [i for i in self.session.get_inputs() if i.shape[:2] == ["rows", 1]]  # only those without a default
        self.ones = {i.name: np.ones((1, 1, i.shape[2]), np.float32) for i in vectors}
        self.empty = {
            i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), cache_type(i.type))
            for i in self.session.get_inputs()
            if i.name.startswith(PAST)
        }

    def logits(
        self, prompt: Sequence[int], forced: Sequence[int], vectors: Mapping[str, NDArray[np.float32]]
    ) -> Floats:
        """Like torch_logits. `vectors` are [1, 1, d] by input name; empty for the base."""
        return self.after([prompt, *([token] for token in forced)], vectors)

    def continued(
        self, prompt: Sequence[int], count: int, vectors: Mapping[str, NDArray[np.float32]]
    ) -> tuple[list[int], Floats]:
        """The `count` tokens that the graph itself would choose after the prompt, and its logits with them."""
        chosen: list[int] = []

        def pieces() -> Iterator[Sequence[int]]:
            yield prompt
            while len(chosen) <= count:
                yield chosen[-1:]

        rows = []
        for row in self._each(pieces(), vectors):
            rows.append(row)
            chosen.append(int(row.argmax()))
        return chosen[:count], np.stack(rows)

    def kept(self, tokens: Sequence[int], vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
        """The cache after these tokens: [1, kv heads, tokens, head size] by the name of its input."""
        found = self.states(tokens, vectors, [name for name in self.outputs if name.startswith(PRESENT)])
        return {name.replace(PRESENT, PAST): value for name, value in found.items()}

    def states(
        self, tokens: Sequence[int], vectors: Mapping[str, NDArray[np.float32]], names: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """The graph's outputs with these names, for a prompt."""
        feeds = {"input_ids": np.array([tokens], np.int64), "attention_mask": np.ones((1, len(tokens)), np.int64)}
        found = self.first.run(list(names), {**feeds, **self.empty, **self.ones, **vectors})
        return dict(zip(names, found, strict=True))

    def after(self, pieces: Sequence[Sequence[int]], vectors: Mapping[str, NDArray[np.float32]]) -> Floats:
        """[len(pieces), V]: logits after the last token of each piece of a text, run one piece after the other."""
        return np.stack(list(self._each(pieces, vectors)))

    def _each(
        self, pieces: Iterable[Sequence[int]], vectors: Mapping[str, NDArray[np.float32]]
    ) -> Iterator[NDArray[np.float32]]:
        """Logits [V] after each piece; the next one is taken afterwards."""
        cache, seen = self.empty, 0
        for number, piece in enumerate(pieces):
            seen += len(piece)
            session = self.session if number else self.first
            feeds = {"input_ids": np.array([piece], np.int64), "attention_mask": np.ones((1, seen), np.int64)}
            found = session.run(self.outputs, {**feeds, **cache, **self.ones, **vectors})
            results = dict(zip(self.outputs, found, strict=True))
            yield results["logits"][0, -1]
            cache = {
                name.replace("present", "past_key_values"): value
                for name, value in results.items()
                if name.startswith("present")
            }


def _session(path: Path | ort.InferenceSession) -> ort.InferenceSession:
    if not isinstance(path, Path):
        return path
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
