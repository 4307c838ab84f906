"""Makes one set of weights into every contender's model for benchmarks/decode.py.

    python benchmarks/decode_models.py smollm2 dist/bench     # SmolLM2-135M-Instruct
    python benchmarks/decode_models.py llama1b dist/bench     # Llama-3.2-1B's shapes, random weights: speed only

    float/      safetensors and tokenizer, for the builder and for transformers       side-B/, merged-B/   QIA³ bundles, B = 32, 64, 128
    genai/      onnxruntime-genai's builder: int4, block 32, accuracy level 4           q4_0.gguf, q4_k_m.gguf   llama.cpp
    openvino/   with --openvino PYTHON, of an environment of its own: pip install "optimum-intel[openvino]==2.2.0" nncf==3.4.0 openvino==2026.4.1

What is there already is kept. llama.cpp's files of SmolLM2 are requantised from the Q4_1 file, which changes its
quality and not its speed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from qia3.base.sources import resolve

EXAMPLE = Path(__file__).parents[1] / "examples" / "home-intents"
LLAMA_1B = LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
)
BUILD = """
name = "bench"
[base]
model = "{model}"
block_size = {block}
calibration = "{calibration}"
[train]
steps = 1
batch_size = 1
[[task]]
name = "first"
kind = "classify"
prompt = "Topic of {{text}}:"
train = "few.jsonl"
test = "few.jsonl"
[parity]
prompts = 1
decode_steps = 1
max_kl = 10.0
min_top1 = 0.0
max_difference = 1e-2
"""


def write_float(kind: str, folder: Path) -> None:
    source = resolve("smollm2-135m-instruct")
    AutoTokenizer.from_pretrained(source.name, gguf_file=source.gguf_file).save_pretrained(folder)
    if kind == "smollm2":
        read = AutoModelForCausalLM.from_pretrained(source.name, gguf_file=source.gguf_file, dtype=torch.float32)
        del read.config.quantization_config
        model = LlamaForCausalLM(read.config)  # one that was read from GGUF refuses to be saved
        model.load_state_dict(read.state_dict())
    else:
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(LLAMA_1B)
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)


def write_genai(floats: Path, folder: Path, algorithm: str = "default") -> None:
    options = ["block_size=32", "accuracy_level=4", f"algo_config={algorithm}"]
    command = [
        sys.executable,
        "-m",
        "onnxruntime_genai.models.builder",
        "-m",
        str(floats),
        "-i",
        str(floats),
        "-o",
        str(folder),
    ]
    subprocess.run(
        [*command, "-p", "int4", "-e", "cpu", "-c", str(folder / "cache"), "--extra_options", *options], check=True
    )


def write_qia3(reference: str, place: Path, block: int) -> None:
    lines = (EXAMPLE / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (place / "few.jsonl").write_text("".join(lines[:16]), encoding="utf-8")
    calibration = (
        "none" if reference == "float" else "own"
    )  # random weights write no text worth rounding for, and speed is the same
    file = place / f"qia3-{block}.toml"
    file.write_text(BUILD.format(model=reference, block=block, calibration=calibration), encoding="utf-8")
    build_both(file, place / f"side-{block}", place / f"merged-{block}")


def build_both(file: Path, side: Path, merged: Path) -> None:
    """A build file with vectors unmerged, and its task `first` merged, which is trained once."""
    qia3 = [sys.executable, "-m", "qia3", "build", str(file), "--output"]
    subprocess.run([*qia3, str(side)], check=True, stdout=subprocess.DEVNULL)
    side.with_name(f"{side.name}.work").rename(merged.with_name(f"{merged.name}.work"))
    subprocess.run([*qia3, str(merged), "--mode", "merged", "--task", "first"], check=True, stdout=subprocess.DEVNULL)


def write_openvino(python: str, floats: Path, folder: Path) -> None:
    """optimum-intel's int4 with zero points, groups of 64: what its users take for a processor."""
    words = ["-m", "optimum.commands.optimum_cli", "export", "openvino", "-m", str(floats), "--weight-format", "int4"]
    chosen = ["--group-size", "64", "--ratio", "1.0", "--task", "text-generation-with-past", str(folder)]
    subprocess.run([python, *words, *chosen], check=True)


def write_f16_gguf(floats: Path, file: Path) -> None:
    """Llama tensors under their GGUF names, without a tokenizer.

    Rotary order is not permuted: with random weights it is all one.
    """
    import gguf

    model = AutoModelForCausalLM.from_pretrained(floats, dtype=torch.float16)
    config, writer = model.config, gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            data = tensor.float().numpy() if tensor.dim() == 1 else tensor.numpy().astype(np.float16)
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_llama(source: Path, file: Path, kind: str) -> None:
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    options.allow_requantize = True
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(file).encode(), options) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("kind", choices=("smollm2", "llama1b"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument(
        "--builder", nargs="+", default=["default"], help="the builder's algorithms: default, k_quant, k_quant_mixed"
    )
    parser.add_argument("--openvino", metavar="PYTHON", help="a Python that has optimum-intel, nncf and openvino")
    asked = parser.parse_args()
    kind, place = asked.kind, asked.folder / asked.kind
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "float" / "config.json").exists():
        write_float(kind, place / "float")
    if kind == "llama1b":
        os.environ["QIA3_CACHE"] = str(place / "cache")  # random weights are nobody's base
    for block in asked.blocks:
        if not (place / f"merged-{block}").exists():
            write_qia3("smollm2-135m-instruct" if kind == "smollm2" else "float", place, block)
    for algorithm in asked.builder:
        folder = place / ("genai" if algorithm == "default" else f"genai-{algorithm}")
        if not (folder / "model.onnx").exists():
            write_genai(place / "float", folder, algorithm)
    if asked.openvino and not (place / "openvino").exists():
        write_openvino(asked.openvino, place / "float", place / "openvino")
    source = resolve("smollm2-135m-instruct") if kind == "smollm2" else None
    f16 = Path(source.name) / str(source.gguf_file) if source else place / "f16.gguf"
    if not f16.exists():
        write_f16_gguf(place / "float", f16)
    for name, format_ in (("q4_0.gguf", "Q4_0"), ("q4_k_m.gguf", "Q4_K_M")):
        if not (place / name).exists():
            write_llama(f16, place / name, format_)


if __name__ == "__main__":
    main()
