"""Training speed and memory, ours against PEFT's under transformers' Trainer: same model, same examples, same steps,
fresh processes in turn.

    python benchmarks/training.py --rounds 3
    python benchmarks/training.py --workloads choices --only qia3-int4 peft-ia3-float32 --rounds 5

Workloads   choices   hotel reviews, four choices, the three losses of T-Few (qia3.train.losses) over all of them
            intents   the same with seven choices
            lm        requests to commands (examples/home-intents), language modelling on the target alone
Contenders  qia3-*    `qia3 train` as it is: int4 and NF4, products in the type it chooses, and int4 held to float32
            peft-*    PEFT on float32 weights, and on bitsandbytes NF4. Every answer is a row with its prompt before it, padded on the right to the
                      longest of the batch, which is how PEFT users have it; labels mask all but the answer. Losses are the same functions.

Every process trains STEPS steps of 8 examples. Examples a second come from the steps after the first two; the peak is
the process's resident one from the first step on, with weights and libraries in it. Rounds go through all contenders
before the next, and ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from decode_models import write_float
from peft import IA3Config, LoraConfig, get_peft_model, prepare_model_for_kbit_training
from quality_methods import MODEL
from quality_parts import peak
from quality_tasks import load
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from qia3.base.load import Asked, load_base
from qia3.base.quantise import Grid, quantise_model
from qia3.batching.examples import Examples, Source
from qia3.batching.rows import Totals
from qia3.batching.schedule import Schedule
from qia3.batching.tables import LANGUAGE_MODELLING, NAMES
from qia3.examples import read_examples
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach
from qia3.recipe import Train
from qia3.runtime.bench import machine
from qia3.tokens import Tokens
from qia3.train.losses import Answers, losses
from qia3.train.prompts import wrapping
from qia3.train.run import train_vectors

STEPS, WARM, BATCH, EXAMPLES = 6, 2, 8, 64
HOME = Path(__file__).parents[1] / "examples" / "home-intents"
MEASURED = ("examples_per_second", "peak_mib")
WORKLOADS = {"choices": "hotels", "intents": "intent", "lm": None}
CONTENDERS = (
    "qia3-int4",
    "qia3-int4-float32",
    "qia3-nf4",
    "peft-ia3-float32",
    "peft-lora-float32",
    "peft-ia3-nf4",
    "peft-lora-nf4",
)


def examples(tokenizer: Any, workload: str) -> Examples:
    task = WORKLOADS[workload]
    wrap = wrapping(tokenizer, None, chat=True)
    if task is None:
        given, prompt, choices = (
            tuple(read_examples(HOME / "commands-train.jsonl", "generate"))[:EXAMPLES],
            "{text}\nCommand:",
            None,
        )
    else:
        split = load(task)
        given, prompt, choices = split.draw(EXAMPLES, 0), split.task.prompt, split.choices
    return Examples(
        Tokens.of(tokenizer), [Source((prompt,), prompt, wrap, given, choices)], 256, ranked=task is not None
    )


class Rows(nn.Module):
    """A PEFT model on rows of one answer each: padded ids in, the same losses out."""

    def __init__(self, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, input_ids: Any, attention_mask: Any, labels: Any, example: Any, right: Any) -> dict[str, Any]:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1].float()
        if self.names == (LANGUAGE_MODELLING,):
            return {"loss": F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)}
        row, place = (labels[:, 1:] != -100).nonzero(as_tuple=True)
        chosen = logits[row, place].log_softmax(-1).gather(1, labels[:, 1:][row, place][:, None])[:, 0]
        answers = Answers(chosen, row, example, right)
        return {"loss": losses(answers, totals(right, row, example), self.names).sum()}


def totals(right: Any, row: Any, example: Any) -> Totals:
    tokens = torch.bincount(row, minlength=len(right))
    return Totals(float(tokens[right].sum()), float(tokens[~right].sum()), float(example.max() + 1))


def collate(slots: list[Any]) -> dict[str, Any]:
    """Every answer with its prompt before it, padded on the right."""
    rows, labels, example, right = [], [], [], []
    for e, slot in enumerate(slots):
        for i, answer in enumerate(slot.tree.answers):
            rows.append(slot.tree.prompt + answer)
            labels.append((-100,) * len(slot.tree.prompt) + answer)
            example.append(e)
            right.append(i == slot.tree.right)
    length = max(map(len, rows))
    return {
        "input_ids": torch.tensor([r + (0,) * (length - len(r)) for r in rows]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (length - len(r)) for r in rows]),
        "labels": torch.tensor([r + (-100,) * (length - len(r)) for r in labels]),
        "example": torch.tensor(example),
        "right": torch.tensor(right),
    }


class Clock(TrainerCallback):  # type: ignore[misc]
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def by_peft(contender: str, floats: Path, workload: str) -> dict[str, float]:
    method, base = contender.removeprefix("peft-").split("-")
    if base == "nf4":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        model = AutoModelForCausalLM.from_pretrained(
            floats, dtype=torch.float32, quantization_config=config, device_map="cpu"
        )
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    else:
        model = AutoModelForCausalLM.from_pretrained(floats, dtype=torch.float32)
    if method == "ia3":
        adapter: Any = IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
        )
    else:
        adapter = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    peft = get_peft_model(model, adapter)
    names = (LANGUAGE_MODELLING,) if WORKLOADS[workload] is None else NAMES
    data = Schedule(examples(AutoTokenizer.from_pretrained(floats), workload), STEPS, BATCH, 0)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, peak() as reached:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-3,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            remove_unused_columns=False,
            train_sampling_strategy="sequential",
            dataloader_pin_memory=False,
        )
        Trainer(
            model=Rows(peft, names), args=arguments, train_dataset=data, data_collator=collate, callbacks=[clock]
        ).train()
    return {"examples_per_second": rate(clock.ends), "peak_mib": reached[0]}


def by_qia3(contender: str, floats: Path, workload: str) -> dict[str, float]:
    if "int4" in contender:
        base = load_base(Asked(MODEL, block_size=64, calibration="own"))
        model, tokenizer = base.model, base.tokenizer
    else:
        model, tokenizer = (
            AutoModelForCausalLM.from_pretrained(floats, dtype=torch.float32),
            AutoTokenizer.from_pretrained(floats),
        )
        quantise_model(model, Grid(64, True, name="nf4"))
    scaled = attach(model, find_roles(model).sites)
    names = ("lm",) if WORKLOADS[workload] is None else NAMES
    compute = "float32" if contender.endswith("float32") else "auto"
    settings = Train(steps=STEPS, batch_size=BATCH, losses=names, compute=compute, checkpoint_every=10**6)
    data = examples(tokenizer, workload)
    with tempfile.TemporaryDirectory() as folder, peak() as reached:
        train_vectors(model, scaled, data, settings, 0, Path(folder), contender)
        ends = [json.loads(line)["seconds"] for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return {"examples_per_second": rate([sum(ends[: i + 1]) for i in range(len(ends))]), "peak_mib": reached[0]}


def rate(ends: list[float]) -> float:
    return round(BATCH * (len(ends) - WARM) / (ends[-1] - ends[WARM - 1]), 3)


def worker(contender: str, floats: Path, workload: str) -> None:
    found = (by_qia3 if contender.startswith("qia3") else by_peft)(contender, floats, workload)
    print("RESULT " + json.dumps({"contender": contender, "workload": workload, **found}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--float", type=Path, default=Path("dist/quality/float"))
    parser.add_argument("--worker", nargs=2, metavar=("CONTENDER", "WORKLOAD"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        worker(asked.worker[0], asked.float, asked.worker[1])
        return
    if not (asked.float / "config.json").exists():
        write_float("smollm2", asked.float)
    print(
        json.dumps(
            {
                "machine": machine(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "steps": STEPS,
                "batch": BATCH,
            }
        )
    )
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _, workload, contender in product(range(asked.rounds), asked.workloads, asked.only):
        command = [sys.executable, __file__, "--float", str(asked.float), "--worker", contender, workload]
        run = subprocess.run(command, capture_output=True, text=True)
        line = next((line for line in run.stdout.splitlines() if line.startswith("RESULT ")), None)
        if line is None:
            print(
                f"{contender} on {workload} fails: {(run.stderr.strip().splitlines() or ['no reason'])[-1]}", flush=True
            )
            continue
        row = json.loads(line.removeprefix("RESULT "))
        found.setdefault((workload, contender), []).append(row)
        print(json.dumps(row), flush=True)
    print(
        "\n| workload | contender | examples/s | of PEFT IA³ float32 | peak MiB | of PEFT IA³ float32 |\n|---|---|---:|---:|---:|---:|"
    )
    for (workload, contender), rows in found.items():
        peer = found.get((workload, "peft-ia3-float32"), [])
        speed, memory = (statistics.median(row[k] for row in rows) for k in MEASURED)
        ratios = [
            f"{statistics.median(r[k] for r in rows) / statistics.median(r[k] for r in peer):.2f}" if peer else ""
            for k in MEASURED
        ]
        print(f"| {workload} | {contender} | {speed:.2f} | {ratios[0]} | {memory:.0f} | {ratios[1]} |")


if __name__ == "__main__":
    main()
