"""transformers.js itself opens an encoder-decoder with no option at all: torch's own tokens; and with vectors, where the
graphs are of the target "browser".

Needs what tests/test_transformers_js.py needs.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from seq2seq_pair import batch, quantised
from test_graph_seq2seq import PLAIN, made, written
from test_transformers_js import PACKAGES, node, pytestmark
from tiny import random_vectors

from qia3.bundle.layout import DECODER_GRAPH, ENCODER_GRAPH, SHARED_DATA
from qia3.bundle.ports import PAST_LENGTH, Cache, cross_cache_names
from qia3.graph.export_seq2seq import export_seq2seq
from qia3.graph.external import write_graphs
from qia3.graph.forced import torch_choices
from qia3.graph.loader_configs import write_configs
from qia3.ia3.vectors import set_vectors

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


@pytest.mark.parametrize("name", [PLAIN, "mt5"])
def test_a_browser_feeds_the_vectors_of_both_graphs(name, tmp_path):
    """Without a default they are inputs that JavaScript lists, and transformers.js hands each graph its own."""
    model, scaled = quantised(name)
    vectors = random_vectors(scaled)
    graphs = export_seq2seq(model, 0, 48, "last", required=True)
    write_graphs({ENCODER_GRAPH: graphs["encoder"], DECODER_GRAPH: graphs["decoder"]}, SHARED_DATA, tmp_path, [])
    write_configs(model, tmp_path, 48, (1,), Cache(6, 16))
    prompts = batch([11, 11])[0].tolist()
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    (tmp_path / "vectors.json").write_text(json.dumps({n: v.tolist() for n, v in vectors.items()}))
    command = ["node", str(Path(__file__).with_name("loader.mjs")), PACKAGES, str(NEW)]
    run = subprocess.run(command, input=f"{tmp_path}\n", capture_output=True, text=True, timeout=300)
    plain = [torch_choices(model, prompt, NEW) for prompt in prompts]
    set_vectors(scaled, vectors)
    expected = [torch_choices(model, prompt, NEW) for prompt in prompts]
    assert expected != plain
    assert json.loads(run.stdout) == {"rows": expected, "batch": expected}
