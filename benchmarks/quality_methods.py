"""The methods of benchmarks/quality.py: how each trains on a drawn set of examples, and how it answers the test set.

Every method sees the same trees of tokens in the same order, the same loss (language modelling on the right answer),
AdamW, the same steps, a rise over 10 steps and a straight fall to zero, and products in bfloat16, so only the method
differs; its learning rate is its own (quality.py --sweep). Answers are ranked by their summed log-probability, in
float32.

zero-shot        float32 weights, the question alone                        zero-shot-int4   our 4-bit base on ONNX Runtime as shipped
in-context-16    float32 weights, 16 of the examples before the question
ia3-float32      PEFT's IA³ on float32 weights                               qia3-int4        ours on the 4-bit base: side, merged on ONNX Runtime
lora-r1, lora-r8 PEFT's LoRA on the queries and values, float32 weights      qia3-nf4         ours on bitsandbytes' NF4 codes, in torch
lora-r8-nf4      the same on weights that are NF4: unmerged, and merged: added, and rounded to NF4 again
full             every weight, float32                                       qia3-int4-values8  with values at 8 bits, in torch
qia3-int4-losses ours with the three losses of T-Few over all answers; in torch, ranked by the mean a token, which they train, and by the sum;
                 then side and merged on ONNX Runtime, by the mean
lora-r8-losses   the same for the LoRA on float32
qia3-int4-unseen vectors trained on 18 other tasks (quality_tasks.MIXTURE) with the three losses, and not on this one at all
qia3-int4-started  trained on this one from there, with the three losses
blocks-int4      one number for each row and block of the layers that IA³ scales, in place of one for each row: nine times as many

NF4 weights of the LoRA are held as the float32 numbers that they mean, which changes no value: what bitsandbytes
computes, without its time.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from quality_parts import (
    WARMUP,
    BlockScaled,
    InFloat32,
    in_context_right,
    merged_bundle,
    on_nf4,
    peak,
    saved_bytes,
    share_right,
    slope,
)
from quality_tasks import Split, mixture
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from qia3.base.load import Asked, load_base
from qia3.base.quantise import Grid, quantise_model
from qia3.base.weights import GridWeight
from qia3.batching.examples import Examples, Source
from qia3.batching.prompts import ask
from qia3.batching.schedule import Schedule
from qia3.batching.tables import LANGUAGE_MODELLING, NAMES
from qia3.batching.trees import Tree
from qia3.bundle.opened import Bundle
from qia3.bundle.task import Task
from qia3.examples import Example
from qia3.grids import nf4
from qia3.ia3.mix import named
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach, get_vectors, set_vectors
from qia3.recipe import Train
from qia3.runtime.answer import classify_batch
from qia3.runtime.engine import Engine
from qia3.runtime.load import open_engine
from qia3.tokens import Tokens
from qia3.train.collator import Collator
from qia3.train.compute import computing
from qia3.train.evaluate import rank_trees
from qia3.train.model import VectorModel
from qia3.train.prompts import wrapping
from qia3.train.run import train_vectors

BATCH, MAX_LENGTH, ROW_TOKENS, ROWS = 8, 256, 512, 8
MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Cell:
    """One training run: what it is drawn from, and how it is trained."""

    split: Split
    n: int
    seed: int
    steps: int
    rate: float
    development: bool = False

    @property
    def asked(self) -> Sequence[Example]:
        return self.split.development if self.development else self.split.test


@dataclass(frozen=True)
class Training:
    """`loss` is the mean over the last steps, `peak_mib` the resident peak of the process while it trained, the
    libraries in it.
    """

    loss: float
    peak_mib: int
    seconds: float


@dataclass(frozen=True)
class Found:
    """Accuracy by variant; bytes that a task adds on a device, by variant; what training cost, where there was any."""

    accuracy: dict[str, float]
    bytes: dict[str, int]
    training: Training | None = None


def lora(rank: int) -> LoraConfig:
    return LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, task_type="CAUSAL_LM"
    )


class Methods:
    """Loads what a method needs when it is first asked for."""

    def __init__(self, floats: Path, bundle: Path, merged: Path) -> None:
        self.floats, self.places = floats, {"side": bundle, "merged": merged}

    def run(self, method: str, cell: Cell) -> Found:
        return getattr(self, method.replace("-", "_"))(cell)

    # --- without training

    def zero_shot(self, cell: Cell) -> Found:
        return Found({"zero-shot": self.ranked(self.float_model(), cell)}, {"zero-shot": 0})

    def zero_shot_int4(self, cell: Cell) -> Found:
        return Found({"zero-shot-int4": self.shipped(self.engine("side"), {}, cell)}, {"zero-shot-int4": 0})

    def in_context_16(self, cell: Cell) -> Found:
        """The same 16 examples before every question, their keys and values computed once."""
        model, shown = self.float_model(), cell.split.draw(16, cell.seed)
        prompt = cell.split.task.prompt
        text = "".join(f"{prompt.replace('{text}', e.text)} {e.answer}\n\n" for e in shown)
        right = in_context_right(model, self.tokenizer, self.wrap, text, prompt, cell.asked)
        return Found({"in-context-16": right}, {"in-context-16": 0})

    # --- trained

    def ia3_float32(self, cell: Cell) -> Found:
        config = IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
        )
        return self.by_peft("ia3-float32", config, self.float_model(), cell)

    def lora_r1(self, cell: Cell) -> Found:
        return self.by_peft("lora-r1", lora(1), self.float_model(), cell)

    def lora_r8(self, cell: Cell) -> Found:
        return self.by_peft("lora-r8", lora(8), self.float_model(), cell)

    def lora_r8_losses(self, cell: Cell) -> Found:
        peft = get_peft_model(self.float_model(), lora(8))
        training = self.train_plain(peft.get_base_model(), cell, NAMES)
        accuracy = self.by_both(peft.get_base_model(), cell, "lora-r8-losses")
        return Found(accuracy, dict.fromkeys(accuracy, saved_bytes(peft)), training)

    def lora_r8_nf4(self, cell: Cell) -> Found:
        model = self.float_model()
        linears = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
        for layer in linears:
            layer.weight.data = on_nf4(layer.weight.data)
        peft = get_peft_model(model, lora(8))
        training = self.train_plain(peft.get_base_model(), cell)
        accuracy = {"lora-r8-nf4": self.ranked(peft.get_base_model(), cell)}
        size = saved_bytes(peft)
        merged = peft.merge_and_unload()
        for layer in linears:  # plain layers again, whose weights the merge changed where LoRA was
            layer.weight.data = on_nf4(layer.weight.data)
        accuracy["lora-r8-nf4-merged"] = self.ranked(merged, cell)
        whole = sum(int(layer.weight.numel() * nf4.bits_per_weight(64) / 8) for layer in linears)
        return Found(accuracy, {"lora-r8-nf4": size, "lora-r8-nf4-merged": whole}, training)

    def full(self, cell: Cell) -> Found:
        model = self.float_model()
        model.requires_grad_(True)
        training = self.train_plain(model, cell)
        return Found(
            {"full": self.ranked(model, cell)}, {"full": sum(4 * p.numel() for p in model.parameters())}, training
        )

    def qia3_int4(self, cell: Cell) -> Found:
        base, scaled = self.attached()
        training = self.train_ours(base.model, scaled, cell)
        size = self.adapter_bytes()
        if cell.development:  # for choosing learning rates torch will do
            return Found({"qia3-int4-side": self.ranked(base.model, cell)}, {"qia3-int4-side": size}, training)
        accuracy = self.on_device(scaled, cell, "qia3-int4", "sum")
        return Found(accuracy, {"qia3-int4-side": size, "qia3-int4-merged": self.weight_bytes()}, training)

    def blocks_int4(self, cell: Cell) -> Found:
        """As PEQA trains scales, on IA³'s layers; it folds exactly too, but only into one task's own copy of the
        weights.
        """
        model = load_base(Asked(MODEL, block_size=64, calibration="own")).model
        for site in find_roles(model).sites:
            model.set_submodule(site.module, BlockScaled(model.get_submodule(site.module)))
        with computing(model, torch.bfloat16):
            training = self.train_plain(model, cell)
        count = sum(m.delta.numel() for m in model.modules() if isinstance(m, BlockScaled))
        return Found({"blocks-int4": self.ranked(model, cell)}, {"blocks-int4": 4 * count}, training)

    def qia3_int4_values8(self, cell: Cell) -> Found:
        base = load_base(Asked(MODEL, block_size=64, calibration="own", mix=named(["value"])))
        scaled = attach(base.model, find_roles(base.model).sites)
        training = self.train_ours(base.model, scaled, cell)
        size = self.adapter_bytes()
        return Found({"qia3-int4-values8": self.ranked(base.model, cell)}, {"qia3-int4-values8": size}, training)

    def qia3_int4_losses(self, cell: Cell) -> Found:
        base, scaled = self.attached()
        training = self.train_ours(base.model, scaled, cell, losses=NAMES)
        accuracy = self.by_both(base.model, cell, "qia3-int4-losses")
        sizes = dict.fromkeys(accuracy, self.adapter_bytes())
        if not cell.development:
            accuracy |= self.on_device(scaled, cell, "qia3-int4-losses", "mean")
            sizes |= {"qia3-int4-losses-side": self.adapter_bytes(), "qia3-int4-losses-merged": self.weight_bytes()}
        return Found(accuracy, sizes, training)

    def qia3_int4_unseen(self, cell: Cell) -> Found:
        base, scaled = self.attached()
        set_vectors(scaled, self.start)
        accuracy = self.by_both(base.model, cell, "qia3-int4-unseen")
        return Found(accuracy, dict.fromkeys(accuracy, self.adapter_bytes()))

    def qia3_int4_started(self, cell: Cell) -> Found:
        start = self.start
        base, scaled = self.attached()
        training = self.train_ours(base.model, scaled, cell, losses=NAMES, start=start)
        accuracy = self.by_both(base.model, cell, "qia3-int4-started")
        return Found(accuracy, dict.fromkeys(accuracy, self.adapter_bytes()), training)

    def qia3_nf4(self, cell: Cell) -> Found:
        model = self.float_model()
        quantise_model(model, Grid(64, True, name="nf4"))
        scaled = attach(model, find_roles(model).sites)
        training = self.train_ours(model, scaled, cell)
        set_vectors(scaled, get_vectors(scaled))
        size = self.adapter_bytes()
        return Found({"qia3-nf4": self.ranked(model, cell)}, {"qia3-nf4": size}, training)

    # --- what they share

    asked = Asked(MODEL, block_size=64, calibration="own")

    def attached(self) -> tuple[Any, Any]:
        """Our base with vectors of ones; the bundle's graph is of the same."""
        base = load_base(self.asked)
        known = Bundle.open(self.places["side"], verify=False).fingerprint
        assert base.fingerprint == known, "the bundle is of another base: build it again"
        return base, attach(base.model, find_roles(base.model).sites)

    @cached_property
    def start(self) -> dict[str, np.ndarray]:
        """The vectors of the mixture, trained where they are not kept beside the float model, for this base."""
        base, scaled = self.attached()
        file = self.floats.parent / f"start-{base.fingerprint[:8]}.safetensors"
        if not file.is_file():
            sources = [Source((t.prompt, "{text}"), t.prompt, self.wrap, examples, None) for t, examples in mixture()]
            drawn = Examples(Tokens.of(self.tokenizer), sources, MAX_LENGTH, ranked=True)
            settings = Train(
                steps=400, batch_size=BATCH, learning_rate=1e-2, warmup_steps=WARMUP, losses=NAMES, checkpoint_every=100
            )
            train_vectors(base.model, scaled, drawn, settings, 0, self.floats.parent / "start.work", "the mixture")
            save_file(get_vectors(scaled), str(file))
        return load_file(str(file))

    def by_peft(self, name: str, config: Any, model: Any, cell: Cell) -> Found:
        peft = get_peft_model(model, config)
        training = self.train_plain(peft.get_base_model(), cell)
        return Found({name: self.ranked(peft.get_base_model(), cell)}, {name: saved_bytes(peft)}, training)

    def examples(self, examples: Sequence[Example], cell: Cell, ranked: bool) -> Examples:
        prompt = cell.split.task.prompt
        source = Source((prompt,), prompt, self.wrap, tuple(examples), cell.split.choices)
        return Examples(Tokens.of(self.tokenizer), [source], MAX_LENGTH, ranked)

    def train_ours(
        self, model: Any, scaled: Any, cell: Cell, losses: tuple[str, ...] = (LANGUAGE_MODELLING,), start: Any = None
    ) -> Training:
        settings = Train(
            steps=cell.steps,
            batch_size=BATCH,
            learning_rate=cell.rate,
            warmup_steps=WARMUP,
            losses=losses,
            checkpoint_every=10**6,
        )
        with tempfile.TemporaryDirectory() as folder:
            drawn = self.examples(cell.split.draw(cell.n, cell.seed), cell, ranked=losses != (LANGUAGE_MODELLING,))
            title = f"{cell.split.task.name}, n {cell.n}, seed {cell.seed}"
            with peak() as reached:
                record = train_vectors(model, scaled, drawn, settings, cell.seed, Path(folder), title, start=start)
        return Training(record.final_loss, reached[0], record.seconds)

    def train_plain(self, model: Any, cell: Cell, losses: tuple[str, ...] = (LANGUAGE_MODELLING,)) -> Training:
        """The same run for a model whose own parameters train, products in bfloat16 by autocast, the head in float32."""
        torch.manual_seed(cell.seed)
        head = model.get_output_embeddings()
        model.set_output_embeddings(InFloat32(head))
        drawn = self.examples(cell.split.draw(cell.n, cell.seed), cell, ranked=losses != (LANGUAGE_MODELLING,))
        slots = Schedule(drawn, cell.steps, BATCH, cell.seed)
        collate = self.collator(model)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, cell.rate, weight_decay=0.0)
        rise = partial(slope, steps=cell.steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rise)
        found, started = [], time.perf_counter()
        wrapped = VectorModel(model, {}, losses)
        with peak() as reached:
            for step in range(cell.steps):
                batch = collate([slots[i] for i in range(step * BATCH, (step + 1) * BATCH)])
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = wrapped(**batch)["loss"]
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimiser.step()
                schedule.step()
                optimiser.zero_grad()
                found.append(float(loss.detach()))
        model.set_output_embeddings(head)
        return Training(float(np.mean(found[-10:])), reached[0], round(time.perf_counter() - started, 1))

    def ranked(self, model: Any, cell: Cell) -> float:
        """Accuracy in torch, float32."""
        return share_right(*self.scores(model, cell))

    def by_both(self, model: Any, cell: Cell, name: str) -> dict[str, float]:
        """Accuracy by the mean a token, which the third loss trains, and by the sum."""
        scores, trees = self.scores(model, cell)
        by_mean = [s / [len(answer) for answer in tree.answers] for s, tree in zip(scores, trees, strict=True)]
        return {name: share_right(by_mean, trees), f"{name}-sum": share_right(scores, trees)}

    def scores(self, model: Any, cell: Cell) -> tuple[Sequence[np.ndarray], list[Tree]]:
        """The summed log-probability of each answer of each question, and the questions."""
        for weight in model.modules():
            if isinstance(weight, GridWeight):
                weight.hold_dense(torch.float32)
        asked = self.examples(cell.asked, cell, ranked=True)
        trees = [asked.tree(i) for i in range(len(asked))]
        return rank_trees(model.eval(), trees, self.collator(model)).scores, trees

    def collator(self, model: Any) -> Collator:
        """How answers are laid out in rows."""
        return Collator(True, ROW_TOKENS, model.config.hidden_size)

    def on_device(self, scaled: Any, cell: Cell, name: str, ranking: str) -> dict[str, float]:
        """Accuracy of the vectors through ONNX Runtime, unmerged and merged."""
        vectors = get_vectors(scaled)
        fed = {site: vector.reshape(1, 1, -1) for site, vector in vectors.items()}
        accuracy = {f"{name}-side": self.shipped(self.engine("side"), fed, cell, ranking)}
        stores = {site: layer.base.store.scales.numpy() for site, layer in scaled.items()}
        with merged_bundle(self.places["merged"], stores, vectors) as folder:
            engine = open_engine(Bundle.open(folder, verify=False))
            accuracy[f"{name}-merged"] = self.shipped(engine, {}, cell, ranking)
        return accuracy

    def shipped(self, engine: Engine, vectors: Any, cell: Cell, ranking: str = "sum") -> float:
        """Accuracy through ONNX Runtime, int8 activations and all."""
        job = Task(
            "task", "classify", ask(self.wrap, cell.split.task.prompt), cell.split.choices, 32, self.wrap.end, ranking
        )
        right = 0
        for start in range(0, len(cell.asked), ROWS):
            rows = cell.asked[start : start + ROWS]
            answers = classify_batch(engine, job, vectors, [e.text for e in rows], [e.choices for e in rows])
            right += sum(a.label == e.answer for a, e in zip(answers, rows, strict=True))
        return right / len(cell.asked)

    def float_model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.floats, dtype=torch.float32).eval().requires_grad_(False)

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.floats)

    @cached_property
    def wrap(self) -> Any:
        return wrapping(self.tokenizer, None, chat=True)

    @cached_property
    def engines(self) -> dict[str, Engine]:
        return {}

    def engine(self, mode: str) -> Engine:
        if mode not in self.engines:
            self.engines[mode] = open_engine(Bundle.open(self.places[mode]))
        return self.engines[mode]

    def adapter_bytes(self) -> int:
        """Of a task's vectors on a device: a file of the same size whatever they hold."""
        return next((self.places["side"] / "adapters").glob("*.onnx_adapter")).stat().st_size

    def weight_bytes(self) -> int:
        return sum(t["bytes"] for t in json.loads((self.places["merged"] / "manifest.json").read_text())["tensors"])
