"""A GGUF base is what its file says: families against the transformers model that the file was written from, every
fault of a file by its name, split files as one.
"""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from tiny_gguf import CASES, tensors, tiny_of, words, write

from qia3.base.gguf_config import ZERO_IS_NONE, read_gguf_config
from qia3.base.gguf_parts import open_gguf
from qia3.base.gguf_rope import ROPE_TENSORS
from qia3.base.gguf_weights import load_gguf
from qia3.base.load import Asked, load_base
from qia3.base.sources import resolve
from qia3.errors import BaseModelError

IDS = torch.randint(3, 290, (2, 50), generator=torch.Generator().manual_seed(0))


def loaded(path):
    return load_gguf(open_gguf(path))


def refused(path, *said):
    """One line that says all of this."""
    with pytest.raises(BaseModelError) as caught:
        load_base(Asked(str(path), block_size=16))
    line = str(caught.value)
    assert "\n" not in line
    for part in said:
        assert part in line
    return line


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("name", CASES)
def test_a_file_computes_what_the_model_that_wrote_it_computes(name, tmp_path):
    model = write(tmp_path / "m.gguf", name)
    torch.testing.assert_close(logits(loaded(tmp_path / "m.gguf")), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_is_the_tensor_of_the_model_that_wrote_it(name, tmp_path):
    model = write(tmp_path / "m.gguf", name)
    wanted, found = model.state_dict(), loaded(tmp_path / "m.gguf").state_dict()
    assert wanted.keys() == found.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-6, rtol=0, msg=key)  # norms lose a bit in 1 + w - 1


@pytest.mark.parametrize("name", CASES)
def test_no_tensor_of_a_file_can_be_left_out(name, tmp_path):
    """Left out one after the other, each is missed by its name; but a head that is the embedding, and scaling by
    tensor.
    """
    write(tmp_path / "m.gguf", name)
    whole = open_gguf(tmp_path / "m.gguf")
    for tensor in [t for t in whole.tensors if t not in ROPE_TENSORS and t != "output.weight" and ".1." not in t]:
        part = {place: extent for place, extent in whole.tensors.items() if place != tensor}
        with pytest.raises(BaseModelError, match=r"missing|place|no embedding"):
            load_gguf(type(whole)(whole.path, whole.files, whole.values, part))


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3"])
def test_the_base_on_the_grid_is_the_writers_model_on_the_grid(name, tmp_path):
    """Ours from the file against plain transformers, both rounded by numpy's lines."""
    from qia3.grids import int4

    model = write(tmp_path / "m.gguf", name)
    found = loaded(tmp_path / "m.gguf")
    for one in (model, found):
        done = set()
        for module in one.modules():
            weight = getattr(module, "weight", None)
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding) and id(weight) not in done:
                done.add(id(weight))
                with torch.no_grad():
                    weight.copy_(torch.from_numpy(int4.dequantise(int4.quantise(weight.detach().numpy(), 16, False))))
    torch.testing.assert_close(logits(found), logits(model), atol=1e-4, rtol=0)


# Tensors


def test_a_tensor_without_a_place_ends_the_load(tmp_path):
    write(tmp_path / "m.gguf", more=[("blk.0.attn_q.lora_a", np.zeros((4, 96), np.float32))])
    refused(tmp_path / "m.gguf", "not in the model: blk.0.attn_q.lora_a", "adapter")


def test_missing_tensors_are_all_named(tmp_path):
    write(tmp_path / "m.gguf", keep=lambda t: not t.endswith("ffn_up.weight") and t != "output_norm.weight")
    refused(tmp_path / "m.gguf", "missing: ", "blk.[0-1].ffn_up.weight", "output_norm.weight", "split model")


def test_a_tensor_of_another_shape_ends_the_load(tmp_path):
    write(tmp_path / "m.gguf", change=lambda said: said.update({"feed_forward_length": 150}))
    refused(tmp_path / "m.gguf", "blk.0.ffn_gate.weight has shape [160, 96] instead of [150, 96]")


def test_biases_that_the_family_cannot_have_are_refused(tmp_path):
    write(tmp_path / "m.gguf", more=[("output.bias", np.ones(300, np.float32))])
    refused(tmp_path / "m.gguf", "output.bias", "no such biases")


def test_biases_of_some_projections_alone_are_refused(tmp_path):
    """transformers has them on all four or on none."""
    write(tmp_path / "m.gguf", "llama, biases", keep=lambda t: not t.endswith("attn_output.bias"))
    refused(tmp_path / "m.gguf", "missing: blk.[0-1].attn_output.bias")


def test_one_projection_for_queries_keys_and_values_is_refused(tmp_path):
    fused = [(f"blk.{i}.attn_qkv.weight", np.zeros((240, 96), np.float32)) for i in range(2)]
    write(
        tmp_path / "m.gguf",
        keep=lambda t: not t.endswith(("attn_q.weight", "attn_k.weight", "attn_v.weight")),
        more=fused,
    )
    refused(tmp_path / "m.gguf", "blk.[0-1].attn_qkv.weight", "fused queries, keys and values")


def test_a_format_without_a_reader_is_named(tmp_path):
    write(
        tmp_path / "m.gguf",
        keep=lambda t: t != "output_norm.weight",
        more=[("output_norm.weight", np.zeros(96, np.int8))],
    )
    refused(tmp_path / "m.gguf", "output_norm.weight is in I8")


# Entries


@pytest.mark.parametrize(
    ("name", "entry", "value"),
    [
        ("llama", "attention.sliding_window", 64),
        ("llama", "expert_count", 8),
        ("llama", "logit_scale", 0.5),
        ("llama", "embedding_scale", 12.0),
        ("llama", "attention.scale", 0.25),
        ("llama", "attention.causal", False),
        ("llama", "attention.value_length", 16),
        ("llama", "rope.dimension_count", 12),
        ("llama", "rope.scaling.type", "longrope"),
        ("llama", "rope.scaling.attn_factor", 1.5),
        ("llama", "rope.freq_base_swa", 10.0),
        ("llama, yarn", "rope.scaling.yarn_attn_factor", 0.5),
        ("llama", "attn_logit_softcapping", 50.0),
        ("llama", "something.new", 1),
        ("qwen2", "attention.sliding_window", 64),
        ("qwen2", "attention.key_length", 24),
        ("gpt2", "rope.freq_base", 10000.0),
        ("bloom", "attention.head_count_kv", 3),
        ("bloom", "attention.clamp_kqv", 8.0),
        ("gemma2", "rope.scaling.original_context_length", 4),
    ],
)
def test_an_entry_that_transformers_cannot_follow_is_refused_by_name(name, entry, value, tmp_path):
    write(tmp_path / "m.gguf", name, change=lambda said: said.update({entry: value}))
    refused(tmp_path / "m.gguf", entry)


@pytest.mark.parametrize("entry", ZERO_IS_NONE)
def test_zero_is_none_where_llama_cpp_has_it_so(entry, tmp_path):
    model = write(tmp_path / "m.gguf", change=lambda said: said.update({entry: 0}))
    torch.testing.assert_close(logits(loaded(tmp_path / "m.gguf")), logits(model))


@pytest.mark.parametrize(
    "entry",
    ["context_length", "embedding_length", "block_count", "attention.head_count", "attention.layer_norm_rms_epsilon"],
)
def test_what_a_class_would_guess_is_asked_for(entry, tmp_path):
    write(tmp_path / "m.gguf", change=lambda said: said.pop(entry))
    refused(tmp_path / "m.gguf", f"llama.{entry}", "is missing")


def test_without_a_base_of_the_rotation_it_is_ten_thousand(tmp_path):
    """As llama.cpp has it, whatever the class takes."""
    write(tmp_path / "m.gguf", "smollm3", change=lambda said: said.pop("rope.freq_base"))
    assert loaded(tmp_path / "m.gguf").config.rope_parameters["rope_theta"] == 10000.0


def test_a_rotation_scaled_in_an_unknown_way_is_refused(tmp_path):
    write(tmp_path / "m.gguf", more=[("rope_freqs.weight", np.linspace(1, 9, 12).astype(np.float32) ** 2)])
    refused(tmp_path / "m.gguf", "rope_freqs.weight", "as Llama 3 does")


def test_factors_of_one_scale_nothing(tmp_path):
    model = write(tmp_path / "m.gguf", more=[("rope_freqs.weight", np.ones(12, np.float32))])
    torch.testing.assert_close(logits(loaded(tmp_path / "m.gguf")), logits(model))


def test_scaling_tensors_of_a_family_that_does_not_rotate_are_refused(tmp_path):
    write(tmp_path / "m.gguf", "gpt2", more=[("rope_freqs.weight", np.ones(8, np.float32))])
    refused(tmp_path / "m.gguf", "rope_freqs.weight")


@pytest.mark.parametrize("seed", range(8))
def test_llama_3s_numbers_come_back_from_their_factors(seed, tmp_path):
    """The frequencies of the model that is loaded, held against transformers' own with the numbers themselves."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rng = np.random.default_rng(seed)
    low, high = float(rng.integers(1, 3)), float(rng.integers(4, 9))
    rope = {
        "rope_type": "llama3",
        "rope_theta": float(rng.choice([10000.0, 500000.0])),
        "factor": float(rng.choice([2.0, 8.0, 32.0])),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": int(rng.choice([1024, 4096, 8192])),
    }
    size = int(rng.choice([64, 128]))
    wanted = LlamaRotaryEmbedding(LlamaConfig(hidden_size=size, num_attention_heads=1, rope_parameters=rope)).inv_freq
    plain = rope["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    factors = (plain / wanted).numpy().astype(np.float32)
    factors[np.abs(factors - 1) < 1e-6] = 1
    from qia3.base.gguf_rope import _llama3

    class File:
        path = tmp_path

        def read(self, name):
            return factors

    found = _llama3(File(), rope["rope_theta"])
    again = LlamaRotaryEmbedding(
        LlamaConfig(hidden_size=size, num_attention_heads=1, rope_parameters=rope | found)
    ).inv_freq
    torch.testing.assert_close(again, wanted, atol=0, rtol=1e-5)


def test_an_architecture_that_is_not_read_is_named_with_those_that_are(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "mamba")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BaseModelError, match=r"'mamba'.*qwen3"):
        read_gguf_config(open_gguf(tmp_path / "m.gguf"))


# Tokens


def test_ids_that_the_file_does_not_name_are_none(tmp_path):
    write(tmp_path / "m.gguf", own=words(eos_token=None, bos_token=None))
    model = loaded(tmp_path / "m.gguf")
    for one in (model.config, model.generation_config):
        assert (one.eos_token_id, one.bos_token_id, one.pad_token_id) == (None, None, 0)


def test_an_end_of_turn_ends_as_well(tmp_path):
    write(tmp_path / "m.gguf", general=lambda w: w.add_eot_token_id(7))
    assert loaded(tmp_path / "m.gguf").generation_config.eos_token_id == [1, 7]


@pytest.mark.parametrize("token", [300, 2**32 - 1])
def test_a_token_beyond_the_embedding_is_refused(token, tmp_path):
    write(tmp_path / "m.gguf", general=lambda w: w.add_bos_token_id(token))
    refused(tmp_path / "m.gguf", f"bos_token_id = {token}", "300 tokens")


def test_a_vocabulary_of_another_size_is_refused(tmp_path):
    write(tmp_path / "m.gguf", change=lambda said: said.update({"vocab_size": 299}))
    refused(tmp_path / "m.gguf", "vocab_size = 299", "300 rows")


# Files


def parts(folder, count=3, name="llama", **changes):
    """A case's file split as llama-gguf-split splits it: entries in the first, tensors dealt out."""
    folder.mkdir(exist_ok=True)
    dealt = {t: i * count // 21 for i, t in enumerate(tensors(CASES[name][0], tiny_of(name)))}
    paths = []
    for i in range(count):
        paths.append(folder / f"m-{i + 1:05d}-of-{count:05d}.gguf")

        def general(w, i=i):
            w.add_uint16("split.no", changes.get("no", {}).get(i, i))
            w.add_uint16("split.count", changes.get("count", count))
            w.add_int32("split.tensors.count", changes.get("tensors", len(dealt)))

        change = changes.get("change", {}).get(i, lambda said: None)
        write(paths[-1], name, keep=lambda t, i=i: dealt[t] == i, general=general, change=change)
    return paths


@pytest.mark.parametrize("named", [0, 1, 2])
def test_a_split_model_is_read_whole_whichever_part_is_named(named, tmp_path):
    paths = parts(tmp_path)
    source = resolve(str(paths[named]))
    assert source.gguf_file == paths[0].name
    assert [name for name, _ in source.identity()][:3] == ["", "", ""]
    torch.testing.assert_close(logits(loaded(paths[named])), logits(tiny_of("llama")))


def test_a_missing_part_is_named(tmp_path):
    paths = parts(tmp_path)
    paths[1].unlink()
    refused(paths[2], "m-00002-of-00003.gguf", "not beside it")


def test_a_renamed_part_is_told_its_name(tmp_path):
    paths = parts(tmp_path)
    refused(paths[1].rename(tmp_path / "second.gguf"), "part 2 of a model of 3 files", "-00002-of-00003.gguf")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"no": {1: 2}}, "says that it is part 3 of 3"),
        ({"tensors": 22}, "hold 21 tensors instead of 22"),
        ({"change": {1: lambda said: said.update({"rope.freq_base": 5.0})}}, "differ in llama.rope.freq_base"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(changes, said, tmp_path):
    refused(parts(tmp_path, **changes)[0], said)


def test_parts_that_hold_one_tensor_twice_are_refused(tmp_path):
    paths = parts(tmp_path)

    def general(w):
        w.add_uint16("split.no", 1)
        w.add_uint16("split.count", 3)
        w.add_int32("split.tensors.count", 21)

    write(paths[1], general=general)
    refused(paths[0], "two files")


def test_a_big_endian_file_is_called_so(tmp_path):
    write(tmp_path / "m.gguf", endianess=gguf.GGUFEndian.BIG)
    refused(tmp_path / "m.gguf", "big-endian", "gguf_convert_endian")


def test_a_name_in_capitals_is_a_name(tmp_path, monkeypatch):
    write(tmp_path / "m.gguf").eval()
    (tmp_path / "m.gguf").rename(tmp_path / "M.GGUF")
    monkeypatch.chdir(tmp_path)
    assert resolve("M.GGUF").gguf_file == "M.GGUF"
    assert resolve(str(tmp_path / "M.GGUF")).gguf_file == "M.GGUF"


@pytest.mark.parametrize(
    ("kind", "said"), [("adapter", "merge it"), ("mmproj", "vision or audio"), ("imatrix", "importance matrix")]
)
def test_a_file_that_is_no_model_is_called_what_it_is(kind, said, tmp_path):
    write(tmp_path / "m.gguf", general=lambda w: w.add_type(kind))
    refused(tmp_path / "m.gguf", said)


@pytest.mark.real
def test_the_real_file_loads_bit_for_bit_as_transformers_reads_it(real_gguf):
    """It has nothing that transformers' own reader drops."""
    from transformers import AutoModelForCausalLM

    wanted = AutoModelForCausalLM.from_pretrained(str(real_gguf.parent), gguf_file=real_gguf.name, dtype=torch.float32)
    found = loaded(real_gguf)
    ours = found.state_dict()
    assert ours.keys() == wanted.state_dict().keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in wanted.state_dict().items())
    assert found.generation_config.to_dict() == wanted.generation_config.to_dict()
