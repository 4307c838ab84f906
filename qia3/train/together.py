"""One pass, many tasks: rows of one batch train the vectors of different tasks on one frozen base.

Each task keeps its own Trainer, with its own order of examples, losses, schedule, clipping, optimiser, validation, log
and checkpoints. Tasks do not know of each other, and a task may resume alone if it stopped among others, or the other
way round. Only the pass is shared. Whenever every task has a batch ready, their rows are run as one
(qia3.train.joined), each row with its own task's vectors (qia3.ia3.lanes), backwards too:

    task 1: batch ->|                                         |-> loss, gradients -> clip, step, log
    task 2: batch ->| joined -> forward -> losses -> backward |-> loss, gradients -> clip, step, log
    task 3: batch ->|                                         |-> loss, gradients -> evaluates, alone ...

The sum of the tasks' losses is differentiated; no vector belongs to two of them, so each gets the gradients that it
would get alone. Trainers are threads that take turns: one runs at a time, and yields only while it waits for the pass,
which the main thread runs. So they need no locks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qia3.base.family import is_encoder
from qia3.base.start import start_of
from qia3.batching.examples import Examples
from qia3.errors import ConfigError
from qia3.ia3.lanes import new_lane, worn
from qia3.ia3.vectors import Scaled
from qia3.recipe import Train
from qia3.train.callbacks import Interruption
from qia3.train.joined import joined
from qia3.train.model import Finish, Input, VectorModel
from qia3.train.probe import packs
from qia3.train.run import Alone, Tell

Body = Callable[["Lane"], None]


@dataclass
class _Asked:
    """A task's batch, and later its result, or the error."""

    task: VectorModel
    given: Input
    finish: Finish
    trains: bool
    answer: dict[str, Tensor] | None = None
    error: BaseException | None = None


class Lane(Alone):
    """How a task trains among others."""

    def __init__(self, together: Together, scaled: Mapping[str, Scaled]) -> None:
        self.flag, self.run, self.scaled, self.together = together.flag, self._run, new_lane(scaled), together

    def packs(self, model: PreTrainedModel, examples: Examples) -> bool:
        """Tested once for all lanes, while the model still computed in float32."""
        return self.together.packs

    @contextmanager
    def training(self, model: PreTrainedModel, settings: Train, title: str) -> Iterator[Tell]:
        self.together.check(settings)
        before = 0

        def tell(done: int, note: str) -> None:
            nonlocal before
            self.together.told(done - before if before else 1, f"{title}: {note}")
            before = done

        yield tell

    def _run(self, task: VectorModel, given: Input, finish: Finish) -> dict[str, Tensor]:
        """Waits for the others, except in validation."""
        asked, together = _Asked(task, given, finish, torch.is_grad_enabled()), self.together
        together.waiting[self] = asked
        together.turn.notify_all()
        together.turn.wait_for(lambda: asked.answer is not None or asked.error is not None)
        if asked.error is not None:
            raise asked.error
        assert asked.answer is not None
        return asked.answer


class Together:
    """`count` lanes over a model with the layers `scaled`, created before its compute type changes. `settings` are
    those of the pass, with the longest `max_length`.
    """

    def __init__(self, model: PreTrainedModel, scaled: Mapping[str, Scaled], count: int, settings: Train) -> None:
        self.model, self.scaled, self.settings = model, scaled, settings
        self.flag, self.turn = Interruption(), threading.Condition()
        self.waiting: dict[Lane, _Asked] = {}
        self.told: Tell = lambda more, note: None
        self.packs = not is_encoder(model.config) and packs(model, settings.max_length, start_of(model))
        self.lanes = [Lane(self, scaled) for _ in range(count)]

    def check(self, settings: Train) -> None:
        """Raises ConfigError for a task that cannot join this pass."""
        if (reason := apart(settings)) or pass_of(settings) != pass_of(self.settings):
            raise ConfigError(f"it cannot train in one pass with others: {reason or 'its settings of the pass differ'}")

    def work(self, body: Body) -> None:
        """Runs `body` for every lane, and the passes that they wait for. Raises the first error of a body, at the end."""
        errors: list[BaseException] = []
        live = set(self.lanes)

        def lead(lane: Lane) -> None:
            with self.turn:
                try:
                    body(lane)
                except BaseException as error:
                    errors.append(error)
                finally:
                    live.discard(lane)
                    self.turn.notify_all()

        threads = [threading.Thread(target=lead, args=(lane,), daemon=True) for lane in self.lanes]
        for thread in threads:
            thread.start()
        try:
            self._serve(live)
        except BaseException as error:  # asked to stop at once: no lane may wait for ever
            with self.turn:
                while live:
                    self._answer({lane: self.waiting[lane] for lane in live if lane in self.waiting}, error)
                    self.turn.wait(0.1)
            raise
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def _serve(self, live: set[Lane]) -> None:
        with self.turn:
            while live:
                looking = {lane: asked for lane, asked in self.waiting.items() if not asked.trains}
                if looking:
                    self._pass(dict([next(iter(looking.items()))]))
                elif live <= self.waiting.keys():
                    self._pass(dict(self.waiting))
                else:
                    self.turn.wait()

    def _pass(self, asked: dict[Lane, _Asked]) -> None:
        """One forward pass, and one backward."""
        lanes = sorted(asked, key=self.lanes.index)  # in a fixed order, so that the same run gives the same sums
        tasks = [asked[lane] for lane in lanes]
        try:
            answers = self._computed(tasks, [lane.scaled for lane in lanes])
        except Exception as error:
            self._answer(asked, error)
            return
        for task, answer in zip(tasks, answers, strict=True):
            task.answer = answer
        self._answer(asked, None)

    def _answer(self, asked: Mapping[Lane, _Asked], error: BaseException | None) -> None:
        for lane, one in asked.items():
            one.error = error
            del self.waiting[lane]
        self.turn.notify_all()

    def _computed(self, tasks: Sequence[_Asked], lanes: Sequence[Mapping[str, Scaled]]) -> list[dict[str, Tensor]]:
        batch = joined([task.given for task in tasks])
        trains = tasks[0].trains
        self.model.train(trains)
        with torch.set_grad_enabled(trains), worn(self.scaled, lanes, batch.owner, batch.encoder_owner):
            computed = batch.cut(batch.given.compute(self.model))
            parts = [task.finish(own) for task, own in zip(tasks, computed, strict=True)]
            if not trains:
                return [{"loss": own.sum(), "parts": own} for own in parts]
            trained = [[p for _, p in task.task.named_parameters()] for task in tasks]
            loss = torch.stack([own.sum() for own in parts]).sum()
            gradients = iter(torch.autograd.grad(loss, [p for own in trained for p in own], allow_unused=True))
        return [
            {
                "loss": _with_gradients(own.detach().sum(), params, [next(gradients) for _ in params]),
                "parts": own.detach(),
            }
            for own, params in zip(parts, trained, strict=True)
        ]


def pass_of(settings: Train) -> tuple[Any, ...]:
    """The settings that tasks of one pass must share."""
    return settings.compute, settings.gradient_checkpointing


def apart(settings: Train) -> str | None:
    """Why a task with these settings trains by itself, or None."""
    return "its batches are split into parts (accumulate)" if settings.accumulate > 1 else None


def _with_gradients(loss: Tensor, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> Tensor:
    """A loss whose backward pass returns known gradients."""
    found: Tensor = _Known.apply(loss, gradients, *parameters)  # type: ignore[no-untyped-call]
    return found


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if known is None else grad * known for known in ctx.gradients)
