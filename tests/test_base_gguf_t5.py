"""GGUF files of T5's family: against the transformers model that wrote them, and what they say of its activation, its
head and its tables of distances, which is in no entry.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny_bundle import END, tokenizer
from tiny_gguf import words
from tiny_seq2seq import T5S, pair, tiny_seq2seq

from qia3.base.gguf_parts import open_gguf
from qia3.base.gguf_t5 import CROSS
from qia3.base.gguf_weights import load_gguf
from qia3.base.load import Asked, load_base
from qia3.base.text import read_base_text
from qia3.errors import BaseModelError


def write(path: Path, name: str = "t5 v1.1", change: Any = lambda said: None, keep: Any = lambda t: True, more: Any = (),
          kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32) -> Any:  # fmt: skip
    """As conversion/t5.py of llama.cpp writes it: its entries, its names, the tokenizer as Unigram's. Returns the model."""
    model = tiny_seq2seq(name, len(words()), relative_attention_max_distance=128)
    c = model.config
    if name == "umt5":  # whose logits transformers 5 scales for a tie that it takes for granted, and 4 does not
        c.tie_word_embeddings = False
    said = {
        "context_length": 512, "embedding_length": c.d_model, "feed_forward_length": c.d_ff, "block_count": c.num_layers,
        "decoder_block_count": c.num_decoder_layers, "attention.head_count": c.num_heads, "attention.key_length": c.d_kv,
        "attention.value_length": c.d_kv, "attention.layer_norm_epsilon": c.layer_norm_epsilon,
        "attention.relative_buckets_count": c.relative_attention_num_buckets,
        "attention.layer_norm_rms_epsilon": c.layer_norm_epsilon, "decoder_start_token_id": 0,
    }  # fmt: skip
    change(said)
    writer = gguf.GGUFWriter(str(path), "t5")
    for entry, value in said.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"t5.{entry}", value)
    listed = [token for token, _ in sorted(words().get_vocab().items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("t5")
    writer.add_token_list(listed)
    writer.add_token_types([1] * len(listed))
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    for place, a in [*((t, a) for t, a in tensors(model).items() if keep(t)), *more]:
        coded = kind != gguf.GGMLQuantizationType.F32 and a.ndim == 2 and a.shape[1] % 32 == 0
        writer.add_tensor(place, gguf.quantize(a, kind) if coded else a, raw_dtype=kind if coded else None)
    for finish in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        finish()
    return model


def tensors(model: Any) -> dict[str, np.ndarray]:
    table, found = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, 3), {}
    tied = model.lm_head.weight is model.shared.weight
    for name, p in model.state_dict().items():
        if "embed_tokens" not in name and not (tied and name == "lm_head.weight"):
            found[f"{table.get_name(name.removesuffix('.weight'))}.weight"] = np.ascontiguousarray(p.float().numpy())
    return found


def logits(model: Any) -> torch.Tensor:
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found: torch.Tensor = model(**pair(vocabulary=290, source=60, target=40)).logits
    return found


@pytest.mark.parametrize("name", T5S)
def test_law_9_a_file_computes_what_the_model_that_wrote_it_computes(name, tmp_path):
    model = write(tmp_path / "m.gguf", name)
    found = load_gguf(open_gguf(tmp_path / "m.gguf"))
    torch.testing.assert_close(logits(found), logits(model), atol=1e-5, rtol=1e-5)
    wanted = model.state_dict()
    assert wanted.keys() == found.state_dict().keys()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in found.state_dict().items())
    assert found.config.dense_act_fn == ("relu" if name == "t5" else "gelu_new")
    assert (found.lm_head.weight is found.shared.weight) == found.config.tie_word_embeddings == (name == "t5")


def test_a_head_that_is_the_embedding_byte_for_byte_is_the_embedding(tmp_path):
    copy = tensors(tiny_seq2seq("t5", len(words())))["token_embd.weight"]
    model = write(tmp_path / "m.gguf", "t5", more=[("output.weight", copy), (CROSS, np.zeros((8, 5), np.float32))])
    torch.testing.assert_close(logits(load_gguf(open_gguf(tmp_path / "m.gguf"))), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "tensor",
    [
        "token_embd",
        "dec.output_norm",
        "dec.blk.0.cross_attn_k",
        "enc.blk.0.ffn_down",
        "enc.blk.0.ffn_gate",
        "enc.blk.0.attn_rel_b",
    ],
)
def test_no_tensor_can_be_left_out(tensor, tmp_path):
    write(tmp_path / "m.gguf", "t5 v1.1", keep=lambda name: name != f"{tensor}.weight")
    with pytest.raises(BaseModelError, match=rf"missing: {tensor}|no embedding|relative position biases"):
        load_gguf(open_gguf(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("attention.relative_buckets_count", None, "t5.attention.relative_buckets_count is missing"),
        ("attention.value_length", 24, "attention.value_length = 24 beside attention.key_length = 16"),
        ("attention.layer_norm_epsilon", 0.5, "attention.layer_norm_epsilon = 0.5 beside"),
        ("logit_scale", 2.0, "logit_scale = 2.0"),
    ],
)
def test_an_entry_that_cannot_be_is_refused_by_its_name(entry, value, said, tmp_path):
    write(tmp_path / "m.gguf", change=lambda known: known.pop(entry) if value is None else known.update({entry: value}))
    with pytest.raises(BaseModelError, match=said):
        load_gguf(open_gguf(tmp_path / "m.gguf"))


def test_tables_of_distances_in_some_layers_are_neither_t5_s_nor_umt5_s(tmp_path):
    write(tmp_path / "m.gguf", "umt5", keep=lambda t: t != "dec.blk.1.attn_rel_b.weight")
    with pytest.raises(BaseModelError, match=r"attn_rel_b.*dec\.blk\.\[0, 2\]"):
        load_gguf(open_gguf(tmp_path / "m.gguf"))


def test_its_words_are_those_of_the_tokenizer_beside_it_or_none(tmp_path):
    file = tmp_path / "m.gguf"
    write(file)
    with pytest.raises(BaseModelError, match=r"Unigram.*tokenizer\.json beside it"):
        read_base_text(str(file))
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer().to_str())))
    text = read_base_text(str(file))
    assert (text.start, text.tokenizer.eos_token) == ((0,), END)


def test_layers_in_q4_0_keep_their_codes_and_the_rest_is_ours(tmp_path):
    write(tmp_path / "m.gguf", kind=gguf.GGMLQuantizationType.Q4_0)
    (tmp_path / "tokenizer.json").write_text(tokenizer().to_str())
    base = load_base(Asked(str(tmp_path / "m.gguf"), block_size=32, calibration="own"))
    oracle = load_gguf(open_gguf(tmp_path / "m.gguf"))
    assert base.codes == "q4_0"
    layer = "decoder.block.2.layer.1.EncDecAttention.v"
    kept = base.model.get_submodule(layer).weight
    assert torch.equal(kept.float(), oracle.get_submodule(layer).weight)
