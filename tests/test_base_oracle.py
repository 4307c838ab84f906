"""The load itself against readers that share no code with it (law 9): transformers' eager model of the same folder, its
weights put on their grid, or taken from their codes, by the plain numpy below. Parity of a graph with our own model
would pass a base that was read wrong.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file
from tiny import ids
from tiny_build import write_base
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from qia3.base import load
from qia3.base.load import Asked, load_base

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "gemma3_text", "phi3", "phi", "granite", "smollm3",
            "gpt2", "gpt_neox", "opt"]  # fmt: skip
# Dettmers et al. 2023, appendix E
NF4 = np.float32([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0])  # fmt: skip


def nearest_nf4(weight: np.ndarray, block: int) -> np.ndarray:
    """Each run of `block` entries over its largest magnitude, to the nearest level."""
    runs = weight.reshape(-1, block)
    largest = np.abs(runs).max(axis=1, keepdims=True)
    return (NF4[np.abs((runs / largest)[..., None] - NF4).argmin(-1)] * largest).reshape(weight.shape)


def nibbles(words: np.ndarray) -> np.ndarray:
    """The 8 numbers of each 32-bit word, the lowest bits first: [..., m] -> [..., m, 8]."""
    return (words.astype(np.int64)[..., None] >> np.arange(0, 32, 4)) & 15


def packed(values: np.ndarray) -> np.ndarray:
    """The other way: [..., m, 8] of 0..15 -> int32 [..., m]."""
    return (values.astype(np.uint32) << np.arange(0, 32, 4, dtype=np.uint32)).sum(-1, dtype=np.uint32).view(np.int32)


def int4_worth(store: str, tensors: dict[str, np.ndarray], inputs: int) -> np.ndarray:
    """What the codes of one of our int4 weights are worth: two a byte, the low nibble first; zero points likewise."""
    codes, scales = tensors[f"{store}.codes"], tensors[f"{store}.scales"]
    q = np.stack((codes & 15, codes >> 4), -1).reshape(*codes.shape[:2], -1).astype(np.float32)
    z = np.full(scales.shape, 8, np.float32)
    if f"{store}.zero_points" in tensors:
        halves = tensors[f"{store}.zero_points"]
        z = np.stack((halves & 15, halves >> 4), -1).reshape(len(halves), -1)[:, : scales.shape[1]].astype(np.float32)
    return ((q - z[..., None]) * scales[..., None]).reshape(len(codes), -1)[:, :inputs]


def eager(folder: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def agree(base, oracle: nn.Module) -> None:
    """Two prompts."""
    with torch.no_grad():
        for prompt in (ids(1, 5, seed=3), ids(1, 23, seed=4)):
            ours, theirs = base.model(input_ids=prompt).logits, oracle(input_ids=prompt).logits
            assert theirs.std() > 0.01  # random weights say something
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def on_nf4(folder: Path, block: int) -> nn.Module:
    """Every linear layer but the head on its nearest levels."""
    oracle = eager(folder)
    head = oracle.get_output_embeddings()
    with torch.no_grad():
        for module in oracle.modules():
            if isinstance(module, nn.Linear) and module is not head:
                module.weight.copy_(torch.from_numpy(nearest_nf4(module.weight.numpy(), block)))
            elif isinstance(module, Conv1D):  # holds its transpose
                module.weight.copy_(torch.from_numpy(nearest_nf4(module.weight.numpy().T.copy(), block).T))
    return oracle


@pytest.mark.parametrize("way", ["streamed", "by transformers", "kept"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_float_checkpoint_on_nf4(family, way, tmp_path, monkeypatch):
    monkeypatch.setenv("QIA3_CACHE", str(tmp_path / "cache"))
    folder = write_base(tmp_path / "base", family, tied=family in ("smollm3", "gemma2"))
    if way == "by transformers":
        monkeypatch.setattr(load, "open_stream", lambda *_: None)
    elif family != "gpt_neox":  # whose head is renamed, so it is not streamed
        monkeypatch.setattr(load, "_float_model", None)
    if way == "kept":
        monkeypatch.setattr(load, "LEAST_KEPT", 0)
        load_base(Asked(str(folder), block_size=32, grid="nf4"))
        monkeypatch.setattr(load, "_make", None)
    agree(load_base(Asked(str(folder), block_size=32, grid="nf4")), on_nf4(folder, 32))


@pytest.mark.parametrize("calibration", ["none", "own"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gpt2"])
def test_a_float_checkpoint_on_int4(family, calibration, tmp_path):
    """Each weight is near its own in the file (another one's would be off by 1.4), and the model is these weights."""
    folder = write_base(tmp_path / "base", family, tied=False)
    base, oracle = load_base(Asked(str(folder), block_size=32, calibration=calibration)), eager(folder)
    take_ours(base, oracle)
    agree(base, oracle)


def take_ours(base, oracle: nn.Module) -> None:
    """Puts what our codes are worth in the place of what they must be near."""
    tensors = {name: tensor.numpy() for name, tensor in base.model.state_dict().items()}
    stores = {name.removesuffix(".store.codes") for name in tensors if name.endswith(".store.codes")}
    assert stores
    with torch.no_grad():
        for name in stores:
            module = oracle.get_submodule(name)
            own = module.weight.numpy().T if isinstance(module, Conv1D) else module.weight.numpy()
            worth = int4_worth(f"{name}.store", tensors, own.shape[1])
            assert np.linalg.norm(worth - own) < 0.15 * np.linalg.norm(own), name
            module.weight.copy_(torch.from_numpy(worth.T if isinstance(module, Conv1D) else worth))


def random_codes(
    rng: np.random.Generator, outputs: int, inputs: int, group: int, symmetric: bool
) -> tuple[np.ndarray, ...]:
    """Codes [N, K], zero points and float16 scales [N, groups], and what they are worth."""
    q = rng.integers(0, 16, (outputs, inputs))
    shape = (outputs, inputs // group)
    z = np.full(shape, 8) if symmetric else rng.integers(1, 15, shape)
    s = (rng.uniform(0.5, 1.5, shape) * 0.02).astype(np.float16)
    worth = (q - np.repeat(z, group, 1)).astype(np.float32) * np.repeat(s.astype(np.float32), group, 1)
    return q, z, s, worth


def gptq_tensors(q: np.ndarray, z: np.ndarray, s: np.ndarray, below: int) -> dict[str, np.ndarray]:
    """AutoGPTQ's packing: inputs of an output in a word, zero points of 8 outputs in a word, less `below`."""
    outputs, inputs = q.shape
    return {
        "qweight": packed(q.T.reshape(inputs // 8, 8, outputs).swapaxes(1, 2)),
        "qzeros": packed(((z.T - below) & 15).reshape(-1, outputs // 8, 8)),
        "scales": np.ascontiguousarray(s.T),
    }


def awq_tensors(q: np.ndarray, z: np.ndarray, s: np.ndarray) -> dict[str, np.ndarray]:
    """AutoAWQ's: outputs of an input in a word, in the order 0 2 4 6 1 3 5 7 from the lowest bits."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    return {
        "qweight": packed(q.T.reshape(q.shape[1], -1, 8)[..., order]),
        "qzeros": packed(z.T.reshape(z.shape[1], -1, 8)[..., order]),
        "scales": np.ascontiguousarray(s.T),
    }


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("codes", ["gptq", "gptq_v2", "awq"])
def test_a_checkpoint_of_packed_words(codes, symmetric, family, tmp_path):
    """Codes are the file's; the embedding and the head, which it has in float16, are near theirs."""
    folder, rng = write_base(tmp_path / "base", family, tied=False), np.random.default_rng(7)
    oracle, group = eager(folder), 32
    state = {name: tensor.half() for name, tensor in oracle.state_dict().items()}
    for name, module in oracle.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            q, z, s, worth = random_codes(rng, module.out_features, module.in_features, group, symmetric)
            own = awq_tensors(q, z, s) if codes == "awq" else gptq_tensors(q, z, s, 1 if codes == "gptq" else 0)
            del state[f"{name}.weight"]
            state |= {f"{name}.{kind}": torch.from_numpy(array.copy()) for kind, array in own.items()}
            module.weight.data = torch.from_numpy(worth)
    for name, parameter in oracle.named_parameters():
        if name in state:
            parameter.data = state[name].float()
    save_file(
        {n: t.contiguous().clone() for n, t in state.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    told = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": not symmetric, "version": "gemm"}
    if codes != "awq":
        told = {"quant_method": "gptq", "bits": 4, "group_size": group, "sym": symmetric, "desc_act": False}
        told["checkpoint_format"] = codes
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": told}))
    base = load_base(Asked(str(folder), block_size=16))
    tensors = {name: tensor.numpy() for name, tensor in base.model.state_dict().items()}
    with torch.no_grad():
        for name in ("model.embed_tokens", "lm_head"):
            own = oracle.get_submodule(name).weight
            worth = int4_worth(f"{name}.store", tensors, own.shape[1])
            assert np.linalg.norm(worth - own.numpy()) < 0.15 * np.linalg.norm(own.numpy())
            own.copy_(torch.from_numpy(worth))
    agree(base, oracle)


def nf4_worth(name: str, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """A layer that bitsandbytes serialised: two codes a byte, the high nibble first; scales in 8 bits where nested."""
    told = json.loads(tensors[f"{name}.weight.quant_state.bitsandbytes__nf4"].tobytes())
    packed_, scales = tensors[f"{name}.weight"].reshape(-1), tensors[f"{name}.weight.absmax"]
    if scales.dtype == np.uint8:
        wide = np.repeat(tensors[f"{name}.weight.nested_absmax"], told["nested_blocksize"])[: len(scales)]
        scales = tensors[f"{name}.weight.nested_quant_map"][scales] * wide + np.float32(told["nested_offset"])
    values = NF4[np.stack((packed_ >> 4, packed_ & 15), -1).reshape(-1)]
    return (values * np.repeat(scales, told["blocksize"])[: len(values)]).reshape(told["shape"]).astype(np.float32)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_checkpoint_of_bitsandbytes(family, double, tmp_path):
    """Written by bitsandbytes itself; 96 inputs are no multiple of its 64, so a block lies across two rows."""
    from test_base_bnb import serialised

    folder = serialised(tmp_path, family, double)
    tensors = load_numpy(folder / "model.safetensors")
    config = AutoConfig.from_pretrained(tmp_path / "float")
    oracle = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    quantised = {name for name, m in oracle.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"}
    state = {
        name: torch.from_numpy(nf4_worth(name.removesuffix(".weight"), tensors))
        if name.removesuffix(".weight") in quantised
        else load_file(folder / "model.safetensors")[name].float()
        for name in oracle.state_dict()
    }
    oracle.load_state_dict(state)
    agree(load_base(Asked(str(folder), block_size=64)), oracle)


def test_the_oracle_sees_a_weight_in_another_ones_place(tmp_path):
    """Two layers of one shape exchanged in the oracle alone."""
    folder = write_base(tmp_path / "base")
    oracle = on_nf4(folder, 32)
    first, second = (layer.mlp.up_proj.weight.data for layer in oracle.model.layers)
    oracle.model.layers[0].mlp.up_proj.weight.data, oracle.model.layers[1].mlp.up_proj.weight.data = second, first
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        agree(load_base(Asked(str(folder), block_size=32, grid="nf4")), oracle)
