"""One training run: the vectors of one task, on a frozen base, by transformers' Trainer.

The Trainer brings progress, logs, seeds, checkpoints and resuming. It is handed a module whose state_dict is the vectors alone, so a
checkpoint is a few hundred kilobytes. Rows are padded on the left, which puts all answers at the end: the head then runs on the last few
positions only (`logits_to_keep`), and the loss is the cross-entropy of the answer's tokens, averaged over the batch's answer tokens.

Ctrl-C and SIGTERM end the run after the step in hand with a checkpoint; kill -9 leaves the last one. The same command goes on from there.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from qia3.config import Train
from qia3.errors import Interrupted
from qia3.ia3.vectors import Scaled, set_vectors
from qia3.progress import counting, say
from qia3.train.compute import choose_compute, set_compute
from qia3.train.prompts import Sequences

IGNORE = -100
STATE_FILE = "trainer_state.json"  # the Trainer writes it last: a checkpoint without it was cut short


@dataclass(frozen=True)
class Record:
    """What a run was and cost. `state_bytes`: float32 master copy, float32 gradients, Adam's two float32 moments, of the vectors."""

    parameters: int
    steps: int
    seconds: float
    final_loss: float
    examples: int
    compute: str
    state_bytes: Mapping[str, int]


class VectorModel(nn.Module):
    """The adapted model as the Trainer sees it: forward gives the loss, the state is the vectors."""

    def __init__(self, model: PreTrainedModel, scaled: Mapping[str, Scaled]) -> None:
        super().__init__()
        self.model, self.scaled = model, dict(scaled)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        # labels [B, A]: the last A tokens of each row, IGNORE before the answer. Position t of the logits predicts token t + 1.
        keep = labels.shape[1] + 1
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False, logits_to_keep=keep
        )
        logits = out.logits[:, -keep:-1].float()
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)}

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {name: layer.delta.detach() for name, layer in self.scaled.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        with torch.no_grad():
            for name, layer in self.scaled.items():
                layer.delta.copy_(state_dict[name])
        return torch.nn.modules.module._IncompatibleKeys([], [])

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, layer.delta) for name, layer in self.scaled.items())


def train_vectors(
    model: PreTrainedModel, scaled: Mapping[str, Scaled], sequences: Sequences, settings: Train, seed: int, folder: Path, title: str
) -> Record:
    """Trains `scaled` from ones (or from the last checkpoint in `folder`) and leaves the result in it. Raises Interrupted."""
    dtype = choose_compute(settings.compute)
    set_vectors(scaled, None)
    for layer in scaled.values():
        layer.delta.requires_grad_(True)
    set_compute(model, model.get_output_embeddings(), dtype)
    flag = _Interruption()
    trainer = Trainer(
        model=VectorModel(model, scaled),
        args=_arguments(settings, seed, folder),
        train_dataset=_rows(sequences),
        data_collator=_collate,
        callbacks=[flag],
    )
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    try:
        say(f"training {title}: {sum(s.delta.numel() for s in scaled.values()):,} parameters, {settings.steps} steps, {dtype}")
        with flag.listening(), counting(title, settings.steps, "steps") as tell:
            trainer.add_callback(_Progress(tell))
            result = trainer.train(resume_from_checkpoint=_last_whole_checkpoint(folder))
    finally:
        set_compute(model, None, None)
    if flag.raised and trainer.state.global_step < settings.steps:
        raise Interrupted(f"stopped at step {trainer.state.global_step} of {settings.steps} ({title}); run the same command to go on")
    count = sum(s.delta.numel() for s in scaled.values())
    state = {"master": 4 * count, "gradients": 4 * count, "optimizer": 8 * count}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Record(
        count,
        settings.steps,
        round(time.perf_counter() - started, 1),
        float(losses[-1] if losses else result.training_loss),
        len(sequences.prompts),
        str(dtype).removeprefix("torch."),
        state,
    )


def write_record(record: Record, path: Path) -> None:
    """As JSON."""
    path.write_text(json.dumps(asdict(record), indent=1) + "\n")


def read_record(path: Path) -> Record:
    """What `write_record` wrote."""
    return Record(**json.loads(path.read_text()))


def _arguments(settings: Train, seed: int, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=min(settings.warmup_steps, settings.steps // 2),
        lr_scheduler_type="linear",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        save_steps=settings.checkpoint_every,
        save_total_limit=2,
        logging_steps=max(1, min(10, settings.steps // 4)),
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
    )


def _rows(sequences: Sequences) -> list[dict[str, tuple[int, ...]]]:
    return [{"prompt": p, "answer": a} for p, a in zip(sequences.prompts, sequences.answers, strict=True)]


def _collate(rows: list[dict[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    """Left-padded ids, mask and positions [B, S]; labels [B, A] of the longest answer."""
    whole = [(*r["prompt"], *r["answer"]) for r in rows]
    length, answer = max(map(len, whole)), max(len(r["answer"]) for r in rows)
    ids = torch.tensor([(0,) * (length - len(w)) + w for w in whole])
    mask = torch.tensor([[0] * (length - len(w)) + [1] * len(w) for w in whole])
    labels = torch.tensor([(IGNORE,) * (answer - len(r["answer"])) + r["answer"] for r in rows])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0), "labels": labels}


def _last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; torn ones are removed."""
    while folder.is_dir() and (last := get_last_checkpoint(str(folder))) is not None:
        try:
            json.loads((Path(last) / STATE_FILE).read_text(encoding="utf-8"))
            return str(last)
        except (OSError, ValueError):
            shutil.rmtree(last)
    return None


class _Progress(TrainerCallback):  # type: ignore[misc]
    """Tells how far the run is, with the latest logged loss."""

    def __init__(self, tell: Callable[[int, str], None]) -> None:
        self.tell, self.note = tell, ""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.note = f"loss {float(logs['loss']):.3g}"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.tell(state.global_step, self.note)


class _Interruption(TrainerCallback):  # type: ignore[misc]
    """Turns the first SIGINT or SIGTERM into a checkpoint and a stop; the second one acts as usual."""

    def __init__(self) -> None:
        self.raised = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        previous: dict[signal.Signals, Any] = {}

        def note(number: int, _: Any) -> None:
            self.raised = True
            say("\nstopping after this step, with a checkpoint (once more to stop at once)")
            for name, handler in previous.items():
                signal.signal(name, handler)

        try:
            for name in (signal.SIGINT, signal.SIGTERM):
                previous[name] = signal.signal(name, note)
        except ValueError:  # not the main thread: nothing to listen to
            previous = {}
        try:
            yield
        finally:
            for name, handler in previous.items():
                signal.signal(name, handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if self.raised:
            control.should_save = control.should_training_stop = True
        return control
