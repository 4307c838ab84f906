"""Sampling and beam search are transformers' own: the same shares, the same tokens, for a decoder and for an
encoder-decoder, over a product of settings.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, T5Config
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qia3.errors import ConfigError
from qia3.runtime.decoding import Decoding, shares_of
from qia3.runtime.generate import generate

STOP, LIMIT = (2, 9, 13, 7), 9
SHAPE = {"vocab_size": 23, "pad_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": False}
LLAMA = SHAPE | {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
T5 = SHAPE | {"d_model": 24, "d_kv": 16, "d_ff": 40, "num_layers": 1, "num_decoder_layers": 2, "num_heads": 3}


class Rows:
    """A cache that keeps the tokens."""

    def __init__(self, tokens: list[list[int]]) -> None:
        self.tokens, self.lengths = tokens, np.array([len(row) for row in tokens])

    def expand(self, index) -> Rows:
        return Rows([self.tokens[i] for i in index])


class Whole:
    """A transformers model as an engine that runs every text from its start."""

    def __init__(self, model, start: tuple[int, ...] = ()) -> None:
        self.model, self.start, self.context_length = model, start, 64
        self.forced = max(0, len(start) - 1)

    def prefill(self, rows, vectors, room):
        self.prompt = list(rows[0])
        return self._logits(Rows([list(self.start) or self.prompt]))

    def step(self, tokens, cache, vectors):
        return self._logits(Rows([[*row, token] for row, token in zip(cache.tokens, tokens, strict=True)]))

    def _logits(self, cache):
        ids, one = torch.tensor(cache.tokens), torch.tensor([self.prompt] * len(cache.tokens))
        fed = {"input_ids": one, "decoder_input_ids": ids} if self.start else {"input_ids": ids}
        with torch.no_grad():
            return self.model(**fed).logits[:, -1].numpy(), cache


@cache
def model(kind: str, seed: int):
    torch.manual_seed(seed)
    if kind == "decoder":
        made = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA)).eval()
    else:
        made = AutoModelForSeq2SeqLM.from_config(T5Config(**T5, decoder_start_token_id=0)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 1))
    return made


SETTINGS = list(itertools.product((2, 5), (1.0, 0.0, 2.0, -1.0), (False, True, "never")))


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder", "forced"])
@pytest.mark.parametrize("seed", range(3))
def test_beams_are_those_of_transformers(kind, seed):
    """With a first word forced, as BART's is, which transformers counts and we have in the start."""
    torn, prompt = model(kind.removeprefix("forced") or "encoder-decoder", seed), [5, 11, 3, 17]
    start = {"decoder": (), "encoder-decoder": (0,), "forced": (0, 4)}[kind]
    engine = Whole(torn, start)
    for beams, penalty, early in SETTINGS:
        more = {"forced_bos_token_id": 4} if kind == "forced" else {}
        theirs = torn.generate(
            torch.tensor([prompt]),
            num_beams=beams,
            length_penalty=penalty,
            early_stopping=early,
            do_sample=False,
            max_new_tokens=LIMIT + engine.forced,
            eos_token_id=list(STOP),
            use_cache=False,  # transformers 5.23 counts a T5 decoder's caches by the encoder's layers
            **more,
        )
        expected = theirs[0].tolist()[len(start) or len(prompt) :]
        ended = next((i for i, token in enumerate(expected) if token in STOP), None)
        decoding = Decoding(beams, penalty, early)
        found = list(generate(engine, prompt, {}, LIMIT, STOP, decoding))
        assert found == expected[:ended], (beams, penalty, early)


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_settings_change_what_is_found(kind):
    """Or the test above could not fail."""
    start = (0,) if kind == "encoder-decoder" else ()
    found, ended = set(), Counter()
    for seed in range(4):
        engine = Whole(model(kind, seed), start)
        each = [tuple(generate(engine, [5, 11, 3, 17], {}, LIMIT, STOP, Decoding(*s))) for s in SETTINGS]
        each.append(tuple(generate(engine, [5, 11, 3, 17], {}, LIMIT, STOP)))
        found.add(len(set(each)))
        ended.update(0 < len(tokens) < LIMIT for tokens in each)
    assert max(found) >= 4
    assert min(ended[True], ended[False]) > 20


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(temperature=t, top_k=k, top_p=p, min_p=m)
        for t, k, p, m in itertools.product((0.5, 1.0, 1.7), (0, 1, 7, 100), (0.3, 0.9, 1.0), (0.0, 0.2))
    ],
)
def test_shares_are_those_of_transformers(decoding):
    steps = LogitsProcessorList([TemperatureLogitsWarper(decoding.temperature)])
    if decoding.top_k:
        steps.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        steps.append(TopPLogitsWarper(decoding.top_p))
    steps.append(MinPLogitsWarper(decoding.min_p))
    rng = np.random.default_rng(3)
    for _ in range(5):
        logits = rng.normal(0, 2, 41).astype(np.float32)
        expected = steps(None, torch.from_numpy(logits)[None])[0].softmax(-1).numpy()
        np.testing.assert_allclose(shares_of(logits, decoding), expected, atol=1e-6)


def test_tokens_are_drawn_by_their_shares_and_a_seed_draws_them_again():
    engine, decoding = Whole(model("decoder", 0)), Decoding(temperature=1.3, top_k=5, seed=0)
    logits, _ = engine.prefill([[5, 11, 3, 17]], {}, 0)
    shares, count = shares_of(logits[0], decoding), 2000
    drawn = Counter()
    for seed in range(count):
        (token,) = list(generate(engine, [5, 11, 3, 17], {}, 1, (), replace(decoding, seed=seed)))
        drawn[token] += 1
    assert set(drawn) == set(np.flatnonzero(shares))
    for token, times in drawn.items():
        spread = np.sqrt(count * shares[token] * (1 - shares[token]))
        assert abs(times - count * shares[token]) < 4 * spread + 1
    text = list(generate(engine, [5, 11, 3, 17], {}, LIMIT, (), decoding))
    assert text == list(generate(engine, [5, 11, 3, 17], {}, LIMIT, (), decoding))
    assert text != list(generate(engine, [5, 11, 3, 17], {}, LIMIT, ()))


def test_beams_end_where_the_context_does_and_at_no_tokens():
    engine = Whole(model("decoder", 0))
    engine.context_length = 7
    assert len(list(generate(engine, [5, 11, 3, 17], {}, 100, (), Decoding(3)))) == 3
    assert list(generate(engine, [5, 11, 3, 17], {}, 0, (), Decoding(3))) == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"beams": 0}, "beams must be 1 or more"),
        ({"beams": 2, "temperature": 1.0}, "beams cannot be combined with a temperature"),
        ({"temperature": 0.0, "top_p": 0.0}, "temperature must be above 0; top_p must be above 0"),
        ({"temperature": 1.0, "top_k": -1, "min_p": 2.0}, "top_k must be 0 .* min_p must be from 0 to 1"),
        ({"seed": 0}, "need a temperature"),
        ({"top_p": 0.5, "beams": 2}, "need a temperature"),
        ({"length_penalty": 0.5}, "needs several beams"),
    ],
)
def test_wrong_settings_are_one_line(settings, told):
    with pytest.raises(ConfigError, match=told):
        Decoding(**settings)
