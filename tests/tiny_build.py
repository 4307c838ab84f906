"""A build in miniature: a folder with a tiny random base of a real family, a tokenizer with a chat template, two tasks
and a build file.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from tiny import SHAPE
from tiny_bundle import END, tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from qia3 import cli

CHAT = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
SAID = {
    "lights": ["turn the lights off", "lights on", "the lamp is dim", "light the hall"],
    "music": ["music and more music", "play a song", "stop the music", "a louder song"],
    "lock": ["lock the door", "open the door", "the door is open", "lock up"],
}
FILE = """
name = "tiny"
[base]
model = "base"
block_size = 16
calibration = "none"
[train]
steps = {steps}
batch_size = 4
learning_rate = 3e-2
warmup_steps = 2
checkpoint_every = 2
compute = "float32"
[[task]]
name = "topics"
kind = "classify"
prompt = "Topic of {{text}}?"
train = "topics.jsonl"
test = "topics-test.jsonl"
[[task]]
name = "commands"
kind = "generate"
prompt = "Do: {{text}}"
train = "commands.jsonl"
test = "commands-test.jsonl"
max_new_tokens = 6
[export]
target = "ort-exact"
context_length = 96
[parity]
prompts = 3
decode_steps = 2
"""


def write_base(folder: Path, family: str = "llama", seed: int = 0, tied: bool = True) -> Path:
    """A model folder as people have them: config, safetensors, tokenizer."""
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer(), eos_token=END, pad_token="<pad>", chat_template=CHAT)
    sizes = {"vocab_size": len(words), "max_position_embeddings": 128, "eos_token_id": words.eos_token_id}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **{**SHAPE, **sizes}, tie_word_embeddings=tied)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                1 + 0.2 * torch.randn_like(parameter) if parameter.dim() == 1 else 0.12 * torch.randn_like(parameter)
            )
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def write_build(folder: Path, steps: int = 8, seed: int = 0) -> Path:
    """The build file, its data and its base, in `folder`. Returns the file."""
    write_base(folder / "base", seed=seed)
    topics = [{"text": text, "label": label} for label, texts in SAID.items() for text in texts]
    commands = [{"text": text, "target": label} for label, texts in SAID.items() for text in texts]
    for name, rows in {"topics": topics, "commands": commands}.items():
        write_lines(folder / f"{name}.jsonl", [r for i, r in enumerate(rows) if i % 4 < 3])
        write_lines(folder / f"{name}-test.jsonl", [r for i, r in enumerate(rows) if i % 4 == 3])
    file = folder / "qia3.toml"
    file.write_text(FILE.format(steps=steps), encoding="utf-8")
    return file


def built(folder: Path, *options: str) -> Path:
    """A whole bundle, made by the command itself with `options` (a parity that random weights can pass at any level).
    Files that ask for the same get copies of one.
    """
    shutil.copytree(built_once(*options).name, folder, dirs_exist_ok=True)
    return folder / "bundle"


@cache
def built_once(*options: str) -> TemporaryDirectory[str]:
    made = TemporaryDirectory()
    folder = Path(made.name)
    file = write_build(folder, steps=6)
    file.write_text(file.read_text(encoding="utf-8") + "min_top1 = 0\nmax_kl = 9\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(file), "--output", str(folder / "bundle"), *options])
    assert ended.value.code == 0
    return made


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
