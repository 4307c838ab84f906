"""Tiny encoder-decoders on a 4-bit grid, with vectors to train."""

from __future__ import annotations

from tiny_seq2seq import SEQ2SEQ, T5S, tiny_seq2seq
from transformers import PreTrainedModel

from qia3.base.quantise import Grid, quantise_model
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import Scaled, attach

PAIRS = list(SEQ2SEQ)
RELATIVE = T5S  # whose positions are distances; T5Gemma's are as well, up to its window
START = (0,)


def adapted_pair(name: str) -> tuple[PreTrainedModel, dict[str, Scaled]]:
    """With vectors of ones, and with the attention that transformers loads a model with."""
    model = tiny_seq2seq(name)
    if name != "t5gemma":  # whose scores are capped, which that attention refuses
        model.set_attn_implementation("sdpa")
    quantise_model(model, Grid(32, False))
    return model, attach(model, find_roles(model).sites)
