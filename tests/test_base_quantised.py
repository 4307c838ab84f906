"""Bases that come with 4-bit codes: each row of the table in docs/bases.md, from the file to the graph; and every file
that is refused.
"""

from __future__ import annotations

import hashlib
import json
import resource
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_build import qia3
from tiny import ALL, ids
from tiny_build import write_base, write_build
from tiny_quantised import configure, write_gguf, write_packed, write_tensors
from transformers import AutoModelForCausalLM

from qia3.base import gguf_codes, kept, load, sources
from qia3.base.load import Asked, load_base
from qia3.base.modules import GridLinear
from qia3.build import load as load_plan
from qia3.build import plan_jobs
from qia3.bundle.layout import DATA, GRAPH
from qia3.config import read_build
from qia3.errors import BaseModelError
from qia3.graph.export import export_decoder
from qia3.graph.external import write_graph
from qia3.graph.forced import OrtDecoder, torch_logits
from qia3.grids.int4 import dequantise
from qia3.ia3.mix import named
from qia3.ia3.vectors import detach, fold, set_vectors
from qia3.train.task import train_task

SOURCES = {
    "gptq": {"codes": "gptq"},
    "gptq symmetric": {"codes": "gptq", "symmetric": True},
    "gptq_v2": {"codes": "gptq_v2", "shards": 3, "tied": False},
    "awq": {"codes": "awq", "group": 32},
    "compressed-tensors": {"codes": "compressed-tensors"},
    "compressed-tensors symmetric": {"codes": "compressed-tensors", "symmetric": True, "shards": 2},
    "mlx": {"codes": "mlx"},
    "q4_0": {},
}


def write(source: str, folder, family: str) -> tuple[str, dict]:
    """The reference of a tiny base, and the codes that were written."""
    shutil.rmtree(folder, ignore_errors=True)
    if source == "q4_0":
        path, wrote = write_gguf(folder, family)
        return str(path), wrote
    return str(folder), write_packed(folder, family=family, **SOURCES[source])


def exported(base, folder) -> dict[str, bytes]:
    """The graph at accuracy level 0; the bytes of every tensor of the weight file, packed ones taken apart."""
    folder.mkdir()
    regions = write_graph(export_decoder(base.model, 0, 48, "last"), folder, ["model.embed_tokens", "lm_head"])
    data, found = (folder / DATA).read_bytes(), {}
    for region in regions:
        place = region.offset
        for name, size in region.packed or [(region.name, region.bytes)]:
            found[name] = data[place : place + size]
            place += size
    return found


def same_codes(found: dict[str, bytes], wrote: dict) -> None:
    """Codes and zero points of each layer are those that were written, by SHA-256."""
    for name, weight in wrote.items():
        assert (
            hashlib.sha256(found[f"{name}.codes"]).hexdigest() == hashlib.sha256(weight.codes.tobytes()).hexdigest()
        ), name
        assert found.get(f"{name}.zero_points") == (
            None if weight.zero_points is None else weight.zero_points.tobytes()
        ), name


def test_rows_in_an_order_that_we_do_not_know_are_not_taken_for_ours(tmp_path, monkeypatch):
    """Codes are kept where they are worth the very weight that transformers made, and nowhere else."""
    monkeypatch.setattr(gguf_codes, "_orders", lambda count, config: iter([np.arange(count)]))
    path, _ = write_gguf(tmp_path)
    base = load_base(Asked(str(path), block_size=16))
    blocks = {
        name: getattr(base.model.model.layers[0].self_attn, name).store.block_size
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    }
    assert blocks == {"q_proj": 16, "k_proj": 16, "v_proj": 32, "o_proj": 32}


def test_other_gguf_formats_get_our_codes(tmp_path):
    """Q4_1 has real offsets where our grid has integer zero points: encoded a second time, near what the file holds,
    and trained and shipped so.
    """
    path, wrote = write_gguf(tmp_path / "base", layers="Q4_1")
    base = load_base(Asked(str(path), block_size=16))
    assert (base.codes, base.block_size, base.symmetric) == ("own", 16, False)
    for name, weight in wrote.items():
        error = base.model.get_submodule(name).weight.numpy() - dequantise(weight)
        assert 0 < np.linalg.norm(error) < 0.1 * np.linalg.norm(dequantise(weight))
    same_codes(exported(base, tmp_path / "graph"), {name: base.model.get_submodule(name).store.grid for name in wrote})
    prompt = ids(1, 11)[0].tolist()
    logits = OrtDecoder(tmp_path / "graph" / GRAPH).logits(prompt, [7], {})
    np.testing.assert_allclose(logits, torch_logits(base.model, prompt, [7]), atol=1e-3)


@pytest.mark.parametrize("family", ["llama", *(["qwen2"] if ALL else [])])
@pytest.mark.parametrize("source", SOURCES)
def test_a_given_base_trains_and_ships_its_own_codes(source, family, tmp_path):
    """Two steps, then the graph with vectors unmerged and merged: torch and ONNX Runtime agree to 1e-3, codes are
    the checkpoint's.
    """
    file = write_build(tmp_path, steps=2)
    reference, wrote = write(source, tmp_path / "base", family)
    file.write_text(file.read_text().replace('model = "base"', f'model = "{reference}"'))
    plan = read_build(file)
    adapted = load_plan(plan)
    base, scaled = adapted.base, adapted.scaled
    trained = train_task(base, scaled, plan_jobs(plan)[0], tmp_path / "work")
    assert any((v != 1).any() for v in trained.vectors.values())
    set_vectors(scaled, trained.vectors)
    prompt, forced = ids(1, 11)[0].tolist(), [7, 9]
    expected = torch_logits(base.model, prompt, forced)
    same_codes(exported(base, tmp_path / "side"), wrote)
    fed = {n: v.reshape(1, 1, -1) for n, v in trained.vectors.items()}
    np.testing.assert_allclose(OrtDecoder(tmp_path / "side" / GRAPH).logits(prompt, forced, fed), expected, atol=1e-3)
    fold(scaled)
    detach(base.model, scaled)
    same_codes(exported(base, tmp_path / "merged"), wrote)
    np.testing.assert_allclose(OrtDecoder(tmp_path / "merged" / GRAPH).logits(prompt, forced, {}), expected, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_given_base_is_the_model_with_its_codes_dequantised(source, family, tmp_path):
    """Against transformers' float model with those weights; the embedding and the head, which we quantise, are put in
    as they came out.
    """
    reference, wrote = write(source, tmp_path / "base", family)
    base = load_base(Asked(reference, block_size=16))
    oracle = AutoModelForCausalLM.from_pretrained(
        write_base(tmp_path / "float", family, tied=SOURCES[source].get("tied", True))
    )
    with torch.no_grad():
        for name, weight in wrote.items():
            oracle.get_submodule(name).weight.copy_(torch.from_numpy(dequantise(weight)))
            store = base.model.get_submodule(name).store
            np.testing.assert_array_equal(store.grid.scales, weight.scales)
        for name, parameter in oracle.named_parameters():
            if parameter.dim() == 1:  # float16 in the checkpoint
                parameter.copy_(
                    base.model.get_parameter(name) if "bias" not in name else base.model.get_submodule(name[:-5]).bias
                )
        oracle.get_input_embeddings().weight.copy_(base.model.get_input_embeddings().weight)
        oracle.get_output_embeddings().weight.copy_(base.model.get_output_embeddings().weight)
        torch.testing.assert_close(
            base.model(input_ids=ids()).logits, oracle(input_ids=ids()).logits, rtol=1e-4, atol=1e-4
        )
    assert base.parameters == sum(p.numel() for p in oracle.parameters())
    assert (base.codes, base.block_size) == (source.split()[0], 32)
    assert base.symmetric is ("symmetric" in source or source == "q4_0")
    assert base.calibration == "none"
    assert source == "q4_0" or not hasattr(base.model.config, "quantization_config")


@pytest.mark.parametrize("source", SOURCES)
def test_layers_whose_codes_are_kept_are_not_called_eight_bit_layers(source, tmp_path):
    """The head, which these files have in float, can be; the rest has lost what 8 bits could hold."""
    reference, _ = write(source, tmp_path / "base", "llama")
    first = "model.layers.0.self_attn.v_proj"
    with pytest.raises(
        BaseModelError,
        match=rf"eight_bit or blocks names 2 layers whose {source.split()[0]} codes this base already has.*{first}",
    ):
        load_base(Asked(reference, block_size=16, mix=named(("value", "head"))))
    base = load_base(Asked(reference, block_size=16, mix=named(("head",))))
    assert base.eight_bit == ("head",)
    assert {n for n, m in base.model.named_modules() if isinstance(m, GridLinear) and m.store.bits == 8} == {"lm_head"}


def test_a_whole_bundle_says_what_it_is_made_of(tmp_path, capsys):
    """Group 32 in the file, block 64 asked for: manifest, report and the arithmetic of the bytes follow the file (law
    5).
    """
    file = write_build(tmp_path, steps=1)
    write("gptq symmetric", tmp_path / "base", "llama")
    file.write_text(file.read_text().replace("block_size = 16", "block_size = 64") + "min_top1 = 0\nmax_kl = 9\n")
    assert qia3(capsys, "build", file, "--output", tmp_path / "out")[0] == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    grid = manifest["base"]["grid"]
    assert (grid["codes"], grid["block_size"], grid["symmetric"], grid["calibration"]) == ("gptq", 32, True, "none")
    assert grid["embedding"] == {
        "bits": 4,
        "format": "int4",
        "block_size": 32,
        "symmetric": False,
    }  # 64 does not divide a width of 96
    assert {(e["block_size"], e["symmetric"]) for e in manifest["linears"] if e["role"] != "head"} == {(32, True)}
    account = json.loads(qia3(capsys, "report", tmp_path / "out", "--json")[1])["account"]
    assert account["bits_per_weight"] == account["grid_bits_per_weight"]
    assert account["total"] == sum(f.stat().st_size for f in (tmp_path / "out").rglob("*") if f.is_file())
    assert "symmetric, block 32" in (tmp_path / "out/report.md").read_text(encoding="utf-8")


def test_a_given_base_is_kept_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(load, "LEAST_KEPT", 0)
    reference, _ = write("awq", tmp_path / "base", "llama")
    made = load_base(Asked(reference, block_size=64))
    monkeypatch.setattr(load, "open_quantised", None)  # calling it again would fail
    read = load_base(Asked(reference, block_size=64))
    assert {k: getattr(read, k) for k in ("fingerprint", *kept.TAKEN)} == {
        k: getattr(made, k) for k in ("fingerprint", *kept.TAKEN)
    }
    assert read.codes == "awq"


def test_both_conventions_give_one_base(tmp_path):
    """The same codes written as GPTQ v1, GPTQ v2 and AWQ have one fingerprint."""
    found = {load_base(Asked(write(s, tmp_path / s, "qwen2")[0], block_size=32)).fingerprint for s in ("gptq", "awq")}
    write_packed(tmp_path / "v2", "gptq_v2", "qwen2")
    assert found == {load_base(Asked(str(tmp_path / "v2"), block_size=32)).fingerprint}


@pytest.mark.parametrize("group", [64, -1])
def test_groups_that_are_no_block_or_do_not_fill_a_row(group, tmp_path):
    """96 and 160 inputs: groups of 64 leave a short one at the end, and a whole row is 3 or 5 blocks of 32."""
    from test_grids_gptq import random_layer, slow

    from qia3.grids.gptq import unpack_gptq

    for inputs in (96, 160):
        layer = random_layer(inputs, 24, group, 1)
        expected = slow(*layer, inputs if group == -1 else group, 1)
        np.testing.assert_array_equal(dequantise(unpack_gptq(*layer, group, "gptq")), expected)
    write_packed(tmp_path, "gptq", group=64)
    base = load_base(Asked(str(tmp_path), block_size=16))
    assert base.block_size == 64
    assert base.model(input_ids=ids()).logits.isfinite().all()


def test_layers_that_are_left_in_float_are_ours(tmp_path):
    """A file whose first layer was not converted (modules_to_not_convert)."""
    wrote = write_packed(tmp_path, "awq")
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [n for n in wrote if ".layers.0." in n]:
        for kind in ("qweight", "qzeros", "scales"):
            del tensors[f"{name}.{kind}"]
        tensors[f"{name}.weight"] = torch.from_numpy(dequantise(wrote[name])).half()
    write_tensors(tmp_path, tensors)
    base = load_base(Asked(str(tmp_path), block_size=16))
    assert base.model.model.layers[0].mlp.up_proj.store.block_size == 16
    assert base.model.model.layers[1].mlp.up_proj.store.block_size == 32
    assert base.block_size == 32


def test_the_older_file_of_autogptq_is_read(tmp_path):
    write_packed(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    settings = config.pop("quantization_config")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "quantize_config.json").write_text(
        json.dumps({k: v for k, v in settings.items() if k != "quant_method"})
    )
    assert load_base(Asked(str(tmp_path), block_size=16)).codes == "gptq"


def test_the_older_file_of_autoawq_is_read(tmp_path):
    """Its own names for bits and groups, and its version in capitals."""
    write_packed(tmp_path / "new", "awq")
    write_packed(tmp_path / "old", "awq")
    config = json.loads((tmp_path / "old/config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "old/config.json").write_text(json.dumps(config))
    older = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    (tmp_path / "old/quant_config.json").write_text(json.dumps(older))
    base = load_base(Asked(str(tmp_path / "old"), block_size=16))
    assert (base.codes, base.fingerprint) == ("awq", load_base(Asked(str(tmp_path / "new"), block_size=16)).fingerprint)
    (tmp_path / "old/quant_config.json").write_text(json.dumps(older | {"w_bit": 3}))
    assert "AWQ weights have 3 bits" in refused(tmp_path / "old")
    (tmp_path / "old/quant_config.json").write_text("[4]")
    assert "quant_config.json holds a list" in refused(tmp_path / "old")
    (tmp_path / "old/quant_config.json").unlink()
    assert "no quantization_config: fetch config.json (and quantize_config.json or quant_config.json)" in refused(
        tmp_path / "old"
    )


@pytest.mark.parametrize("told", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("stored", ["gptq", "gptq_v2"])
def test_zero_points_of_a_symmetric_file_are_8_whatever_its_format_is_called(stored, told, tmp_path):
    """All of them: the stored nibble is 7 or 8, and that says by which convention."""
    wrote = write_packed(tmp_path, stored, symmetric=True)
    known = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    configure(tmp_path, quantization_config=known | {"sym": True, "checkpoint_format": told})
    base = load_base(Asked(str(tmp_path), block_size=16))
    for name, weight in wrote.items():
        np.testing.assert_array_equal(base.model.get_submodule(name).weight.numpy(), dequantise(weight))
    configure(tmp_path, quantization_config=known | {"sym": False, "checkpoint_format": told})
    if stored == told:
        assert load_base(Asked(str(tmp_path), block_size=16)).fingerprint == base.fingerprint
    else:
        assert f"which is 8 in checkpoint_format {stored}; but config.json says {told}" in refused(tmp_path)


def test_a_file_that_calls_itself_symmetric_and_is_not_is_refused(tmp_path):
    write_packed(tmp_path, "gptq", symmetric=False)
    known = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    configure(tmp_path, quantization_config=known | {"sym": True})
    assert "says sym true, but its zero points are not all 8" in refused(tmp_path)
    write_packed(tmp_path, "awq", symmetric=False)
    known = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    configure(tmp_path, quantization_config=known | {"zero_point": False})
    assert "says zero_point false, but its zero points are not all 8" in refused(tmp_path)


def test_a_hubs_files_are_fetched_as_safetensors_and_json(tmp_path, monkeypatch):
    import huggingface_hub

    write_packed(tmp_path)
    asked = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, allow_patterns: asked.update({name: allow_patterns}) or tmp_path,
    )
    assert sources.resolve("someone/model").name == str(tmp_path)
    assert load_base(Asked("someone/model", block_size=16)).reference == "someone/model"
    assert not any(p.endswith((".bin", ".pt", "*")) for p in asked["someone/model"])


AWQ, GPTQ = {"quant_method": "awq"}, {"quant_method": "gptq"}
GIVEN = {"bits": 4, "group_size": 32}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (GPTQ | GIVEN | {"bits": 8}, "GPTQ weights have 8 bits"),
        (GPTQ | GIVEN | {"bits": 3}, "GPTQ weights have 3 bits"),
        (GPTQ | GIVEN | {"checkpoint_format": "marlin"}, "packed for 'marlin'"),
        (GPTQ | GIVEN | {"is_marlin_format": True}, "packed for 'marlin'"),
        (AWQ | GIVEN | {"version": "gemv"}, "packed for 'gemv'"),
        (AWQ | GIVEN | {"version": "marlin"}, "packed for 'marlin'"),
        (AWQ | GIVEN | {"bits": 8}, "AWQ weights have 8 bits"),
        (GPTQ | GIVEN | {"group_size": 0}, "group_size is 0"),
        (GPTQ | GIVEN | {"group_size": "many"}, "group_size is 'many'"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
            "by bitsandbytes to fp4",
        ),
        ({"quant_method": "somebody's"}, 'quantised by "somebody\'s"'),
    ],
)
def test_other_layouts_are_refused_in_one_line_that_names_what_is_read(settings, complaint, tmp_path):
    write_packed(tmp_path)
    configure(tmp_path, quantization_config=settings)
    assert complaint in (line := refused(tmp_path))
    assert (
        "supported: 4-bit GPTQ (checkpoint_format gptq or gptq_v2), 4-bit AWQ (version gemm), bitsandbytes NF4, GGUF"
        in line
    )


def refused(reference) -> str:
    with pytest.raises(BaseModelError) as caught:
        load_base(Asked(str(reference), block_size=16))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(folder, **tensors: torch.Tensor | None) -> str:
    """What is said when tensors of a GPTQ file are replaced, or taken out where None."""
    write_packed(folder)
    found = load_file(folder / "model.safetensors") | {n.replace("__", "."): t for n, t in tensors.items()}
    write_tensors(folder, {n: t for n, t in found.items() if t is not None})
    return refused(folder)


LAYER = "model__layers__1__mlp__up_proj__"


def test_inputs_sorted_by_activation_are_refused_and_plain_ones_are_not(tmp_path):
    shuffled = torch.arange(96, dtype=torch.int32).flip(0) // 32
    line = changed(tmp_path, **{f"{LAYER}g_idx": shuffled})
    assert "model.layers.1.mlp.up_proj" in line
    assert "sorted by activation (desc_act)" in line
    write_packed(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    configure(tmp_path, quantization_config=settings | {"desc_act": True})  # said, but the groups are in order
    assert load_base(Asked(str(tmp_path), block_size=16)).codes == "gptq"
    found = {n: t for n, t in load_file(tmp_path / "model.safetensors").items() if not n.endswith("g_idx")}
    write_tensors(tmp_path, found)
    assert "sorted by activation" in refused(tmp_path)
    configure(tmp_path, quantization_config=settings)
    assert load_base(Asked(str(tmp_path), block_size=16)).codes == "gptq"


def test_tensors_that_are_missing_of_other_shapes_or_strange_are_named(tmp_path):
    scales = torch.ones(3, 160, dtype=torch.float16)
    assert "model.layers.1.mlp.up_proj.qzeros is missing" in changed(tmp_path, **{f"{LAYER}qzeros": None})
    assert "scales is float16 [2, 160] and should be float16 [3, 160]" in changed(
        tmp_path, **{f"{LAYER}scales": scales[:2]}
    )
    assert "qweight is float16 [12, 160] and should be int32" in changed(
        tmp_path, **{f"{LAYER}qweight": torch.ones(12, 160).half()}
    )
    assert "model.norm.weight is missing" in changed(tmp_path, model__norm__weight=None)
    assert "stray.weight has no place" in changed(tmp_path, stray__weight=scales)
    assert "stray.qweight is not a linear layer" in changed(tmp_path, stray__qweight=scales)
    assert "a scale is NaN or infinity" in changed(tmp_path, **{f"{LAYER}scales": scales * float("inf")})


def test_more_layers_than_there_are_tensors_take_no_memory(tmp_path):
    write_packed(tmp_path)
    configure(tmp_path, num_hidden_layers=10**9)
    assert "1000000000 layers" in refused(tmp_path)


def test_pickles_are_not_opened(tmp_path):
    write_packed(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "such files are pickles, which are never opened" in refused(tmp_path)


def test_an_index_that_is_broken_or_points_elsewhere_is_refused(tmp_path):
    write_packed(tmp_path, shards=2)
    index = tmp_path / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    for weight_map in ({"a": "../b.safetensors"}, {"a": "model.bin"}, {}, [1], None):
        index.write_text(json.dumps(whole | {"weight_map": weight_map}))
        refused(tmp_path)
    index.write_text(json.dumps(whole)[:50])
    assert "not an index of safetensors files" in refused(tmp_path)
    index.write_text(json.dumps(whole))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "which is missing" in refused(tmp_path)


def outcome(reference) -> str:
    """Loads, or is refused in one line; anything else fails the test. No more than 400 MB may be taken on the way."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said, base = "", None
    try:
        base = load_base(Asked(str(reference), block_size=16))
    except BaseModelError as error:
        said = str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
    assert "\n" not in said
    if base is None:
        return "refused"
    assert base.model.config.hidden_size == 96
    return "loaded"


@pytest.mark.parametrize("codes", ["gptq", "awq"])
def test_cut_and_changed_safetensors_are_refused_or_whole(codes, tmp_path):
    """Codes have no checksum: a changed one is another code. All else is found out."""
    write_packed(tmp_path, codes)
    file, rng = tmp_path / "model.safetensors", np.random.default_rng(0)
    whole = file.read_bytes()
    for share in (0, 1e-5, 0.01, 0.1, 0.5, 0.999):
        file.write_bytes(whole[: int(len(whole) * share)])
        assert outcome(tmp_path) == "refused"
    header = 8 + int.from_bytes(whole[:8], "little")
    seen = set()
    for _ in range(14):
        data = bytearray(whole)
        for place in rng.integers(0, header if rng.random() < 0.9 else len(whole), rng.integers(1, 4)):
            data[place] = rng.integers(0, 256)
        file.write_bytes(data)
        seen.add(outcome(tmp_path))
    assert "refused" in seen


def test_every_number_of_the_config_may_be_wrong(tmp_path):
    write_packed(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in config.items():
        for wrong in (-1, 10**9) if isinstance(value, int) and not isinstance(value, bool) else ():
            (tmp_path / "config.json").write_text(json.dumps(config | {key: wrong}))
            try:
                outcome(tmp_path)
            except AssertionError as error:
                raise AssertionError(f"{key} = {wrong}") from error


def test_cut_and_changed_gguf_files_are_refused_or_whole(tmp_path):
    path, _ = write_gguf(tmp_path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for share in (0, 0.01, 0.1, 0.5, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert outcome(path) == "refused"
    header = (
        whole.index(b"tokenizer.ggml.tokens"),
        whole.index(b"tokenizer.ggml.merges"),
        whole.index(b"token_embd.weight"),
    )
    seen = set()
    for _ in range(14):
        data = bytearray(whole)
        start, end = (0, header[0]) if rng.random() < 0.6 else (header[2], header[2] + 1200)
        for place in rng.integers(start, end, rng.integers(1, 3)):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        seen.add(outcome(path))
    assert "refused" in seen


def test_counts_that_the_file_has_no_room_for_are_refused_at_once(tmp_path):
    """Each of these had the gguf library or transformers take all the memory there is."""
    path, _ = write_gguf(tmp_path)
    whole = path.read_bytes()
    names = {b"llama.block_count": 4, b"tokenizer.ggml.token_type": 8, b"llama.feed_forward_length": 4}
    for name, skip in names.items():
        place = whole.index(name) + len(name) + skip
        data = bytearray(whole)
        data[place : place + (8 if skip == 8 else 4)] = (2**31 - 1).to_bytes(8 if skip == 8 else 4, "little")
        path.write_bytes(data)
        assert "is not a complete GGUF file" in refused(path)
