"""What an encoder-decoder's answers begin after, as its files say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_seq2seq import SEQ2SEQ, tiny_seq2seq
from transformers import AutoConfig, GenerationConfig

from qia3.base.start import decoder_start
from qia3.errors import BaseModelError


def t5(**named):
    return AutoConfig.for_model("t5", **named)


def test_a_decoder_alone_has_none():
    assert decoder_start(AutoConfig.for_model("llama", bos_token_id=1), GenerationConfig(bos_token_id=1)) == ()


def test_the_generation_settings_come_before_the_configuration():
    assert decoder_start(t5(decoder_start_token_id=0), GenerationConfig(decoder_start_token_id=5)) == (5,)
    assert decoder_start(t5(decoder_start_token_id=0), GenerationConfig()) == (0,)
    assert decoder_start(t5(decoder_start_token_id=0), GenerationConfig(decoder_start_token_id=[7])) == (7,)
    assert decoder_start(t5(), GenerationConfig(bos_token_id=3)) == (3,)


def test_a_forced_first_word_stands_behind_the_start():
    said = GenerationConfig(decoder_start_token_id=2, forced_bos_token_id=0)
    assert decoder_start(AutoConfig.for_model("bart"), said) == (2, 0)


@pytest.mark.parametrize("generation", [None, GenerationConfig(), GenerationConfig(decoder_start_token_id=[4, 5])])
def test_none_or_several_are_refused(generation):
    with pytest.raises(BaseModelError, match=r"\(t5\).*set decoder_start_token_id in its generation_config.json"):
        decoder_start(SimpleNamespace(is_encoder_decoder=True, model_type="t5"), generation)


@torch.no_grad()
@pytest.mark.parametrize("name", SEQ2SEQ)
def test_transformers_generates_behind_the_same_tokens(name):
    """Oracle: generate() itself, whose output begins with what it started from."""
    fewer = (
        {"num_decoder_layers": 1} if "5" in name and name != "t5gemma" else {}
    )  # 5.23 makes a cache of as many layers as the encoder has
    model = tiny_seq2seq(name, **fewer)
    begins = decoder_start(model.config, model.generation_config)
    found = model.generate(torch.tensor([[5, 6, 1]]), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert found[0, : len(begins)].tolist() == list(begins)
