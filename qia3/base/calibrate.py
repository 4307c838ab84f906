"""What each layer of a model sees: the second moments of its inputs, gathered while the model is quantised layer by
layer.

    windows [rows, length] of token ids  ->  through the layers that are 4-bit already  ->  H = sum x x^T  of each linear layer in the next one

A layer is rounded for the inputs that it will really get, which carry the errors of the layers before it. So the layers
of a stack are run one at a time: once in float for the moments, and again after they have been quantised, for the next
layer's inputs. Their other arguments (masks, rotary tables) are recorded in one ordinary run on one window; windows
have no padding, so these hold for all of them.

An encoder-decoder's windows are halved: the encoder gets the first half and the decoder continues with the second. The
decoder starts when the encoder has been quantised, and attends to the encoder's new output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers.pytorch_utils import Conv1D

from qia3.base.family import stacks
from qia3.base.start import start_of
from qia3.base.weights import GridWeight
from qia3.errors import BaseModelError
from qia3.grids.blocks import Floats
from qia3.grids.calibrated import Seen

AT_ONCE = 8  # windows
STATES = object()


class _Enough(Exception):
    """Stops a forward pass early, once everything needed has been seen."""


class Moments:
    """Gives the moments of one linear layer after the other, in the model's order. Layers asked for earlier must have
    been quantised by then.
    """

    def __init__(self, model: Any, windows: Tensor) -> None:
        self.model, self.windows = model, windows
        found = layer_stacks(model)
        self.prefixes = [f"{path}.{i}." for path, stack in found for i in range(len(stack))]
        self.layers = [layer for _, stack in found for layer in stack]
        self.first = {self.layers.index(stack[0]) for _, stack in found}
        self.extra = _recorded(model, self.layers, windows[:1])
        self.hidden, self.states = list(_seen_by(model, self.layers[0], windows, AT_ONCE)), list[Tensor]()
        self.at, self.known = -1, dict[str, Seen]()
        self.tuples = False  # whether layers return a tuple
        for parameter in model.parameters():  # the layers below run in float32, and so do the norms between them
            if parameter.dim() < 2:
                parameter.data = parameter.data.float()

    def of(self, name: str) -> Seen | None:
        """The moments of the layer's inputs, or None if it got none."""
        index = self._index(name)
        while index is not None and self.at < index:
            self._advance()
        return self.known.get(name)

    def of_head(self, head: nn.Module) -> Seen:
        """The same for the head, once everything before it has been quantised.

        The layers of a single stack are not run again: the model's own code runs around what its last one gave. Two
        stacks are, with all windows at once: each weight is dequantised only once, and not kept.
        """
        if len(self.first) > 1:
            return Seen(_square(next(_seen_by(self.model, head, self.windows, len(self.windows)))))
        while self.at < len(self.layers):
            self._advance()
        parts = torch.split(self.windows, AT_ONCE)
        total: Floats = np.zeros((), np.float32)
        for part, hidden in zip(parts, self.hidden, strict=True):
            with _answering(self.layers, (hidden,) if self.tuples else hidden):
                total = total + _square(next(_seen_by(self.model, head, part, AT_ONCE)))
        return Seen(total)

    def _index(self, name: str) -> int | None:
        return next((i for i, prefix in enumerate(self.prefixes) if name.startswith(prefix)), None)

    def _advance(self) -> None:
        """Runs the layer that has just been quantised, then gathers the moments of the next one."""
        if self.at + 1 in self.first:
            self._begin(self.layers[self.at + 1])
        elif self.at >= 0:
            with _dense(self.layers[self.at]):
                self.hidden = self._run()
        self.at += 1
        if self.at == len(self.layers):
            return
        layer, prefix = self.layers[self.at].float(), self.prefixes[self.at]
        linears = {prefix + n: m for n, m in layer.named_modules() if isinstance(m, nn.Linear | Conv1D)}
        with _gathering(layer, linears) as self.known:
            self._run(True)

    def _begin(self, layer: nn.Module) -> None:
        """Starts a stack of layers. The first stack is started already; the input of the second depends on the first,
        which is quantised by now. All windows at once: each weight is dequantised once.
        """
        if self.at < 0:
            return
        with _noting_states(self.model) as states:
            hidden = next(_seen_by(self.model, layer, self.windows, len(self.windows)))
        self.hidden, self.states = list(torch.split(hidden, AT_ONCE)), list(torch.split(states[0].float(), AT_ONCE))

    @torch.inference_mode()
    def _run(self, cut_short: bool = False) -> list[Tensor]:
        """Outputs of the current layer, for each part of the windows; `cut_short`: a hook may end a part's run."""
        outs = []
        for i, hidden in enumerate(self.hidden):
            args, kwargs = tree_map(lambda t, i=i: self.states[i] if t is STATES else t, self.extra[self.at])
            with contextlib.suppress(_Enough) if cut_short else contextlib.nullcontext():
                out = self.layers[self.at](hidden, *args, **kwargs)
                self.tuples = isinstance(out, tuple)
                outs.append(out[0] if self.tuples else out)
        return outs


def called_with(model: Any, windows: Tensor) -> dict[str, Tensor]:
    """Arguments for a model on windows [rows, length] of token ids.

    An encoder-decoder's encoder gets the first half, closed by the end token; its decoder gets the start token and the
    second half without its last token.
    """
    if not model.config.is_encoder_decoder:
        return {"input_ids": windows}
    given, answer = windows[:, : windows.shape[1] // 2].clone(), windows[:, windows.shape[1] // 2 :].clone()
    end = model.config.eos_token_id
    if end is not None:
        given[:, -1] = end[0] if isinstance(end, list) else end
    answer[:, 1:], answer[:, 0] = answer[:, :-1].clone(), start_of(model)[0]
    return {"input_ids": given, "decoder_input_ids": answer}


def layer_stacks(model: Any) -> list[tuple[str, nn.ModuleList]]:
    """Path and layers of each of the model's stacks, in the order in which they run."""
    found = [(start, *layer_stack(part)) for start, part in stacks(model).items()]
    return [(f"{start}.{path}" if start else path, stack) for start, path, stack in found]


def layer_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and list of the model's layers: the list of modules that holds the most weights."""
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    if not lists:
        raise BaseModelError(
            "the model has no list of layers, so it cannot be calibrated layer by layer; set calibration = "
            '"none" under [base]'
        )
    best = max(lists, key=lambda name: sum(p.numel() for p in lists[name].parameters()))
    return best, lists[best]


def _recorded(model: Any, layers: list[nn.Module], window: Tensor) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments of each layer besides the hidden states; STATES stands for an encoder's output."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def kept(t: Any) -> Any:
        if any(t is own for own in states):
            return STATES
        return t.float() if isinstance(t, Tensor) and t.is_floating_point() else t

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(tree_map(kept, (args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"})))

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        with torch.inference_mode(), _noting_states(model) as states:
            model(**called_with(model, window), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if len(found) != len(layers):
        raise BaseModelError(
            f"only {len(found)} of {len(layers)} layers ran, so the model cannot be calibrated; "
            'set calibration = "none" under [base]'
        )
    return found


@contextmanager
def _noting_states(model: Any) -> Iterator[list[Tensor]]:
    """Collects the outputs of an encoder-decoder's encoder; for other models an empty list."""
    states: list[Tensor] = []
    handle = None
    if model.config.is_encoder_decoder:
        handle = model.get_encoder().register_forward_hook(lambda _, __, out: states.append(out[0]))
    try:
        yield states
    finally:
        if handle is not None:
            handle.remove()


def _seen_by(model: Any, module: nn.Module, windows: Tensor, at_once: int) -> Iterator[Tensor]:
    """The first input of `module`, float32, for `at_once` windows at a time; the forward pass stops there."""
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).float())
        raise _Enough

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for part in (windows[i : i + at_once] for i in range(0, len(windows), at_once)):
            with contextlib.suppress(_Enough), torch.inference_mode():
                model(**called_with(model, part), use_cache=False)
            yield seen.pop()
    finally:
        handle.remove()


@contextmanager
def _answering(layers: list[nn.Module], out: Any) -> Iterator[None]:
    """Makes every layer return `out` without running."""
    for layer in layers:
        layer.forward = lambda *_, **__: out
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def _gathering(layer: nn.Module, linears: dict[str, nn.Module]) -> Iterator[dict[str, Seen]]:
    """Sums x x^T for every one of the `linears` that runs in the block, inside `layer`.

    Consecutive layers with the same input (q, k, v) share one sum. If the first run called each of them once, later
    runs end with _Enough at the last one, whose result is not needed.
    """
    sums: dict[str, Floats] = {}
    owner: dict[str, str] = {}
    latest: list[Any] = [None, ""]
    calls: list[int] = []  # of each run

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if args[0] is not latest[0]:
                latest[:] = [args[0], name]
                sums[name] = sums.get(name, 0) + _square(args[0])
            owner[name] = latest[1]
            calls[-1] += 1
            if len(calls) > 1 and calls[0] == calls[-1] == len(linears):
                raise _Enough

        return add

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in linears.items()]
    handles.append(layer.register_forward_pre_hook(lambda *_: calls.append(0)))
    known: dict[str, Seen] = {}
    try:
        yield known
    finally:
        for handle in handles:
            handle.remove()
        seen = {first: Seen(total) for first, total in sums.items()}
        known.update({name: seen[first] for name, first in owner.items()})


def _square(x: Tensor) -> Floats:
    """[..., K] -> sum of x x^T, float32 [K, K]."""
    flat = x.reshape(-1, x.shape[-1]).float()
    product: Floats = (flat.T @ flat).numpy()
    return product


@contextmanager
def _dense(module: nn.Module) -> Iterator[None]:
    """Holds the dequantised weights inside `module` during the block."""
    stores = [m for m in module.modules() if isinstance(m, GridWeight)]
    for store in stores:
        store.hold_dense(torch.float32)
    try:
        yield
    finally:
        for store in stores:
            store.hold_dense(None)
