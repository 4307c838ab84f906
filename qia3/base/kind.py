"""Which kinds of model are refused from their configuration alone, before any weight is read."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForSeq2SeqLM

from qia3.base.family import is_encoder
from qia3.errors import BaseModelError

ALWAYS_DECODERS = {
    "gpt_neox",
    "gpt_neox_japanese",
}  # their configurations have `is_decoder`, but their code ignores it


def check_kind(config: Any, reference: str) -> None:
    """Raises BaseModelError for encoder-decoders of anything but text, and for models that are one part of a larger
    one.

    transformers would load an encoder as a decoder, as if each token only saw those before it.
    """
    kind = config.model_type
    if config.is_encoder_decoder and not _is_of_text(config):
        raise BaseModelError(
            f"{reference} is an encoder-decoder ({kind}) for speech or images; only those for text are supported"
        )
    if config.is_encoder_decoder or is_encoder(config):
        return
    if getattr(config, "is_decoder", None) is False and kind not in ALWAYS_DECODERS:
        raise BaseModelError(
            f"{reference} is a decoder that is part of a larger model, or an encoder that is not a masked "
            "language model "
            f"({kind}, is_decoder is false in its configuration); such models are not supported"
        )


def _is_of_text(config: Any) -> bool:
    """Whether it is for text only, by transformers' class for it."""
    if type(config) not in AutoModelForSeq2SeqLM._model_mapping:
        return False
    made = AutoModelForSeq2SeqLM._model_mapping[type(config)]
    modalities = made.input_modalities
    return made.main_input_name == "input_ids" and modalities in ("text", ("text",), ["text"])
