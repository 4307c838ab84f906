"""Methods and tasks of benchmarks/quality_seq2seq.py: those of quality_methods.py, for an encoder-decoder.

What is different: the prompt is the encoder's and its answers are the decoder's; IA³ is on PEFT's own targets for T5 (k, v,
wo) and LoRA on q and v; and where a task generates, an answer is right where it is so character by character, greedy, in
torch for what is in float32 and by ONNX Runtime for what ships.

A generated task's examples are drawn once, from seed 0, each text once: 150 for choosing rates and steps, up to 400 to
draw training sets from, 256 to test on. (The first 100 were test lines once, and the example's rate was chosen after a
look at them; so they choose now, and the test lines are others.) `intent` is split as in quality_tasks.py; of `home`'s
test file the first 100 requests choose, and the others test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import IA3Config, LoraConfig
from quality_methods import ROW_TOKENS, Cell, Found, Methods
from quality_tasks import RealTask, Split, load
from transformers import AutoModelForSeq2SeqLM
from unseen_tasks import UNSEEN

from qia3.base.load import Asked, quiet
from qia3.base.start import start_of
from qia3.batching.tables import LANGUAGE_MODELLING, NAMES
from qia3.bundle.task import Task
from qia3.examples import Example, read_examples
from qia3.runtime.answer import reply
from qia3.runtime.engine import Engine
from qia3.train.collator import Collator
from qia3.train.prompts import wrapping

DEVELOPMENT, POOL, TEST = 150, 400, 256
LONGEST = 32  # tokens of an answer
HOME = Path(__file__).resolve().parents[1] / "examples" / "home-intents"
PROMPTS = {
    "slashed dates": "date with slashes: {text}",
    "loads": "together: {text}",
    "assignments": "assign: {text}",
    "quantities": "how many of what: {text}",
    "surnames": "last name first: {text}",
}


def _generated(name: str) -> Split:
    draw, found, wanted = Random(f"unseen/{name}/0"), {}, DEVELOPMENT + POOL + TEST
    for _ in range(20 * wanted):  # `loads` has 720 texts, and its pool is shorter
        text, answer = UNSEEN[name](draw)
        if len(found) < wanted:
            found.setdefault(text, Example(text, answer))
    examples = tuple(found.values())
    task = RealTask(name, None, PROMPTS[name])
    return Split(task, examples[-TEST:], examples[:DEVELOPMENT], examples[DEVELOPMENT:-TEST], None)


def _intent() -> Split:
    return replace(load("intent"), task=RealTask("intent", None, "intent: {text}"))


def _home() -> Split:
    train, test = (tuple(read_examples(HOME / f"{part}.jsonl", "classify")) for part in ("train", "test"))
    labels = tuple(sorted({e.answer for e in train}))
    return Split(RealTask("home", None, "about: {text}"), test[100:], test[:100], train, labels)


BY_NAME: dict[str, Callable[[], Split]] = {
    **{name: (lambda name=name: _generated(name)) for name in UNSEEN},  # type: ignore[misc]
    "intent": _intent,
    "home": _home,
}


class Pairs(Methods):
    """quality_methods.py's, where they differ."""

    def __init__(self, floats: Path, bundle: Path, merged: Path) -> None:
        super().__init__(floats, bundle, merged)
        self.asked = Asked(str(floats), block_size=64, calibration="none")

    def ia3_float32(self, cell: Cell) -> Found:
        config = IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"], task_type="SEQ_2_SEQ_LM")
        return self.by_peft("ia3-float32", config, self.float_model(), cell)

    def lora_r8(self, cell: Cell) -> Found:
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["q", "v"], lora_dropout=0.0, task_type="SEQ_2_SEQ_LM")
        return self.by_peft("lora-r8", config, self.float_model(), cell)

    def train_ours(self, model: Any, scaled: Any, cell: Cell, losses: Any = None, start: Any = None) -> Any:
        return super().train_ours(model, scaled, cell, losses or self.losses(cell), start)

    def train_plain(self, model: Any, cell: Cell, losses: Any = None) -> Any:
        return super().train_plain(model, cell, losses or self.losses(cell))

    def losses(self, cell: Cell) -> tuple[str, ...]:
        return (LANGUAGE_MODELLING,) if cell.split.choices is None else NAMES

    def ranked(self, model: Any, cell: Cell) -> float:
        if cell.split.choices is not None:
            return next(iter(self.by_both(model, cell, "").values()))  # by the mean, which the losses train
        model.eval()
        right = 0
        for start in range(0, len(cell.asked), 50):
            rows = cell.asked[start : start + 50]
            right += sum(a == e.answer for a, e in zip(self.generated(model, cell, rows), rows, strict=True))
        return right / len(cell.asked)

    @torch.inference_mode()
    def generated(self, model: Any, cell: Cell, rows: Sequence[Example]) -> list[str]:
        """Greedy answers by transformers, to prompts that are padded on the right."""
        texts = [cell.split.task.prompt.replace("{text}", e.text) for e in rows]
        given = self.tokenizer(texts, padding=True, return_tensors="pt")
        out = model.generate(
            given.input_ids, attention_mask=given.attention_mask, max_new_tokens=LONGEST, do_sample=False, num_beams=1
        )
        return [answer.strip() for answer in self.tokenizer.batch_decode(out, skip_special_tokens=True)]

    def shipped(self, engine: Engine, vectors: Any, cell: Cell, ranking: str = "sum") -> float:
        if cell.split.choices is not None:
            return super().shipped(engine, vectors, cell, "mean")
        prompt = f"{self.wrap.prefix}{cell.split.task.prompt}{self.wrap.suffix}"
        job = Task("task", "generate", prompt, None, LONGEST, self.wrap.end)
        answers = ("".join(reply(engine, job, vectors, e.text)).strip() for e in cell.asked)
        return sum(a == e.answer for a, e in zip(answers, cell.asked, strict=True)) / len(cell.asked)

    def collator(self, model: Any) -> Collator:
        return Collator(True, ROW_TOKENS, model.config.hidden_size, start_of(model))

    def float_model(self) -> Any:
        with quiet():  # its head is its own, whatever transformers 5 has in config.json
            model = AutoModelForSeq2SeqLM.from_pretrained(self.floats, dtype=torch.float32)
        return model.eval().requires_grad_(False)

    @cached_property
    def wrap(self) -> Any:
        model = self.float_model()
        return wrapping(self.tokenizer, model.generation_config, chat=False, start=start_of(model))


def write_task(name: str, folder: Path, train: int = 64, test: int = TEST) -> None:
    """A generated task's examples as files that `qia3 build` takes: how examples/small-t5-commands was made."""
    split = _generated(name)
    for part, examples in (("train", split.pool[:train]), ("test", split.test[:test])):
        lines = chain.from_iterable((json.dumps({"text": e.text, "target": e.answer}), "\n") for e in examples)
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
