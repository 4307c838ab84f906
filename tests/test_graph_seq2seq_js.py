"""transformers.js itself opens an encoder-decoder with no option at all: torch's own tokens.

Needs what tests/test_transformers_js.py needs.
"""

from __future__ import annotations

import json

import pytest
from seq2seq_pair import batch
from test_graph_seq2seq import PLAIN, made, written
from test_transformers_js import node, pytestmark

from qia3.bundle.ports import PAST_LENGTH, Cache, cross_cache_names
from qia3.graph.forced import torch_choices
from qia3.graph.loader_configs import write_configs

__all__ = ["pytestmark"]  # skipped where there is no Node
NEW = 8


@pytest.mark.parametrize("name", [PLAIN, "bart"])
def test_answers_are_torchs_one_by_one_and_together(name, tmp_path):
    """The cross keys of the first call are kept, the states go in whole at every step, and nobody tells past_length."""
    m = made(name)
    written(m, tmp_path)
    write_configs(m.model, tmp_path, 48, (1,), Cache(6, 16))
    prompts = batch([11, 11])[0].tolist()
    told = node("transformers_js_pair.mjs", tmp_path, NEW, *map(json.dumps, prompts))
    expected = [[0, *torch_choices(m.model, prompt, NEW)] for prompt in prompts]
    assert told["rows"] == expected
    assert told["batch"] == expected
    assert PAST_LENGTH not in told["inputs"]["decoder_model_merged"]
    assert set(cross_cache_names(3, "past_key_values.")) <= set(told["inputs"]["decoder_model_merged"])
