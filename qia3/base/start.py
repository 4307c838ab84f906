"""What an encoder-decoder's decoder is given before its first word."""

from __future__ import annotations

from typing import Any

from qia3.errors import BaseModelError


def decoder_start(config: Any, generation: Any) -> tuple[int, ...]:
    """Its start token, and the token that it always writes first where its configuration forces one (BART's <s>).

    Nothing for a decoder alone. Raises BaseModelError where no start token is named.
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
            f"the base is an encoder-decoder ({config.model_type}), and none of its files names the one token that its "
            "decoder starts with; set decoder_start_token_id in its generation_config.json"
        )
    forced = getattr(generation, "forced_bos_token_id", None)
    return (start,) if forced is None else (start, forced)


def start_of(model: Any) -> tuple[int, ...]:
    """The same of a model with its settings. Raises BaseModelError."""
    return decoder_start(model.config, model.generation_config)
