"""compressed-tensors, MLX, mixes by layer and AutoRound: whole checkpoints that the libraries wrote, read to their own
logits; each setting that changes what weights are is applied or refused in one line.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_build import qia3
from tiny import ids
from tiny_build import write_base, write_build
from tiny_quantised import configure, on_grid, packed, write_packed, write_tensors
from transformers import AutoModelForCausalLM

from qia3.base.kept import keep, open_kept
from qia3.base.layouts import OTHERS
from qia3.base.load import Asked, load_base
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.quantise import Grid, quantise_model
from qia3.base.quantised import open_quantised
from qia3.base.sources import Source
from qia3.bundle.layout import GRAPH
from qia3.errors import BaseModelError
from qia3.graph.export import export_decoder
from qia3.graph.external import write_graph
from qia3.graph.forced import OrtDecoder, torch_logits
from qia3.grids.int4 import dequantise

GOLDEN = Path(__file__).parent / "golden"
UP, DOWN, VALUE = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.v_proj"


def foreign(name: str):
    """A checkpoint that the library wrote, opened; and the logits of transformers on the library's own floats."""
    model, given = open_quantised(Source(name, str(GOLDEN / name)))
    return model.float(), given, load_file(GOLDEN / name / "logits.safetensors")["logits"]


def refused(folder: Path) -> str:
    with pytest.raises(BaseModelError) as caught:
        load_base(Asked(str(folder), block_size=16))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def retold(folder: Path, **changes: object) -> None:
    """Changes keys of quantization_config."""
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    configure(folder, quantization_config=settings | changes)


# compressed-tensors


def test_what_compressed_tensors_saved_has_its_logits():
    """Asymmetric groups by a pattern, a group a row by class, one projection ignored, a head in float."""
    model, given, logits = foreign("compressed")
    torch.testing.assert_close(model(torch.arange(3, 24)[None]).logits, logits, atol=1e-5, rtol=0)
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    assert (given.codes, given.layers, given.rounding) == ("compressed-tensors", 13, None)
    assert attention.q_proj.store.zero_points is not None
    assert mlp.up_proj.store.zero_points is None
    assert (attention.q_proj.store.block_size, mlp.up_proj.store.block_size) == (32, 64)
    assert isinstance(model.model.layers[1].self_attn.v_proj, torch.nn.Linear)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kv_cache_scheme": {"num_bits": 8}}, "it has a kv_cache_scheme (compressed-tensors)"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "it has a sparsity_config"),
        ({"transform_config": {"config_groups": {}}}, "it has a transform_config"),
        ({"format": "int-quantized"}, "stored as 'int-quantized'"),
        ({"format": "nvfp4-pack-quantized"}, "stored as 'nvfp4-pack-quantized'"),
        ({"config_groups": {"W4A16": ["Linear"]}}, "config_groups of quantization_config must be a table"),
        ({"config_groups": {}}, "config_groups of quantization_config"),
        ({"ignore": "lm_head"}, "must be a list of names, not 'lm_head'"),
        ({"ignore": ["re:("]}, "is not a regular expression"),
        ({"ignore": []}, "lm_head should be quantised (config_groups) but has no codes"),
        ({"ignore": ["lm_head", UP]}, f"{UP} has codes, but config_groups leaves it in float"),
        ({"ignore": ["lm_head", "Linear"]}, "11 more like these"),
    ],
)
def test_a_compressed_tensors_setting_is_understood_or_refused(changes, complaint, tmp_path):
    write_packed(tmp_path, "compressed-tensors")
    retold(tmp_path, **changes)
    assert complaint in refused(tmp_path)


@pytest.mark.parametrize(
    ("group", "weights", "complaint"),
    [
        ({}, {"num_bits": 8}, "weights of 8 bits, 'int'"),
        ({}, {"type": "float"}, "weights of 4 bits, 'float'"),
        ({}, {"strategy": "tensor"}, "scales by 'tensor'"),
        ({}, {"strategy": "block", "block_structure": [16, 16]}, "scales by 'block'"),
        ({}, {"dynamic": True}, "dynamic"),
        ({}, {"group_size": 0}, "a group_size of 0"),
        ({}, {"group_size": 24}, "a group of 24 inputs cannot be split into blocks"),
        ({}, {"group_size": 16}, "weight_scale is float16 [96, 3] and should be float16 [96, 6]"),
        ({}, {"symmetric": True}, "14 have no place in the model (2 mlp.down_proj.weight_zero_point"),
        ({}, {"smoothing": 1}, "sets smoothing for its weights"),
        ({"input_activations": {"num_bits": 8}}, {}, "also quantises inputs or outputs of its layers"),
        ({"output_activations": {"num_bits": 8}}, {}, "(output_activations)"),
        ({"format": "marlin-24"}, {}, "stored as 'marlin-24'"),
        ({"targets": None}, {}, "not a list of names"),
        ({"targets": ["re:.*mlp"]}, {}, "self_attn.k_proj has codes, but config_groups leaves it in float"),
    ],
)
def test_a_group_of_compressed_tensors_is_understood_or_refused(group, weights, complaint, tmp_path):
    write_packed(tmp_path, "compressed-tensors")
    known = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    retold(tmp_path, config_groups={"group_0": known | {"weights": known["weights"] | weights} | group})
    assert complaint in refused(tmp_path)


@pytest.mark.parametrize("order", ["plain", "sorted"])
def test_the_order_of_a_compressed_tensors_layers_inputs_is_seen(order, tmp_path):
    """`actorder` "weight" changes nothing that is stored; "group" brought g_idx, which older files have."""
    write_packed(tmp_path, "compressed-tensors")
    g_idx = torch.arange(96, dtype=torch.int32) // 32
    tensors = load_file(tmp_path / "model.safetensors")
    write_tensors(tmp_path, tensors | {f"{UP}.weight_g_idx": g_idx if order == "plain" else g_idx.flip(0)})
    if order == "plain":
        assert load_base(Asked(str(tmp_path), block_size=16)).codes == "compressed-tensors"
    else:
        assert "sorted by activation (actorder" in refused(tmp_path)


def test_the_words_of_a_compressed_tensors_layer_are_held_against_its_shape(tmp_path):
    write_packed(tmp_path, "compressed-tensors")
    tensors = load_file(tmp_path / "model.safetensors")
    write_tensors(tmp_path, tensors | {f"{UP}.weight_shape": torch.tensor([160, 104])})
    assert f"{UP}: its weight_shape is [160, 104], but weight_packed has shape [160, 12]" in refused(tmp_path)


# MLX


def test_what_mlx_saved_has_its_logits():
    """A tied embedding on the grid, one layer at 8 bits, one in float. Zero points are whole up to the rounding of
    bfloat16, so the weights move by 0.3 %; with MLX's own in their places, the logits are those of its floats.
    """
    model, given, logits = foreign("mlx")
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, GridEmbedding)
    assert embedding.store is head.store
    assert {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)} == {DOWN, VALUE}
    assert (given.codes, given.block_size, given.symmetric, given.layers) == ("mlx", 32, False, 13)
    assert (given.rounding.layers, given.rounding.anew) == (13, 0)
    moved, of = 0.0, 0.0
    tensors = load_file(GOLDEN / "mlx" / "model.safetensors")
    for name in [n.removesuffix(".scales") for n in tensors if n.endswith(".scales") and not n.startswith(DOWN)]:
        dense = mlx_floats(tensors, name)
        moved += float((model.get_submodule(name).weight - dense).square().sum())
        of += float(dense.square().sum())
    assert given.rounding.relative_rms == pytest.approx((moved / of) ** 0.5, rel=1e-4)
    assert 0.001 < given.rounding.relative_rms < 0.006
    off = (model(torch.arange(3, 24)[None]).logits - logits).abs().max()
    assert 1e-3 < off < 0.05
    for name in [n for n, m in model.named_modules() if isinstance(m, GridLinear)]:
        dense = mlx_floats(tensors, "model.embed_tokens" if name == "lm_head" else name)
        model.set_submodule(name, plain := torch.nn.Linear(*dense.shape[::-1], bias=False))
        plain.weight.data = dense
    model.model.embed_tokens = torch.nn.Embedding.from_pretrained(mlx_floats(tensors, "model.embed_tokens"))
    torch.testing.assert_close(model(torch.arange(3, 24)[None]).logits, logits, atol=1e-5, rtol=0)


def mlx_floats(tensors, name: str) -> torch.Tensor:
    """A layer of 4 bits in groups of 32, by plain lines."""
    words, scales, biases = (tensors[f"{name}.{kind}"] for kind in ("weight", "scales", "biases"))
    codes = (words.long()[..., None] >> 4 * torch.arange(8)) & 15
    spread = (part.float().repeat_interleave(32, 1) for part in (scales, biases))
    scale, bias = spread
    return codes.flatten(1) * scale + bias


def test_an_mlx_base_ships_its_embedding_and_head_as_they_are(tmp_path):
    """Through the graph: one set of bytes for both, and torch's logits."""
    write_base(tmp_path / "base")
    for file in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "mlx" / file, tmp_path / "base" / file)
    configure(tmp_path / "base", vocab_size=101)
    model, _ = open_quantised(Source("mlx", str(tmp_path / "base")))
    quantise_model(model, Grid(16, False))
    (tmp_path / "graph").mkdir()
    names = ["model.embed_tokens", "lm_head"]
    regions = write_graph(export_decoder(model, 0, 48, "last"), tmp_path / "graph", names)
    assert sum(r.name.startswith("lm_head") for r in regions) + sum("embed" in r.name for r in regions) <= 3
    prompt = ids(1, 11)[0].tolist()
    logits = OrtDecoder(tmp_path / "graph" / GRAPH).logits(prompt, [7], {})
    np.testing.assert_allclose(logits, torch_logits(model, prompt, [7]), atol=1e-3)


@pytest.mark.parametrize("family", ["gemma3_text", "qwen2"])
def test_an_embedding_that_is_scaled_keeps_its_codes_and_its_scale(family, tmp_path):
    """Gemma multiplies its embeddings; Qwen2 has biases. Logits of transformers with the same floats."""
    write_base(tmp_path, family)
    float_model = AutoModelForCausalLM.from_pretrained(tmp_path).float().eval()
    tensors = {n: t for n, t in float_model.state_dict().items() if n != "lm_head.weight"}
    for name in [n for n, m in float_model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)]:
        if name != "lm_head":
            grid = on_grid(float_model.get_submodule(name), 32, False)
            float_model.get_submodule(name).weight.data.copy_(torch.from_numpy(dequantise(grid)))
            tensors |= {f"{name}.{kind}": tensor for kind, tensor in packed(grid, "mlx").items()}
    write_tensors(tmp_path, tensors)
    configure(tmp_path, quantization={"group_size": 32, "bits": 4}, quantization_config={"group_size": 32, "bits": 4})
    base = load_base(Asked(str(tmp_path), block_size=16))
    torch.testing.assert_close(base.model(ids()).logits, float_model(ids()).logits, atol=1e-3, rtol=1e-4)
    assert base.parameters == sum(p.numel() for p in float_model.parameters())
    assert (base.model.get_input_embeddings().scale is not None) is (family == "gemma3_text")


def test_mlx_layers_without_whole_zero_points_are_rounded_anew_and_told(tmp_path):
    """As learned scales leave them: another offset in two groups of one layer."""
    wrote = write_packed(tmp_path, "mlx")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{UP}.biases"][3:5, 1] += 0.4 * tensors[f"{UP}.scales"][3:5, 1]
    write_tensors(tmp_path, tensors)
    base = load_base(Asked(str(tmp_path), block_size=16))
    assert (base.rounding.anew, base.rounding.worst_layer) == (1, UP)
    assert base.rounding.worst_relative_rms > 1e-3
    error = (base.model.get_submodule(UP).weight - mlx_floats(tensors, UP)).square().sum().sqrt()
    assert float(error / mlx_floats(tensors, UP).square().sum().sqrt()) == pytest.approx(
        base.rounding.worst_relative_rms, rel=1e-4
    )
    same = base.model.get_submodule(UP).store.grid.codes == wrote[UP].codes
    assert np.argwhere(~same.all(-1)).tolist() in ([[3, 1], [4, 1]], [[3, 1]], [[4, 1]], [])


def test_quantization_config_alone_is_mlx_where_there_are_biases(tmp_path):
    write_packed(tmp_path, "mlx")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = config.pop("quantization")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_base(Asked(str(tmp_path), block_size=16)).codes == "mlx"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"bits": 8}, "its MLX weights have 8 bits"),
        ({"bits": 3}, "its MLX weights have 3 bits"),
        ({"bits": "4"}, "'4' bits in groups of 32"),
        ({"mode": "mxfp4"}, "its MLX weights are in mode 'mxfp4'"),
        ({"mode": "nvfp4"}, "its MLX weights are in mode 'nvfp4'"),
        ({"group_size": 16}, "scales is float32"),
        ({"group_size": 24}, "rows of 160 inputs are not a whole number of groups of 24"),
        ({"linear_class": "autobitlinear"}, "linear_class of quantization"),
        ({UP: False}, f"says that {UP} is in float"),
        ({"model.norm": {"bits": 4}}, "says that model.norm is quantised"),
        ({UP: {"bits": 8}}, f"{UP}.weight is uint32 [160, 12] and should be uint32 [160, 24]"),
        ({UP: {"mode": "mxfp8"}}, f"{UP} of its MLX weights is in mode 'mxfp8'"),
    ],
)
def test_an_mlx_setting_is_understood_or_refused(changes, complaint, tmp_path):
    write_packed(tmp_path, "mlx")
    known = json.loads((tmp_path / "config.json").read_text())["quantization"]
    configure(tmp_path, quantization=known | changes)
    assert complaint in refused(tmp_path)


def test_mlx_settings_that_contradict_each_other_are_refused(tmp_path):
    write_packed(tmp_path, "mlx")
    configure(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "disagree; remove the one" in refused(tmp_path)
    configure(tmp_path, quantization_config=None, quantize_activations=True)
    assert "also quantise their inputs" in refused(tmp_path)


# mixes by layer


def mixed(folder: Path, codes: str = "gptq") -> dict:
    """One layer in groups of 16, one in float; what was written."""
    wrote = write_packed(folder, codes)
    tensors = load_file(folder / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(write_base(folder.with_name("float")))
    wrote[UP] = on_grid(model.get_submodule(UP), 16, False)
    tensors |= {f"{UP}.{kind}": tensor for kind, tensor in packed(wrote[UP], codes).items()}
    tensors = {n: t for n, t in tensors.items() if not n.startswith(f"{VALUE}.")}
    tensors[f"{VALUE}.weight"] = torch.from_numpy(dequantise(wrote.pop(VALUE)))
    write_tensors(folder, tensors)
    return wrote


def as_written(base, wrote: dict) -> None:
    for name, weight in wrote.items():
        grid = base.model.get_submodule(name).store.grid
        np.testing.assert_array_equal(grid.codes, weight.codes)
        np.testing.assert_array_equal(grid.scales, weight.scales)
        np.testing.assert_array_equal(dequantise(grid), dequantise(weight))


def test_rules_of_gptqmodel_are_followed_layer_by_layer(tmp_path):
    """The first rule that matches counts, from the beginning of the name."""
    wrote = mixed(tmp_path / "base")
    rules = {
        r"-:model\.layers\.0\..*v_proj": {},
        r"+:.*layers\.1\..*up_proj": {"group_size": 16, "sym": False, "mse": 2.4},
        r".*up_proj": {"group_size": 32},
        r"layers\.0": {"bits": 8},  # begins no name
    }
    retold(tmp_path / "base", dynamic=rules)
    base = load_base(Asked(str(tmp_path / "base"), block_size=64))
    as_written(base, wrote)
    assert (base.codes, base.block_size) == ("gptq", 32)
    assert base.model.get_submodule(UP).store.block_size == 16
    assert base.model.get_submodule(VALUE).store.block_size != 16  # ours


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        (
            {r"+:.*down_proj": {"bits": 8}},
            "the rule '+:.*down_proj' of dynamic gives model.layers.0.mlp.down_proj 8 bits",
        ),
        ({r"-:.*down_proj": {}}, "the rule '-:.*down_proj' of dynamic leaves model.layers.0.mlp.down_proj in float"),
        ({r"+:.*(": {}}, "is not a regular expression"),
        ({r".*q_proj": {"adapter": {"rank": 8}}}, "the rule '.*q_proj' of dynamic sets adapter"),
        ({r".*q_proj": 8}, "must be a table, not 8"),
        ({r".*q_proj": {"group_size": "x"}}, "group_size is 'x'"),
        ({r".*q_proj": {"group_size": 64}}, "q_proj.scales is float16 [3, 96] and should be float16 [2, 96]"),
        (["-:x"], "dynamic of quantization_config must be a table, not ['-:x']"),
    ],
)
def test_rules_that_are_not_understood_or_do_not_fit_are_refused_by_name(rules, complaint, tmp_path):
    write_packed(tmp_path)
    retold(tmp_path, dynamic=rules)
    assert complaint in refused(tmp_path)


@pytest.mark.parametrize("codes", ["gptq", "awq"])
def test_auto_rounds_folders_with_gptq_or_awq_tensors_are_read(codes, tmp_path):
    wrote = mixed(tmp_path / "base", codes)
    extra = {VALUE: {"bits": 16, "data_type": "fp"}, UP: {"group_size": 16}}
    told = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False, "data_type": "int"}
    told |= {"packing_format": f"auto_round:auto_{codes}", "extra_config": extra}
    configure(tmp_path / "base", quantization_config=told)
    base = load_base(Asked(str(tmp_path / "base"), block_size=64))
    as_written(base, wrote)
    assert base.codes == codes


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"packing_format": "auto_round:gptqmodel"}, "packed by AutoRound for 'auto_round:gptqmodel'"),
        ({"packing_format": None}, "packed by AutoRound for 'None'"),
        ({"data_type": "mx_fp"}, "quantised by AutoRound to 'mx_fp'"),
        ({"act_bits": 8}, "quantised to 8 bits"),
        ({"bits": 2}, "have 2 bits"),
        ({"extra_config": {UP: {"bits": 8}}}, f"extra_config of '{UP}' gives {UP} 8 bits"),
        ({"extra_config": {UP: {"bits": 16}}}, f"extra_config of '{UP}' leaves {UP} in float"),
    ],
)
def test_other_folders_of_auto_round_are_refused(changes, complaint, tmp_path):
    write_packed(tmp_path)
    told = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_gptq"}
    configure(tmp_path, quantization_config=told | changes)
    assert complaint in refused(tmp_path)


@pytest.mark.parametrize("method", OTHERS)
def test_what_others_quantise_is_refused_by_its_name(method, tmp_path):
    """With the reason, and what is read."""
    write_packed(tmp_path)
    configure(tmp_path, quantization_config={"quant_method": method})
    name, why = OTHERS[method]
    assert re.search(
        rf"quantised by {re.escape(name)} \({re.escape(why)}\), which is not supported; supported: 4-bit GPTQ",
        refused(tmp_path),
    )


def test_a_bundle_of_an_mlx_base_tells_what_whole_zero_points_made_of_it(tmp_path, capsys):
    """In the manifest and the report, whose bytes add up with an embedding and head that came on the grid (law 5); and
    a base that was kept still knows it.
    """
    file = write_build(tmp_path, steps=1)
    file.write_text(file.read_text() + "min_top1 = 0\nmax_kl = 9\n")
    embedding = AutoModelForCausalLM.from_pretrained(tmp_path / "base").model.embed_tokens
    wrote = write_packed(tmp_path / "base", "mlx")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors[f"{UP}.biases"][3, 1] += 0.4 * tensors[f"{UP}.scales"][3, 1]
    grid = packed(on_grid(embedding, 32, False), "mlx")
    write_tensors(tmp_path / "base", tensors | {f"model.embed_tokens.{kind}": tensor for kind, tensor in grid.items()})
    configure(tmp_path / "base", quantization={"group_size": 32, "bits": 4, "mode": "affine"})
    assert qia3(capsys, "build", file, "--output", tmp_path / "out")[0] == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    grid, rounding = manifest["base"]["grid"], manifest["base"]["grid"]["rounding"]
    assert (grid["codes"], grid["block_size"], grid["embedding"]["block_size"]) == ("mlx", 32, 32)
    assert manifest["architecture"]["tied_embedding"]
    assert (rounding["layers"], rounding["anew"], rounding["worst_layer"]) == (len(wrote) + 1, 1, UP)
    account = json.loads(qia3(capsys, "report", tmp_path / "out", "--json")[1])["account"]
    assert account["total"] == sum(f.stat().st_size for f in (tmp_path / "out").rglob("*") if f.is_file())
    report = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert f"## Codes of mlx\n\n{len(wrote) + 1} layers keep their codes and scales" in report
    assert "and 1 of them have blocks with other codes." in report
    base = load_base(Asked(str(tmp_path / "base"), block_size=16))
    keep(base, tmp_path / "kept")
    assert open_kept(tmp_path / "kept", "x").rounding == base.rounding
