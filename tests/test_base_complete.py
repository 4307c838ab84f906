"""A base is what its files say: a tensor that is missing, left over, misshapen or doubled ends the load before anything
is quantised; whole files load as transformers loads them, to the bit.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import DECODERS, ids, tiny
from tiny_build import write_base
from tiny_quantised import configure, write_packed, write_tensors
from transformers import AutoModelForCausalLM

from qia3.base import load, windows
from qia3.base.complete import LAYER, LISTED, check_places, check_report, empty_model
from qia3.base.load import Asked, load_base, load_float
from qia3.base.shards import entries
from qia3.errors import BaseModelError


@pytest.fixture(scope="module", params=DECODERS)
def whole(request, tmp_path_factory):
    """A folder as save_pretrained writes it, its empty model, and where its tensors lie."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny(request.param).save_pretrained(folder)
    return folder, empty_model(folder), entries(folder)


def said(model, found) -> str:
    with pytest.raises(BaseModelError) as caught:
        check_places(model, found)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kinds(names) -> dict[str, str]:
    """One tensor of each kind, of the last layer that has it."""
    return {LAYER.split(name)[-1]: name for name in sorted(names)}


def test_every_kind_of_tensor_is_missed(whole):
    _, model, found = whole
    check_places(model, found)
    for gone in kinds(found).values():
        line = said(model, {name: entry for name, entry in found.items() if name != gone})
        assert "is missing" in line or "are missing" in line, gone  # with the head that is tied to it
        assert gone.rpartition(".")[0] in line or "embed_out" in gone, line  # GPT-NeoX's head is renamed


def test_every_kind_of_tensor_under_a_wrong_name_or_in_a_wrong_shape_is_named(whole):
    _, model, found = whole
    for name in kinds(found).values():
        entry = found[name]
        holder, _, end = name.rpartition(".")
        renamed = {n: e for n, e in found.items() if n != name} | {f"{holder}_old.{end}": entry}
        line = said(model, renamed)
        assert f"{holder}_old.{end} has no place in the model" in line
        assert "is missing" in line or "are missing" in line
        flipped = dataclasses.replace(entry, shape=(*entry.shape[:-1], entry.shape[-1] + 1))
        line = said(model, found | {name: flipped})
        assert f"{name} is float32 {list(flipped.shape)} and should be float32 {list(entry.shape)}" in line
        stored = dataclasses.replace(entry, dtype=torch.int8)
        assert f"{name} is int8 {list(entry.shape)} and should be" in said(model, found | {name: stored})


def test_what_was_added_is_named_and_so_is_a_tensor_that_stands_twice(whole):
    _, model, found = whole
    entry = next(iter(found.values()))
    assert "stray.weight has no place in the model" in said(model, found | {"stray.weight": entry})
    prefix = f"{model.base_model_prefix}."
    bare = next(name for name in found if name.startswith(prefix))
    line = said(model, found | {bare.removeprefix(prefix): found[bare]})
    assert f"{bare.removeprefix(prefix)} are both meant for {bare}" in line or "are both meant for" in line


def test_a_layer_that_was_cut_off_and_one_too_many_are_told_as_such(whole):
    _, model, found = whole
    last = max(int(seen[1]) for name in found if (seen := LAYER.search(name)))
    cut = {n: e for n, e in found.items() if f".{last}." not in n}
    assert "config.json asks for 2 layers, the files have 1" in said(model, cut)
    more = found | {n.replace(f".{last}.", f".{last + 1}."): e for n, e in found.items() if f".{last}." in n}
    assert "config.json asks for 2 layers, the files have 3" in said(model, more)


def test_whole_files_give_transformers_logits_exactly(whole, monkeypatch):
    folder, _, _ = whole
    monkeypatch.setattr(load, "read_tokenizer", lambda source: None)
    model, _ = load_float(str(folder))
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=ids()).logits, oracle(input_ids=ids()).logits)


def test_names_without_the_models_prefix_are_those_of_the_model(tmp_path):
    """A base model's own save_pretrained, its head tied."""
    tiny("smollm3").model.save_pretrained(tmp_path)
    check_places(empty_model(tmp_path), entries(tmp_path))


def test_what_a_class_of_transformers_lists_as_to_be_ignored_is_not_ignored(tmp_path):
    """GPT-2's pattern `attn.bias` means its old masks, and matches c_attn.bias as well."""
    tiny("gpt2").save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    extra = {"transformer.h.0.attn.old_c_attn.bias": torch.ones(3)}
    save_file(held | extra, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert "transformer.h.0.attn.old_c_attn.bias has no place" in said(empty_model(tmp_path), entries(tmp_path))


MASK = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()


def test_what_models_work_out_for_themselves_may_be_left_over_where_it_says_the_same(tmp_path):
    tiny("gpt2").save_pretrained(tmp_path / "gpt2")
    held = load_file(tmp_path / "gpt2" / "model.safetensors")
    for extra, fits in (
        ({"transformer.h.0.attn.bias": MASK, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}, True),
        ({"transformer.h.0.attn.bias": MASK.byte()}, True),
        ({"transformer.h.0.attn.bias": MASK.flip(-1)}, False),
        ({"transformer.h.0.attn.bias": torch.ones(96)}, False),
        ({"transformer.h.0.attn.masked_bias": torch.ones(96)}, False),
        ({"transformer.position_ids": torch.arange(64)[None]}, True),
        ({"transformer.position_ids": torch.arange(64)[None] + 1}, False),
    ):
        save_file(held | extra, tmp_path / "gpt2" / "model.safetensors", metadata={"format": "pt"})
        model, found = empty_model(tmp_path / "gpt2"), entries(tmp_path / "gpt2")
        if fits:
            check_places(model, found)
        else:
            said(model, found)


def test_a_rotation_in_the_files_is_the_one_that_the_config_gives(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    own = 1 / 10000 ** (torch.arange(0, 16, 2) / 16)
    save_file(held | {name: own.bfloat16()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    check_places(empty_model(tmp_path), entries(tmp_path))
    configure(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    assert "its rotary frequencies differ" in said(empty_model(tmp_path), entries(tmp_path))


@pytest.mark.parametrize("calibration", ["none", "own"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), ["up_proj.weight is missing"]),
        (lambda t: t.pop("lm_head.weight"), ["lm_head.weight is missing", "saved without it", "tie_word_embeddings"]),
        (
            lambda t: [
                t.update(
                    {
                        n.replace(".weight", ".base_layer.weight"): t.pop(n),
                        n.replace("weight", "lora_A.x.weight"): w.clone(),
                    }
                )
                for n, w in list(t.items())
                if "v_proj" in n
            ],
            ["v_proj.base_layer.weight", "have no place", "training state of an adapter", "merge_and_unload"],
        ),
        (
            lambda t: t.update({f"model.layers.{i}.self_attn.q_proj.bias": torch.ones(96) for i in range(2)}),
            ["layers.0.self_attn.q_proj.bias and model.layers.1.self_attn.q_proj.bias have no place", "attention_bias"],
        ),
        (
            lambda t: t.update({f"model.layers.0.mlp.up_proj.{k}": torch.ones(1) for k in ("qweight", "qzeros")}),
            ["codes of a quantised model", "quant_config.json"],
        ),
        (
            lambda t: [t.update({f"module.{n}": t.pop(n)}) for n in list(t)],
            ["21 tensors are missing", "21 have no place", "save the model itself"],
        ),
    ],
)
def test_a_base_that_is_not_what_its_files_say_is_refused_before_it_is_quantised(
    damage, words, calibration, tmp_path, monkeypatch
):
    """By the stream and by transformers alike."""
    write_base(tmp_path, tied=False)
    held = load_file(tmp_path / "model.safetensors")
    damage(held)
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(load, "quantise_model", None)  # calling it would fail
    monkeypatch.setattr(windows, "own_windows", None)
    with pytest.raises(BaseModelError) as caught:
        load_base(Asked(str(tmp_path), block_size=32, calibration=calibration))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_past_a_dozen_the_kinds_are_counted(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    found = entries(tmp_path)
    line = said(empty_model(tmp_path), {n: e for n, e in found.items() if "layers" not in n})
    assert len(found) - 3 > LISTED
    assert "18 tensors are missing (2 input_layernorm.weight" in line
    assert len(line) < 900


def test_what_transformers_reports_is_not_lost():
    with pytest.raises(BaseModelError, match=r"a\.weight is missing; b\.weight has another shape; c went wrong"):
        check_report(
            {
                "missing_keys": {"a.weight"},
                "mismatched_keys": {("b.weight", (1,), (2,))},
                "error_msgs": ["c went wrong"],
            },
            {},
        )


def write_tied(folder: Path, source: str, head: torch.Tensor | None, drop: bool) -> None:
    """A folder whose config.json ties head and embedding, with a head of its own (`head`), or under the head's name
    alone (`drop`).
    """
    if source == "gptq":
        write_packed(folder)
    else:
        write_base(folder)
    held = load_file(folder / "model.safetensors")
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone() if head is None else head
    if drop:
        del held["model.embed_tokens.weight"]
    write_tensors(folder, held)


@pytest.mark.parametrize("source", ["float", "gptq"])
@pytest.mark.parametrize("case", ["own head", "the same head", "head's name only"])
def test_the_files_win_over_tie_word_embeddings(case, source, tmp_path):
    """A head of its own is one, whatever config.json says; one tensor under either name is both."""
    write_base(tmp_path / "plain")
    head = torch.randn(load_file(tmp_path / "plain/model.safetensors")["model.embed_tokens.weight"].shape) * 0.12
    own = head.half() if source == "gptq" else head
    write_tied(tmp_path / "base", source, own if case == "own head" else None, case == "head's name only")
    base = load_base(Asked(str(tmp_path / "base"), block_size=32))
    embedding, top = base.model.get_input_embeddings().store, base.model.get_output_embeddings().store
    assert (embedding is top) == (case != "own head")
    assert base.model.config.tie_word_embeddings is (case != "own head")
    if case == "own head":
        error = (top.dense(torch.float32) - head).norm() / head.norm()
        assert error < 0.1  # of rounding; of another table it would be 1.4
    write_base(tmp_path / "as-written") if source == "float" else write_packed(tmp_path / "as-written")
    usual = load_base(Asked(str(tmp_path / "as-written"), block_size=32))
    if case != "own head":
        assert usual.fingerprint == base.fingerprint
    assert json.loads((tmp_path / "base/config.json").read_text())["tie_word_embeddings"]


def test_a_tensor_in_two_files_and_one_that_the_index_does_not_name_are_found(tmp_path):
    tiny("llama").save_pretrained(tmp_path, max_shard_size="100KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    held = load_file(files[0])
    name = next(iter(held))
    save_file(load_file(files[1]) | {"stray.weight": torch.ones(3)}, files[1], metadata={"format": "pt"})
    assert "stray.weight has no place" in said(empty_model(tmp_path), entries(tmp_path))
    save_file(load_file(files[1]) | {name: held[name]}, files[1], metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=f"1 tensors of .* are in two of its files, the first is '{name}'"):
        entries(tmp_path)
