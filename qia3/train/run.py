"""One training run: the vectors of one task, on a frozen base, by transformers' Trainer.

The Trainer provides checkpoints, resuming, the learning rate schedule, gradient accumulation and several processes. It
gets a module whose state_dict is only the vectors (qia3.train.model), so a checkpoint is a few hundred kilobytes, and
slots in a fixed order (qia3.batching.schedule), so it never shuffles: however a run is split, in time, in parts of a
batch or over processes, it gives the same losses.

Ctrl-C and SIGTERM end the run after the current step with a checkpoint; kill -9 leaves the last one. The same command
resumes from there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from qia3.base.family import is_encoder
from qia3.base.start import start_of
from qia3.batching.examples import Examples
from qia3.batching.rows import count
from qia3.batching.schedule import Schedule
from qia3.bundle.checked import decode, encode
from qia3.bundle.records import Record
from qia3.bundle.sites import Vectors
from qia3.errors import Interrupted
from qia3.ia3.vectors import Scaled, start_vectors
from qia3.progress import counting, is_main, say
from qia3.recipe import Train
from qia3.train import processes
from qia3.train.adafactor import Adafactor
from qia3.train.callbacks import Interruption, Log, Patience
from qia3.train.collator import Collator
from qia3.train.compute import choose_compute, computing
from qia3.train.dropout import without_dropout
from qia3.train.headed import HeadedModel, Texts
from qia3.train.model import Runner, VectorModel, run_alone
from qia3.train.probe import packs

STATE_FILE = "trainer_state.json"  # the Trainer writes it last: a checkpoint without it is incomplete
CHECKPOINTS, LOG = "checkpoints", "log.jsonl"
Tell = Callable[[int, str], None]


class VectorTrainer(Trainer):  # type: ignore[misc]
    """Passes the parts of the loss to the log, and evaluates on whole validation sets."""

    def __init__(self, log: Log, validation: Examples | None, **rest: Any) -> None:
        self.log_file, self.validation = log, validation
        super().__init__(eval_dataset=None if validation is None else range(len(validation)), **rest)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        out = model(**inputs)
        self.log_file.parts.append(out["parts"])
        return (out["loss"], out) if return_outputs else out["loss"]

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The validation loss, the same in every process, and the same however it is cut into batches."""
        assert self.validation is not None
        self.model.eval()
        trees = [self.validation.tree(i) for i in range(len(self.validation))]
        size, totals = self.args.train_batch_size, count(trees)
        parts: list[Tensor] = []
        for start in range(0, len(trees), size):
            batch = self.data_collator.lay_out(trees[start : start + size], totals)
            parts.append(self.model(**{name: tensor.to(self.args.device) for name, tensor in batch.items()})["loss"])
        metrics = {"eval_loss": float(torch.stack(parts).sum())}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # changes `control` in place
        return metrics


class Alone:
    """How a task trains by itself: the model, the signals and the progress bar are its own. In one pass with others it
    is one of their lanes (qia3.train.together).
    """

    def __init__(self) -> None:
        self.flag = Interruption()
        self.run: Runner = run_alone

    def packs(self, model: PreTrainedModel, examples: Examples) -> bool:
        """Whether the model takes several answers per row; tested before its compute type changes."""
        return packs(model, examples.longest_path(), start_of(model))

    @contextmanager
    def training(self, model: PreTrainedModel, settings: Train, title: str) -> Iterator[Tell]:
        """Prepares the model for training; yields the function that reports progress."""
        dtype = choose_compute(settings.compute)
        with (
            computing_for(model, dtype, settings),
            self.flag.listening(),
            counting(title, settings.steps, "steps") as tell,
        ):
            yield tell


def train_vectors(
    model: PreTrainedModel,
    scaled: Mapping[str, Scaled],
    examples: Examples,
    settings: Train,
    seed: int,
    folder: Path,
    title: str,
    validation: Examples | None = None,
    start: Vectors | None = None,
    head: nn.Linear | None = None,
    how: Alone | None = None,
) -> Record:
    """Trains `scaled` from `start` (None: ones), or from the last checkpoint in `folder`, in place, together with an
    encoder's `head`.

    Raises Interrupted.
    """
    how = how or Alone()
    dtype, arguments = (
        choose_compute(settings.compute),
        _arguments(settings, seed, folder / CHECKPOINTS, validation is not None),
    )
    parameters = start_vectors(scaled, start)
    if head is not None:
        parameters += sum(p.numel() for p in head.parameters())
    whole = (
        VectorModel(model, scaled, settings.losses, how.run)
        if head is None
        else HeadedModel(model, scaled, head, how.run)
    )
    vectors = processes.sharing(whole).to(arguments.device)
    lays_out = Texts() if head is not None else _collator(model, examples, settings, how)
    if head is None and not lays_out.packs:
        say(
            f"{title}: {type(model).__name__} does not compute the same with several answers per row; each "
            "answer gets its own row"
        )
    say(f"training {title}: {parameters:,} parameters, {settings.steps} steps, {dtype}")
    flag = how.flag
    with how.training(model, settings, title) as tell:
        log = Log(folder / LOG, settings.losses, settings.batch_size, tell)
        trainer = VectorTrainer(
            log,
            validation,
            model=vectors,
            args=arguments,
            train_dataset=Schedule(examples, settings.steps, settings.batch_size, seed),
            data_collator=lays_out,
            callbacks=[flag, log, *([] if validation is None else [Patience(settings.patience)])],
            optimizers=(_optimizer(whole, settings), None),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=_last_whole_checkpoint(folder / CHECKPOINTS))
    done = trainer.state.global_step
    if flag.raised and done < settings.steps:
        raise Interrupted(f"stopped at step {done} of {settings.steps} ({title}); run the same command to resume")
    return Record(
        parameters=parameters,
        steps=done,
        seconds=round(sum(entry["seconds"] for entry in log.entries), 1),
        final_loss=log.recent(max(1, min(10, settings.steps // 4))),
        examples=len(examples),
        compute=str(dtype).removeprefix("torch."),
        state_bytes={
            "master": 4 * parameters,
            "gradients": 4 * parameters,
            "optimizer": (8 if settings.optimizer == "adamw" else 4) * parameters,
        },
        packed=lays_out.packs,
        best_step=trainer.state.best_global_step,
        validation_loss=trainer.state.best_metric,
    )


def _collator(model: PreTrainedModel, examples: Examples, settings: Train, how: Alone) -> Collator:
    """The collator that lays out trees in rows as this model needs."""
    begins = start_of(model)
    packed = how.packs(model, examples)
    return Collator(packed, settings.row_tokens, model.config.get_text_config().hidden_size, begins)


def write_record(record: Record, path: Path) -> None:
    """Writes a record as JSON."""
    path.write_text(json.dumps(encode(record), indent=1) + "\n")


def read_record(path: Path) -> Record:
    """Reads what `write_record` wrote."""
    return decode(Record, json.loads(path.read_text()))


@contextmanager
def computing_for(model: PreTrainedModel, dtype: torch.dtype, settings: Train) -> Iterator[None]:
    """Prepares the model for training in the block; restores it afterwards."""
    reads = model.config.is_encoder_decoder or is_encoder(model.config)
    whole = without_dropout(model) if reads else nullcontext()
    with whole, computing(model, dtype) as how:
        say(how)
        if settings.gradient_checkpointing:
            _switch(model, "enable", {"use_reentrant": False})
        try:
            yield
        finally:
            model.eval()
            if settings.gradient_checkpointing:
                _switch(model, "disable")


def _switch(model: PreTrainedModel, how: str, *given: Any) -> None:
    """Switches activation checkpointing, by the name that this version of transformers uses."""
    new, old = f"activation_checkpointing_{how}", f"gradient_checkpointing_{how}"
    getattr(model, new if hasattr(model, new) else old)(*given)


def _optimizer(vectors: VectorModel, settings: Train) -> Adafactor | None:
    """The optimiser; None for the Trainer's own AdamW."""
    trained = [parameter for _, parameter in vectors.named_parameters()]
    return Adafactor(trained, settings.learning_rate) if settings.optimizer == "adafactor" else None


def _arguments(settings: Train, seed: int, folder: Path, validates: bool) -> TrainingArguments:
    processes.check_shares(settings.batch_size, settings.accumulate)
    shares = settings.accumulate * processes.count()
    cpu = not torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size // shares,
        gradient_accumulation_steps=settings.accumulate,
        train_sampling_strategy="sequential",
        learning_rate=settings.learning_rate,
        warmup_steps=min(settings.warmup_steps, settings.steps // 2),
        lr_scheduler_type="linear",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        save_steps=settings.checkpoint_every,
        save_total_limit=2,
        eval_strategy="steps" if validates else "no",
        eval_steps=settings.checkpoint_every,
        load_best_model_at_end=validates,
        metric_for_best_model="eval_loss" if validates else None,
        greater_is_better=False if validates else None,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and processes.count() > 1 else None,
        ddp_find_unused_parameters=False,
    )


def steps_kept(folder: Path) -> int:
    """The step of the last complete checkpoint in a task's folder; 0 if there is none."""
    last = _last_whole_checkpoint(folder / CHECKPOINTS)
    return 0 if last is None else int(last.rpartition("-")[2])


def _last_whole_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint; incomplete ones are removed."""
    while is_main() and folder.is_dir() and (last := get_last_checkpoint(str(folder))) is not None:
        try:
            json.loads((Path(last) / STATE_FILE).read_text(encoding="utf-8"))
            break
        except (OSError, ValueError):
            shutil.rmtree(last)
    processes.wait()
    found = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    return None if found is None else str(found)
