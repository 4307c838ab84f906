"""Which kinds of model are refused from their configuration alone, before any weight is read."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForSeq2SeqLM

from qia3.base.family import is_encoder
from qia3.errors import BaseModelError

ALWAYS_DECODERS = {
    "gpt_neox",
    "gpt_neox_japanese",
}  # their configurations have `is_decoder`, and their code never reads it


def check_kind(config: Any, reference: str) -> None:
    """Raises BaseModelError for encoder-decoders of something else than text, and for what is one part of a larger model.

    transformers would load an encoder as a decoder, as if each token saw only what came before it.
    """
    kind = config.model_type
    if config.is_encoder_decoder and not _is_of_text(config):
        raise BaseModelError(
            f"{reference} is an encoder-decoder ({kind}) of speech or images; those of text alone are read"
        )
    if config.is_encoder_decoder or is_encoder(config):
        return
    if getattr(config, "is_decoder", None) is False and kind not in ALWAYS_DECODERS:
        raise BaseModelError(
            f"{reference} is a decoder that is one part of a larger model, or an encoder of another kind than those that "
            f"are trained on hidden words ({kind}, is_decoder is false in its configuration); this version has no form for it"
        )


def _is_of_text(config: Any) -> bool:
    """By transformers' class for it, which is made of text alone."""
    if type(config) not in AutoModelForSeq2SeqLM._model_mapping:
        return False
    made = AutoModelForSeq2SeqLM._model_mapping[type(config)]
    modalities = made.input_modalities
    return made.main_input_name == "input_ids" and modalities in ("text", ("text",), ["text"])
