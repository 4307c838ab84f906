"""Stock onnxruntime-genai opens a bundle as it is: the same tokens as our own runtime, with and without an adapter."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_build import built
from transformers import AutoConfig

from qia3.bundle.opened import Bundle
from qia3.bundle.ports import Cache
from qia3.graph.loader_configs import genai_config
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.engine import Engine
from qia3.runtime.generate import generate

og = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai has no wheel for this platform")
NEW = 24


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle.open(built(tmp_path_factory.mktemp("genai")))


def ours_and_theirs(bundle, adapter, text) -> tuple[list[int], list[int]]:
    """Greedy tokens of our runtime and of stock onnxruntime-genai."""
    engine = Engine(bundle, threads=1)
    prompt = engine.encode(text)
    ours = list(
        generate(engine, prompt, AdapterBank(bundle).vectors(adapter) if adapter else {}, NEW, bundle.stop_tokens)
    )

    model = og.Model(str(bundle.path))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + NEW, do_sample=False)
    generator = og.Generator(model, parameters)
    if adapter:
        adapters = og.Adapters(model)
        adapters.load(str(bundle.path / "adapters" / f"{adapter}.onnx_adapter"), adapter)
        generator.set_active_adapter(adapters, adapter)
    generator.append_tokens(np.array(prompt, np.int32))
    streamed = []
    while not generator.is_done():
        generator.generate_next_token()
        streamed.append(int(generator.get_next_tokens()[0]))
    return ours, [t for t in streamed if t not in bundle.stop_tokens]


@pytest.mark.parametrize("adapter", [None, "topics", "commands"])
@pytest.mark.parametrize("text", ["turn the lights off", "lock the door and play a song, then dim the hall"])
def test_stock_genai_says_the_same_token_for_token(bundle, adapter, text):
    ours, theirs = ours_and_theirs(bundle, adapter, text)
    assert theirs == ours
    assert len(ours) > 0


def test_the_target_for_browsers_opens_with_an_adapter_and_not_without(tmp_path):
    """Why it is a target of its own and not the default: its vectors have no default."""
    bundle = Bundle.open(built(tmp_path, "--target", "browser"))
    ours, theirs = ours_and_theirs(bundle, "topics", "turn the lights off")
    assert theirs == ours
    with pytest.raises(Exception, match=r"Missing Input: .*\.ia3_l"):
        ours_and_theirs(bundle, None, "turn the lights off")


def test_a_merged_bundle_opens_as_it_is(tmp_path):
    bundle = Bundle.open(built(tmp_path, "--mode", "merged", "--task", "topics"))
    ours, theirs = ours_and_theirs(bundle, None, "turn the lights off")
    assert theirs == ours
    assert len(ours) > 0


def test_its_configuration_names_what_the_graph_has(bundle):
    """The names and sizes that genai reads are those of the graph's inputs and outputs."""
    decoder = json.loads((bundle.path / "genai_config.json").read_text())["model"]["decoder"]
    session = Engine(bundle, threads=1).session
    inputs, outputs = ({v.name: v.shape for v in side} for side in (session.get_inputs(), session.get_outputs()))
    for i in range(decoder["num_hidden_layers"]):
        for part in ("key", "value"):
            assert inputs[decoder["inputs"][f"past_{part}_names"] % i][1:4:2] == [
                decoder["num_key_value_heads"],
                decoder["head_size"],
            ]
            assert decoder["outputs"][f"present_{part}_names"] % i in outputs
    assert inputs["input_ids"][0] == "batch_size"
    assert decoder["outputs"]["logits"] in outputs


def test_a_configuration_without_padding_has_the_stop_token_for_it():
    """CodeGen's of transformers 5 has no such setting at all, where others have None."""
    config = AutoConfig.for_model("codegen", n_embd=96, n_head=8, bos_token_id=None)
    assert not hasattr(config, "pad_token_id")
    model = genai_config(config, 64, (7,), Cache(8, 12))["model"]
    assert (model["pad_token_id"], model["bos_token_id"], model["eos_token_id"]) == (7, 7, [7])
