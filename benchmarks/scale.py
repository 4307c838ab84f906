"""How memory and time grow with the model: random checkpoints of four shapes, each stage in a process of its own.

    python benchmarks/scale.py                          # 135m 1b 3b 7b; the last needs 25 GB of disk and an hour or two
    python benchmarks/scale.py --shapes 135m 1b --folder dist/scale

quantise  from sharded bfloat16 safetensors to the base on the int4 grid, kept on disk and opened again, not calibrated
train     two steps of four examples, gradient checkpointing off: `qia3 train`
graph     the ONNX graph traced, passed and written with its data
export    `qia3 export`: graph, parity of one prompt, evaluation, measurement: whatever a build does

Peak is VmHWM: all that was resident at once, libraries included, pages of mapped files as well (which the system can
take back). "libraries" is what was resident after a tiny model had been loaded, before the real one. A layer is counted
in bfloat16, as it is stored.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qia3 import build
from qia3.base.load import Asked, load_base
from qia3.config import read_build
from qia3.graph.export import export_decoder
from qia3.graph.external import write_graph
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach
from qia3.runtime.bench import resident

# vocabulary, hidden, feed-forward, layers, heads, key heads, head size, tied
SHAPES = {
    "135m": (49152, 576, 1536, 30, 9, 3, 64, True),  # SmolLM2-135M
    "1b": (128256, 2048, 8192, 16, 32, 8, 64, True),  # Llama-3.2-1B
    "3b": (128256, 3072, 8192, 28, 24, 8, 128, True),  # Llama-3.2-3B
    "7b": (32000, 4096, 11008, 32, 32, 32, 128, False),  # Llama-2-7B
}
STAGES = ("quantise", "train", "graph", "export")
BLOCK = 64
PLAN = """
name = "scale"
[base]
model = "float"
calibration = "none"
[train]
steps = 2
batch_size = 4
warmup_steps = 1
[[task]]
name = "first"
kind = "classify"
prompt = "Topic of {text}:"
train = "few.jsonl"
test = "few.jsonl"
[parity]
prompts = 1
decode_steps = 1
max_kl = 100.0
min_top1 = 0.0
max_difference = 1e-1
"""


def config(shape: str) -> LlamaConfig:
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    )
    sizes = dict(zip((*names, "tie_word_embeddings"), SHAPES[shape], strict=True))
    return LlamaConfig(
        **sizes, max_position_embeddings=2048, bos_token_id=1, eos_token_id=0, pad_token_id=0, dtype="bfloat16"
    )


def write_float(shape: str, folder: Path, alike: bool = True) -> None:
    """A file for each layer and one for the rest, written tensor by tensor as far as a file goes. `alike`: all layers have
    the same weights, which a bundle then stores once.
    """
    with torch.device("meta"):
        empty = LlamaForCausalLM(config(shape))
    names = {n: p.shape for n, p in empty.named_parameters()}  # a tied head is not among them
    shards: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        shards.setdefault(parts[2] if parts[1] == "layers" else "rest", []).append(name)
    random, where = Random(alike), dict[str, str]()
    folder.mkdir(parents=True)
    for i, own in enumerate(shards.values(), 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file({n: random[names[n]].clone() for n in own}, folder / file)
        where |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config(shape).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


class Random(dict[torch.Size, torch.Tensor]):
    """Weights by shape: made once, and the same for all layers, which neither time nor memory can tell; or others each
    time.
    """

    def __init__(self, alike: bool) -> None:
        self.alike, self.generator = alike, torch.Generator().manual_seed(0)

    def __missing__(self, shape: torch.Size) -> torch.Tensor:
        made = torch.empty(shape, dtype=torch.bfloat16).normal_(0, shape[-1] ** -0.5, generator=self.generator)
        made = torch.ones_like(made) if len(shape) == 1 else made
        if self.alike:
            self[shape] = made
        return made


def _tokenizer() -> PreTrainedTokenizerFast:
    """Bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE({letter: i for i, letter in enumerate(["</s>", "<s>", *letters])}, []))
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="</s>", bos_token="<s>", pad_token="</s>")


def write_plan(place: Path) -> None:
    rows = [{"text": f"{word} number {i}", "label": word} for i in range(4) for word in ("lights", "music")]
    (place / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "qia3.toml").write_text(PLAN)


def warm(place: Path) -> None:
    """A tiny model through the same code, so that the libraries it needs are loaded before anything is measured."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        small = LlamaConfig(
            vocab_size=258, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1
        )
        LlamaForCausalLM(small).save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
        load_base(Asked(folder, block_size=BLOCK))


def run_stage(stage: str, place: Path) -> None:
    """In this process; prints what it took."""
    plan = read_build(place / "qia3.toml")
    warm(place)
    before, started, cpu = resident(), time.perf_counter(), cpu_seconds()
    if stage == "quantise":
        load_base(Asked(str(place / "float"), block_size=BLOCK))
    elif stage == "train":
        build.train(plan, build.How(scored=False))
    elif stage == "export":
        build.export(plan)
    else:
        base = load_base(Asked(str(place / "float"), block_size=BLOCK))
        attach(base.model, find_roles(base.model).sites)
        with tempfile.TemporaryDirectory(dir=place) as folder:
            write_graph(export_decoder(base.model, 4, 2048, "last"), Path(folder), ["model.embed_tokens", "lm_head"])
    seconds, after = time.perf_counter() - started, resident()
    facts = {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds() - cpu, 1),
        "peak": after["VmHWM"],
        "libraries": before["RssAnon"] + before["RssFile"],
    }
    print(json.dumps(facts | {"anonymous_at_the_end": after["RssAnon"]}))


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for: on a shared machine the clock on the wall says little."""
    return sum(os.times()[:4])


def measure(shape: str, place: Path, stages: list[str]) -> list[dict[str, object]]:
    """Every stage of one shape, each in a fresh process."""
    if not (place / "float").is_dir():
        write_float(shape, place / "float")
        write_plan(place)
    environment = {**os.environ, "QIA3_CACHE": str(place / "cache")}  # random weights are nobody's base
    rows = []
    for stage in stages:
        command = [sys.executable, __file__, "--stage", stage, "--folder", str(place)]
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        if run.returncode:
            print(f"{shape} {stage}: failed", file=sys.stderr, flush=True)
            continue
        rows.append({"shape": shape, "stage": stage, **sizes(shape, place), **json.loads(run.stdout.splitlines()[-1])})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def sizes(shape: str, place: Path) -> dict[str, int]:
    _, hidden, inner, _, heads, key_heads, size, _ = SHAPES[shape]
    layer = hidden * size * (2 * heads + 2 * key_heads) + 3 * hidden * inner + 2 * hidden
    kept = next((place / "cache" / "bases").glob("*/model.safetensors"), None)
    four_bit = kept.stat().st_size if kept else 0
    return {
        "float": sum(f.stat().st_size for f in (place / "float").glob("*.safetensors")),
        "four_bit": four_bit,
        "layer": 2 * layer,
    }


def table(rows: list[dict]) -> str:
    mib = 1 << 20
    lines = [
        "| shape | stage | checkpoint | 4-bit | 4-bit + two layers | peak | libraries | peak over libraries | to 4-bit | seconds | of CPU |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        over = r["peak"] - r["libraries"]
        figures = [r["float"], r["four_bit"], r["four_bit"] + 2 * r["layer"], r["peak"], r["libraries"], over]
        cells = " | ".join(f"{f // mib:,}" for f in figures)
        lines.append(
            f"| {r['shape']} | {r['stage']} | {cells} | {over / r['four_bit']:.2f} | {r['seconds']:,} | {r['cpu_seconds']:,} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--folder", type=Path, default=Path("dist/scale"))
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints and bases on the disk")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stage:
        run_stage(asked.stage, asked.folder)
        return
    rows = []
    for shape in asked.shapes:
        rows += measure(shape, asked.folder / shape, asked.stages)
        if not asked.keep:
            shutil.rmtree(asked.folder / shape)
    print(f"MiB; block {BLOCK}, {torch.get_num_threads()} threads\n\n{table(rows)}")


if __name__ == "__main__":
    main()
