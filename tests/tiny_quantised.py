"""Tiny checkpoints as other tools write them:

GPTQ, AWQ, compressed-tensors and MLX folders, Q4_0 files. Each writer returns the codes that it wrote, by module name.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tiny_build import write_base
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from qia3.grids import int4
from qia3.grids.awq import pack_awq
from qia3.grids.compressed import pack_compressed
from qia3.grids.gptq import pack_gptq
from qia3.grids.int4 import Int4
from qia3.grids.mlx import pack_mlx
from qia3.grids.q4_0 import pack_q4_0, rows


def on_grid(layer: nn.Linear, group: int, symmetric: bool) -> Int4:
    """The layer rounded to a grid of float16 scales.

    Not the weights themselves: in these files codes are all there is.
    """
    found = int4.quantise(layer.weight.detach().float().numpy(), group, symmetric)
    return Int4(found.codes, found.scales.astype(np.float16).astype(np.float32), found.zero_points, found.inputs)


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """All but the head, which such files leave in float."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}


def settings(codes: str, group: int, symmetric: bool) -> dict:
    if codes == "awq":
        return {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    if codes == "mlx":
        return {"group_size": group, "bits": 4, "model.embed_tokens": False}
    if codes == "compressed-tensors":
        weights = {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group}
        scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        groups = {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
        return {"quant_method": codes, "format": "pack-quantized", "kv_cache_scheme": None, **groups}
    known = {"quant_method": "gptq", "bits": 4, "group_size": group, "sym": symmetric, "desc_act": False}
    return known | ({} if codes == "gptq" else {"checkpoint_format": codes})


def packed(weight: Int4, codes: str) -> dict[str, torch.Tensor]:
    """The tensors of a layer, by what follows its name."""
    if codes == "mlx":
        return {
            kind: torch.from_numpy(a) for kind, a in zip(("weight", "scales", "biases"), pack_mlx(weight), strict=True)
        }
    if codes == "compressed-tensors":
        words, scales, zeros = pack_compressed(weight)
        found = {"weight_packed": words, "weight_scale": scales.astype(np.float16)}
        found |= {"weight_shape": np.array([weight.outputs, weight.inputs])}
        found |= {} if zeros is None else {"weight_zero_point": zeros}
        return {kind: torch.from_numpy(a) for kind, a in found.items()}
    arrays = pack_awq(weight) if codes == "awq" else pack_gptq(weight, codes)
    found = dict(zip(("qweight", "qzeros", "scales"), arrays, strict=True))
    if codes != "awq":
        found["g_idx"] = np.arange(weight.inputs, dtype=np.int32) // weight.block_size
    return {kind: torch.from_numpy(a) for kind, a in found.items()}


def write_packed(
    folder: Path,
    codes: str = "gptq",
    family: str = "llama",
    group: int = 32,
    symmetric: bool = False,
    tied: bool = True,
    shards: int = 1,
) -> dict[str, Int4]:
    """A GPTQ, AWQ, compressed-tensors or MLX folder of a tiny model, the rest in float16."""
    write_base(folder, family, tied=tied)
    model = AutoModelForCausalLM.from_pretrained(folder)
    wrote = {name: on_grid(layer, group, symmetric) for name, layer in linears(model).items()}
    tensors = {}
    for name, weight in wrote.items():
        tensors |= {f"{name}.{kind}": tensor for kind, tensor in packed(weight, codes).items()}
    for name, tensor in model.state_dict().items():
        if name.removesuffix(".weight") not in wrote and not (tied and name == "lm_head.weight"):
            tensors[name] = tensor.half()
    write_tensors(folder, tensors, shards)
    key = "quantization" if codes == "mlx" else "quantization_config"
    configure(folder, **{key: settings(codes, group, symmetric)})
    return wrote


def write_tensors(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 1) -> None:
    """model.safetensors, or `shards` files with an index."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    (folder / "model.safetensors").unlink(missing_ok=True)
    parts = {f"model-{i + 1:05}-of-{shards:05}.safetensors": sorted(tensors)[i::shards] for i in range(shards)}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in parts.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def configure(folder: Path, **changes: object) -> None:
    """Changes keys of config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def write_gguf(
    folder: Path, family: str = "llama", layers: str = "Q4_0", tied: bool = True
) -> tuple[Path, dict[str, Int4]]:
    """A GGUF file as llama.cpp's converter and quantiser make it: rotary rows in its order, layers in one format, the
    embedding in Q8_0.

    In another format than Q4_0 the layers hold what the codes are worth, rounded again.
    """
    write_base(folder, family, tied=tied)
    model, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config, writer = model.config, gguf.GGUFWriter(str(folder / "model.gguf"), family)
    _describe(writer, config, words)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config.num_hidden_layers)
    wrote = {name: on_grid(layer, 32, symmetric=True) for name, layer in linears(model).items()}
    for name, tensor in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        place = f"{names.get_name(module)}.{kind}"
        if kind == "weight" and module in wrote:
            weight = rows(
                wrote[module], rotary_order(module, config) if family == "llama" else np.arange(wrote[module].outputs)
            )
            format_ = gguf.GGMLQuantizationType[layers]
            raw = pack_q4_0(weight) if layers == "Q4_0" else gguf.quants.quantize(int4.dequantise(weight), format_)
            writer.add_tensor(place, raw, raw_dtype=format_)
        elif tensor.dim() == 2 and not (tied and name == "lm_head.weight"):
            format_ = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(place, gguf.quants.quantize(tensor.numpy(), format_), raw_dtype=format_)
        elif tensor.dim() == 1:
            writer.add_tensor(place, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf", wrote


def rotary_order(name: str, config) -> np.ndarray:
    """Rows of llama's queries and keys as convert_hf_to_gguf.py has them (`permute`); the others as they are."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.rpartition(".")[2])
    count = config.head_dim * (heads or 0)
    return np.arange(count).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1) if heads else slice(None)


def _describe(writer: gguf.GGUFWriter, config, words) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    state = json.loads(words.backend_tokenizer.to_str())
    tokens = [token for token, _ in sorted(words.get_vocab().items(), key=lambda item: item[1])]
    tokens = tokens[
        : config.vocab_size
    ]  # Qwen2's tokenizer class adds one, which llama.cpp would refuse: it has no row
    special = {t["content"] for t in state["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in special else 1 for t in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]])
    writer.add_eos_token_id(words.eos_token_id)
    writer.add_pad_token_id(words.pad_token_id)
    writer.add_chat_template(words.chat_template)
