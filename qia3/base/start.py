"""The tokens that an encoder-decoder's decoder starts with."""

from __future__ import annotations

from typing import Any

from qia3.errors import BaseModelError


def decoder_start(config: Any, generation: Any) -> tuple[int, ...]:
    """Its start token, and the token that it always generates first if its configuration forces one (BART's <s>).

    Empty for a decoder alone. Raises BaseModelError if no start token is named.
    """
    if not config.is_encoder_decoder:
        return ()
    named = (
        getattr(generation, "decoder_start_token_id", None),
        getattr(config, "decoder_start_token_id", None),
        getattr(generation, "bos_token_id", None),  # what transformers falls back on
    )
    start = next((token for token in named if token is not None), None)
    if isinstance(start, list):
        start = start[0] if len(start) == 1 else None
    if start is None:
        raise BaseModelError(
            f"the base is an encoder-decoder ({config.model_type}), but none of its files names its "
            "decoder's start token; set decoder_start_token_id in its generation_config.json"
        )
    forced = getattr(generation, "forced_bos_token_id", None)
    return (start,) if forced is None else (start, forced)


def start_of(model: Any) -> tuple[int, ...]:
    """The same, for a model with its configuration. Raises BaseModelError."""
    return decoder_start(model.config, model.generation_config)
