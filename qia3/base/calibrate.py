"""What each layer of a model sees: the second moments of its inputs, taken while the model is quantised layer by layer.

    windows [rows, length] of token ids  ->  through the layers that are 4-bit already  ->  H = sum x x^T  of each linear layer in the next one

A layer is rounded for the inputs that it will get, which carry the errors of the layers before it. So the layers of the
model's stack are run one at a time: once in float for the moments, and once more after they have been quantised, for
the next one's inputs. What a layer is given besides (masks, rotary tables) is recorded in one ordinary run on one
window; windows have no padding, so it holds for all of them.

Without a text the windows are the model's own: each begins with a token drawn at random and is sampled on from there by
the float model. No file is needed, and the words are those that the model knows (LLM-QAT, arXiv:2305.17888).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers.pytorch_utils import Conv1D

from qia3.base.weights import GridWeight
from qia3.errors import BaseModelError
from qia3.grids.calibrated import Seen
from qia3.parse import read_text as read_plain

ROWS, LENGTH, AT_ONCE = 32, 256, 8


class _Enough(Exception):
    """Ends a run of the model where all that was wanted is seen."""


class Moments:
    """Gives the moments of one linear layer after the other, in the model's order; the layers asked for before must be
    quantised by then.
    """

    def __init__(self, model: Any, windows: Tensor) -> None:
        self.model, self.windows = model, windows
        self.path, self.stack = layer_stack(model)
        self.extra = _recorded(model, self.stack, windows[:1])
        self.hidden = list(_seen_by(model, self.stack[0], windows, AT_ONCE))
        self.at, self.known = -1, dict[str, Seen]()
        for parameter in model.parameters():  # the layers below run in float32, and so do the norms between them
            if parameter.dim() < 2:
                parameter.data = parameter.data.float()

    def of(self, name: str) -> Seen | None:
        """What the layer's inputs were, or None where it got none."""
        index = self._index(name)
        while index is not None and self.at < index:
            self._advance()
        return self.known.get(name)

    def of_head(self, head: nn.Module) -> Seen:
        """The same for the head, when everything before it is quantised.

        All windows at once: each weight is dequantised once, and not kept.
        """
        return Seen(_square(next(_seen_by(self.model, head, self.windows, len(self.windows)))).numpy())

    def _index(self, name: str) -> int | None:
        start = f"{self.path}."
        return int(name.removeprefix(start).split(".")[0]) if name.startswith(start) else None

    def _advance(self) -> None:
        """Through the layer that has been quantised, and the moments of the one after it."""
        if self.at >= 0:
            layer = self.stack[self.at]
            with _dense(layer):
                self.hidden = [self._run(x) for x in self.hidden]
        self.at += 1
        layer, prefix = self.stack[self.at].float(), f"{self.path}.{self.at}."
        linears = {prefix + n: m for n, m in layer.named_modules() if isinstance(m, nn.Linear | Conv1D)}
        with _gathering(linears) as self.known:
            for x in self.hidden:
                self._run(x)

    @torch.inference_mode()
    def _run(self, hidden: Tensor) -> Tensor:
        args, kwargs = self.extra[self.at]
        out = self.stack[self.at](hidden, *args, **kwargs)
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result


def layer_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and list of the model's layers: the list of modules that holds the most weights."""
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    if not lists:
        raise BaseModelError(
            'the model has no list of layers to calibrate one after the other; set calibration = "none" under [base]'
        )
    best = max(lists, key=lambda name: sum(p.numel() for p in lists[name].parameters()))
    return best, lists[best]


def window_length(model: Any) -> int:
    """LENGTH, or as many positions as the model has."""
    return min(LENGTH, getattr(model.config.get_text_config(), "max_position_embeddings", None) or LENGTH)


def read_text(path: Path) -> str:
    """A text to calibrate on. Raises BaseModelError."""
    try:
        return read_plain(path, BaseModelError)
    except BaseModelError as error:
        raise BaseModelError(f"cannot read the calibration text: {str(error).removeprefix('cannot read ')}") from error


def read_windows(tokenizer: Any, path: Path, length: int) -> Tensor:
    """[up to ROWS, length] of the text in `path`, evenly spread over it. Raises BaseModelError."""
    ids = tokenizer.encode(read_text(path), add_special_tokens=False)
    whole = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    if not len(whole):
        raise BaseModelError(
            f"the calibration text {path} has {len(ids)} tokens; {length} are the least, {ROWS * length} are used"
        )
    return whole[torch.linspace(0, len(whole) - 1, min(ROWS, len(whole))).long()]


@torch.inference_mode()
def own_windows(model: Any, length: int, track: Callable[[range], Iterable[int]] = lambda steps: steps) -> Tensor:
    """[ROWS, length] sampled from the model at temperature 1 after one random token each; the same ones every time on
    the same machine. `track` wraps the steps (a progress bar).
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.get_input_embeddings().weight.shape[0], (ROWS, 1), generator=generator)
    newest, cache = tokens, None
    for _ in track(range(length - 1)):
        out = model(input_ids=newest, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        newest = torch.multinomial(out.logits[:, -1].float().softmax(-1), 1, generator=generator)
        tokens = torch.cat([tokens, newest], dim=1)
    return tokens


def _recorded(model: Any, stack: nn.ModuleList, window: Tensor) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What each layer is given besides the hidden states."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = (args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"})
        found.append(tree_map(lambda t: t.float() if isinstance(t, Tensor) and t.is_floating_point() else t, rest))

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in stack]
    try:
        with torch.inference_mode():
            model(input_ids=window, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if len(found) != len(stack):
        raise BaseModelError(
            f'{len(found)} of {len(stack)} layers ran; set calibration = "none" under [base] for such a model'
        )
    return found


def _seen_by(model: Any, module: nn.Module, windows: Tensor, at_once: int) -> Iterator[Tensor]:
    """The first input of `module`, float32, for `at_once` windows at a time; the model runs no further."""
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).float())
        raise _Enough

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for part in (windows[i : i + at_once] for i in range(0, len(windows), at_once)):
            with contextlib.suppress(_Enough), torch.inference_mode():
                model(input_ids=part, use_cache=False)
            yield seen.pop()
    finally:
        handle.remove()


@contextmanager
def _gathering(linears: dict[str, nn.Module]) -> Iterator[dict[str, Seen]]:
    """Sums x x^T of every linear layer that runs meanwhile.

    Layers that follow each other on one input (q, k, v) share one sum.
    """
    sums: dict[str, Tensor] = {}
    owner: dict[str, str] = {}
    latest: list[Any] = [None, ""]

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if args[0] is not latest[0]:
                latest[:] = [args[0], name]
                sums[name] = sums.get(name, 0) + _square(args[0])
            owner[name] = latest[1]

        return add

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in linears.items()]
    known: dict[str, Seen] = {}
    try:
        yield known
    finally:
        for handle in handles:
            handle.remove()
        seen = {first: Seen(total.numpy()) for first, total in sums.items()}
        known.update({name: seen[first] for name, first in owner.items()})


def _square(x: Tensor) -> Tensor:
    """[..., K] -> sum of x x^T, float32 [K, K]."""
    flat = x.reshape(-1, x.shape[-1]).float()
    return flat.T @ flat


@contextmanager
def _dense(module: nn.Module) -> Iterator[None]:
    """Keeps the dequantised weights inside `module` while it runs."""
    stores = [m for m in module.modules() if isinstance(m, GridWeight)]
    for store in stores:
        store.hold_dense(torch.float32)
    try:
        yield
    finally:
        for store in stores:
            store.hold_dense(None)
