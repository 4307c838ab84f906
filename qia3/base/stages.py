"""Which layers of an encoder-decoder run for the prompt only, and not per token of the answer: those of the encoder,
and those that compute cross-attention's keys and values from its states.

Found by a forward pass with more tokens in the encoder than in the decoder: such a layer's input has as many as the
encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from qia3.base.modules import GridLinear, named_modules

PROMPT, ANSWER = 5, 3  # tokens


@torch.no_grad()
def prompt_only(model: PreTrainedModel) -> frozenset[str]:
    """Names of such linear layers, on a grid or float; empty for a decoder alone."""
    if not model.config.is_encoder_decoder:
        return frozenset()
    lengths: dict[str, int] = {}

    def watch(name: str) -> Callable[[Any, Any], None]:
        return lambda _, inputs: lengths.update({name: inputs[0].shape[-2]})

    layers = chain(named_modules(model, GridLinear), named_modules(model, nn.Linear))
    # a layer with its wrapper, which need not call it as a module
    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name, _ in layers]
    device = next(chain(model.parameters(), model.buffers())).device
    prompt, answer = (torch.zeros(1, n, dtype=torch.long, device=device) for n in (PROMPT, ANSWER))
    try:
        model(input_ids=prompt, decoder_input_ids=answer, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return frozenset(name for name, length in lengths.items() if length == PROMPT)
