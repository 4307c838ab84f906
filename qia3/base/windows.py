"""The text that a base is calibrated on, as windows [rows, length] of token ids.

Either a file's, or the model's own: each window begins with a random token and is continued by sampling from the float
model. This needs no file and gives words that the model knows (LLM-QAT, arXiv:2305.17888). An encoder-decoder cannot do
this: it needs a text to answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qia3.base.memory import available_bytes
from qia3.base.processor import has_fast
from qia3.errors import BaseModelError
from qia3.parse import read_text as read_plain
from qia3.progress import say

ROWS, LENGTH = 32, 256
LEAST_ROUNDED = 10_000_000  # parameters; a smaller model is sampled as fast in float32

Track = Callable[[list[int], str], Iterable[int]]


def calibration_windows(
    model: Any, tokenizer: Any, calibration: str, track: Track, rows: int = ROWS, seed: int = 0
) -> Tensor | None:
    """`calibration`: "none", "own", or a file's path. None if there is no text, or no memory to sample one.

    Raises BaseModelError if the file is too short or cannot be read.
    """
    if calibration == "none":
        return None
    length = window_length(model)
    if calibration != "own":
        return read_windows(tokenizer, Path(calibration), length, rows)
    dtype = next(model.parameters()).dtype
    if not has_fast(dtype):
        if not fits_in_float32(model):
            say(
                f"calibration skipped: sampling needs a float32 copy of the {dtype} weights, which does not "
                "fit in memory; set calibration = PATH to a text"
            )
            return None
        model.float()
    say("sampling calibration text from the float model")
    rounded = has_fast(torch.bfloat16) and model.num_parameters() >= LEAST_ROUNDED and fits_in_float32(model)
    with _in_bfloat16(model) if rounded else nullcontext():
        return own_windows(model, length, lambda steps: track(list(steps), "sampling text"), rows, seed)


def fits_in_float32(model: Any) -> bool:
    """Whether memory has room for a float32 copy of the weights."""
    return 4 * int(model.num_parameters()) <= available_bytes()


@contextmanager
def _in_bfloat16(model: Any) -> Iterator[None]:
    """The model with its weights rounded to bfloat16 during the block. Twice as fast at sampling, in 2 more bytes per
    float32 weight.
    """
    kept = {parameter: parameter.data for parameter in model.parameters() if parameter.dtype == torch.float32}
    for parameter, own in kept.items():
        parameter.data = own.to(torch.bfloat16)
    try:
        yield
    finally:
        for parameter, own in kept.items():
            parameter.data = own


def window_length(model: Any) -> int:
    """LENGTH, or the model's number of positions if that is less."""
    return min(LENGTH, getattr(model.config.get_text_config(), "max_position_embeddings", None) or LENGTH)


def read_text(path: Path) -> str:
    """A text to calibrate on. Raises BaseModelError if it cannot be read."""
    try:
        return read_plain(path, BaseModelError)
    except BaseModelError as error:
        raise BaseModelError(f"cannot read the calibration text: {str(error).removeprefix('cannot read ')}") from error


def read_windows(tokenizer: Any, path: Path, length: int, rows: int = ROWS) -> Tensor:
    """[up to rows, length] of the text in `path`, evenly spread over it. Raises BaseModelError if it is too short."""
    ids = tokenizer.encode(read_text(path), add_special_tokens=False)
    whole = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    if not len(whole):
        raise BaseModelError(
            f"the calibration text {path} has {len(ids)} tokens; at least {length} are needed, {rows * length} are used"
        )
    return whole[torch.linspace(0, len(whole) - 1, min(rows, len(whole))).long()]


@torch.inference_mode()
def own_windows(
    model: Any,
    length: int,
    track: Callable[[range], Iterable[int]] = lambda steps: steps,
    rows: int = ROWS,
    seed: int = 0,
) -> Tensor:
    """[rows, length] sampled from the model at temperature 1, each after one random token. Deterministic on one
    machine. `track` wraps the steps (a progress bar).
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(model.get_input_embeddings().weight.shape[0], (rows, 1), generator=generator)
    newest, cache = tokens, None
    for _ in track(range(length - 1)):
        out = model(input_ids=newest, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        newest = _drawn(out.logits[:, -1], torch.rand(rows, 1, generator=generator))
        tokens = torch.cat([tokens, newest], dim=1)
    return tokens


def _drawn(logits: Tensor, uniform: Tensor) -> Tensor:
    """A token per row [R, 1], where the running sum of its probabilities [R, V] passes `uniform` [R, 1] in 0..1.

    One number per row: torch.multinomial draws one per token, on one core, for a sixth of the time of a small model.
    """
    sums = logits.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(sums, uniform * sums[:, -1:], right=True).clamp_(max=logits.shape[-1] - 1)
