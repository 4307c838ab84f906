"""Which kinds of model are refused from their configuration alone, before any weight is read."""

from __future__ import annotations

from typing import Any

from qia3.errors import BaseModelError

ALWAYS_DECODERS = {
    "gpt_neox",
    "gpt_neox_japanese",
}  # their configurations have `is_decoder`, and their code never reads it


def check_decoder(config: Any, reference: str) -> None:
    """Raises BaseModelError for encoder-decoders and encoders.

    transformers would load the decoder of the one without its encoder, and the other as if each token saw only what
    came before it.
    """
    kind = config.model_type
    if config.is_encoder_decoder:
        raise BaseModelError(f"{reference} is an encoder-decoder ({kind}); this version exports decoders")
    if getattr(config, "is_decoder", None) is False and kind not in ALWAYS_DECODERS:
        raise BaseModelError(
            f"{reference} is an encoder, or a decoder that is one part of a larger model ({kind}, is_decoder is false in its "
            "configuration); this version exports decoders that stand alone"
        )
