"""A model's counts and sizes, read from its configuration."""

from __future__ import annotations

from typing import Any

from qia3.base.family import is_encoder
from qia3.base.pooling import pooling_of
from qia3.bundle.manifest import Architecture


def text_config(config: Any) -> Any:
    """The configuration of the stack that generates text."""
    return config.get_text_config(decoder=True) if config.is_encoder_decoder else config.get_text_config()


def head_size(config: Any) -> int:
    """The size of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def architecture(whole: Any, context_length: int, tied: bool, start: tuple[int, ...]) -> Architecture:
    """`tied`: embedding and head share one table; `start`: the tokens that an encoder-decoder's decoder starts with."""
    config = text_config(whole)
    return Architecture(
        layers=getattr(config, "num_decoder_layers", None) or config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_size=head_size(config),
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        context_length=context_length,
        tied_embedding=tied,
        encoder_layers=_encoder_config(whole).num_hidden_layers if whole.is_encoder_decoder else None,
        decoder_start=start,
        pooling=pooling_of(whole) if is_encoder(whole) else None,
    )


def _encoder_config(config: Any) -> Any:
    """The configuration of an encoder-decoder's encoder: its own, or the whole one with the encoder's names."""
    return getattr(config, "encoder", None) or config.get_text_config(encoder=True)
