"""The graph, run: prompts of unequal lengths, then one token a row at a time, with the cache kept between.

Rows are padded on the right. A row's mask is as many leading ones as it has valid positions, its new ones included, so after a prompt a
shorter row's next token overwrites its first padded slot in the cache (GroupQueryAttention writes at the count, not at the end).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qia3.errors import BundleError, QIA3Error
from qia3.runtime.bundle import Bundle

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Cache:
    """Keys and values [rows, kv heads, T, head size] by input name, and how many positions of each row are valid."""

    tensors: dict[str, Floats]
    lengths: NDArray[np.int64]

    def expand(self, index: Sequence[int]) -> Cache:
        """Rows picked or repeated."""
        return Cache({name: t[list(index)] for name, t in self.tensors.items()}, self.lengths[list(index)])


class Engine:
    """One session over a bundle's graph. `threads` None lets ONNX Runtime take the physical cores."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # otherwise one warning per vector with a default
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        self.bundle = bundle
        self.threads = threads or os.cpu_count() or 1
        self.session = ort.InferenceSession(str(bundle.path / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.outputs = [o.name for o in self.session.get_outputs()]
        self.caches = [i.name for i in self.session.get_inputs() if i.name.startswith("past_key_values.")]
        self._tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer, read when first asked for."""
        if self._tokenizer is None:
            path = self.bundle.path / "tokenizer.json"
            if not path.is_file():
                raise BundleError(f"{self.bundle.path} has no tokenizer.json")
            self._tokenizer = Tokenizer.from_file(str(path))
        return self._tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` as it stands: special tokens only where they are written out."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def prefill(self, rows: Sequence[Sequence[int]], vectors: Mapping[str, Floats]) -> tuple[Floats, Cache]:
        """Logits [rows, V] after each row's last token, and the cache. Vectors are [1, 1, d] or [rows, 1, d]."""
        lengths = np.array([len(r) for r in rows], np.int64)
        if not len(rows) or not lengths.min():
            raise QIA3Error("an empty prompt cannot be run: give it some text")
        tokens = np.zeros((len(rows), int(lengths.max())), np.int64)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
        empty = np.zeros((len(rows), self.bundle.kv_heads, 0, self.bundle.head_size), np.float32)
        return self._run(tokens, Cache(dict.fromkeys(self.caches, empty), np.zeros(len(rows), np.int64)), lengths, vectors)

    def step(self, tokens: Sequence[int], cache: Cache, vectors: Mapping[str, Floats]) -> tuple[Floats, Cache]:
        """One more token a row."""
        return self._run(np.asarray(tokens, np.int64)[:, None], cache, cache.lengths + 1, vectors)

    def _run(
        self, tokens: NDArray[np.int64], cache: Cache, lengths: NDArray[np.int64], vectors: Mapping[str, Floats]
    ) -> tuple[Floats, Cache]:
        longest = int(lengths.max())
        if longest > self.bundle.context_length:
            raise QIA3Error(f"{longest} tokens do not fit the bundle's context of {self.bundle.context_length}; shorten the text")
        mask = (np.arange(longest)[None] < lengths[:, None]).astype(np.int64)
        feeds = {"input_ids": tokens, "attention_mask": mask, **cache.tensors, **vectors}
        out = dict(zip(self.outputs, self.session.run(None, feeds), strict=True))
        present = {name: out[name.replace("past_key_values", "present")] for name in self.caches}
        return _last(out["logits"], lengths - cache.lengths), Cache(present, lengths)


def _last(logits: Floats, counts: NDArray[np.int64]) -> Floats:
    """[rows, V]: the graph gives the last valid position, or all of them."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits[np.arange(len(logits)), np.minimum(counts, logits.shape[1]) - 1]
