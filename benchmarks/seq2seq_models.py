"""Makes one set of random weights of flan-t5's shapes into every contender's model for benchmarks/decode.py: speed only.

    python benchmarks/seq2seq_models.py flan-t5-base dist/bench --ctranslate2 PYTHON --optimum PYTHON

    float/      safetensors and a tokenizer of 32,100 words
    side-64/, merged-64/        QIA³ bundles with T5's wo in float32, the default; 64-wo8, 128-wo8 with blocks of 128 and
                                wo at 8 bits, 128-wo4 with wo at 4, *-prompts8 with int8 prompts; merged-*.packed is
                                what `--packed` keeps of them
    ct2-int8/                   CTranslate2's converter, --quantization int8
    onnx-float/, onnx-int8/     optimum-onnx's export, and its dynamic quantisation (avx512_vnni)

What is there already is kept. The two pythons are of environments of their own, which are left out where they are not named:

    pip install ctranslate2==4.8.5 transformers==4.57.6 torch       # beside transformers 5 the converted model's scores are wrong
    pip install "optimum-onnx[onnxruntime]==0.1.0"                  # wants transformers below 4.58
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path

import torch
from decode_models import build_both
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import T5Config, T5ForConditionalGeneration

from qia3.bundle.opened import Bundle
from qia3.runtime.load import open_engine

SHAPES = {
    "flan-t5-small": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "flan-t5-base": {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
}
WORDS, VOCABULARY = 32100, 32128
# QIA³ bundles by the end of their folders' names: the lines of [base]
VARIANTS = {
    "64": "",
    "64-wo8": 'eight_bit = ["down"]',
    "128-wo8": 'block_size = 128\neight_bit = ["down"]',
    "128-wo4": 'block_size = 128\nblocks = { 128 = ["down"] }',
    "64-prompts8": "",
    "128-wo8-prompts8": 'block_size = 128\neight_bit = ["down"]',
}
BUILD = """
name = "bench"
[base]
model = "float"
calibration = "none"
{base}
[train]
steps = 1
batch_size = 1
losses = ["lm"]
[[task]]
name = "first"
kind = "classify"
prompt = "Topic of {{text}}:"
train = "few.jsonl"
test = "few.jsonl"
[export]
context_length = 1024
prompts = "{prompts}"
[parity]
prompts = 1
decode_steps = 1
max_kl = 10.0
min_top1 = 0.0
max_difference = 1e-2
"""


def write_float(kind: str, folder: Path) -> None:
    """A T5 v1.1 with a head of its own, and files that transformers 4.57 reads as transformers 5 does."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        **SHAPES[kind],
    )
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, config.d_model))
    model.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": False}, indent=1))
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **named})
    )
    (folder / "special_tokens_map.json").write_text(json.dumps(named))


def write_qia3(place: Path, variant: str) -> None:
    (place / "few.jsonl").write_text(
        "".join(json.dumps({"text": f"w{i}", "label": f"w{i % 2 + 50}"}) + "\n" for i in range(3, 19)), encoding="utf-8"
    )
    file = place / f"qia3-{variant}.toml"
    prompts = "int8" if variant.endswith("prompts8") else "q4"
    file.write_text(BUILD.format(base=VARIANTS[variant], prompts=prompts), encoding="utf-8")
    build_both(file, place / f"side-{variant}", place / f"merged-{variant}")
    merged = place / f"merged-{variant}"  # and its weights as this processor wants them
    open_engine(Bundle.open(merged, verify=False), packed=merged.with_name(f"{merged.name}.packed"))


def write_ctranslate2(python: str, place: Path) -> None:
    program = "from ctranslate2.converters.transformers import main; main()"
    options = ["--model", str(place / "float"), "--output_dir", str(place / "ct2-int8"), "--quantization", "int8"]
    subprocess.run([python, "-c", program, *options], check=True)


OPTIMUM = """
import sys
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig
source, floats, int8 = sys.argv[1:]
main_export(source, floats, task="text2text-generation-with-past", do_validation=False)
for name in ("encoder_model", "decoder_model_merged"):
    settings = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
    ORTQuantizer.from_pretrained(floats, file_name=name + ".onnx").quantize(settings, save_dir=int8, file_suffix="")
"""


def write_optimum(python: str, place: Path) -> None:
    folders = [str(place / name) for name in ("float", "onnx-float", "onnx-int8")]
    subprocess.run([python, "-c", OPTIMUM, *folders], check=True)
    for name in ("decoder_model", "decoder_with_past_model"):  # what the merged one was made of
        (place / "onnx-float" / f"{name}.onnx").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("kind", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variants", nargs="*", default=[*VARIANTS])
    parser.add_argument("--ctranslate2", metavar="PYTHON")
    parser.add_argument("--optimum", metavar="PYTHON")
    asked = parser.parse_args()
    place = asked.folder / asked.kind
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "float" / "config.json").exists():
        write_float(asked.kind, place / "float")
    os.environ["QIA3_CACHE"] = str(place / "cache")  # random weights are nobody's base
    for variant in asked.variants:
        if not (place / f"merged-{variant}").exists():
            write_qia3(place, variant)
    if asked.ctranslate2 and not (place / "ct2-int8").exists():
        write_ctranslate2(asked.ctranslate2, place)
    if asked.optimum and not (place / "onnx-int8" / "decoder_model_merged.onnx").exists():
        write_optimum(asked.optimum, place)


if __name__ == "__main__":
    main()
