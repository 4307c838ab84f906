"""An encoder's task: a head is trained together with the vectors, with one cross-entropy loss.

    logits = W p + b        p the pooled state of a text        loss = -log softmax(logits)[right]

So an answer is one "token" from a vocabulary of labels (its number), and everything that draws, cuts and counts trees
of tokens (qia3.batching.examples, schedule) works unchanged. If each word has a label, it is predicted from the state
of the word's first token, as in transformers' examples, and the answer has one number per word:

    tree      prompt [CLS] turn it off [SEP]      answer (3,)            places ()
    tree      prompt [CLS] an ##na waits [SEP]    answer (1, 0)          places (1, 3)
    batch     input_ids, attention_mask int64 [E, S]      labels int64 [E], or [E, S] with -100 at tokens without a label
              totals float32 [3], the first the number of labels

The head starts at zero and is float32, like the vectors' master copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from qia3.base.pooling import pooled, pooling_of
from qia3.batching.rows import Totals, count
from qia3.batching.schedule import Slot
from qia3.batching.tables import LANGUAGE_MODELLING
from qia3.batching.trees import Tree
from qia3.bundle.head import Head
from qia3.bundle.task import LABELLED, TAGS
from qia3.config import Task
from qia3.errors import ConfigError
from qia3.ia3.vectors import Scaled
from qia3.recipe import Train
from qia3.train.batches import Batch
from qia3.train.model import Runner, VectorModel, run_alone

NO_LABEL = -100
NAMES = {"weight": "head.weight", "bias": "head.bias"}
SETTINGS = {
    "max_new_tokens": "max_new_tokens",
    "end": "end",
    "ranking": "ranking",
    "shots": "shots",
    "mixture": "mixture",
}


def check_task(task: Task, settings: Train, own_choices: bool) -> None:
    """Raises ConfigError for settings that an encoder cannot use, before it is loaded."""
    given = [key for key in SETTINGS if key in task.model_fields_set and getattr(task, key)]
    if task.kind not in LABELLED:
        reason = (
            f"its kind is {task.kind!r}, but the base is an encoder, which generates no text; set kind = "
            f"{' or '.join(map(repr, LABELLED))}"
        )
    elif task.kind == TAGS and task.overlong == "cut":
        reason = 'overlong = "cut" would leave words without labels; split lines that are too long'
    elif own_choices:
        reason = "its lines have their own choices, but an encoder's head has the same labels for all of them"
    elif given:
        reason = (
            f"{' and '.join(given)} only {'apply' if len(given) > 1 else 'applies'} to bases that generate text, "
            "and this one is an encoder"
        )
    elif "losses" in settings.model_fields_set and tuple(settings.losses) != (LANGUAGE_MODELLING,):
        reason = (
            "these losses compare answers made of tokens, but an encoder has labels: remove losses, or set "
            'losses = ["lm"]'
        )
    else:
        return
    raise ConfigError(f"task {task.name!r}: {reason}")


def check_writes(task: Task) -> None:
    """Raises ConfigError for a task that needs an encoder, before another base is loaded."""
    if task.kind == TAGS:
        raise ConfigError(
            f"task {task.name!r}: {TAGS} needs an encoder, and this base is not one; use a base such "
            "as BERT, or kind = 'generate' with the labels as its target"
        )


def settings_of(settings: Train) -> Train:
    """The settings with the one loss that a head has."""
    return settings.model_copy(update={"losses": (LANGUAGE_MODELLING,)})


def new_head(model: PreTrainedModel, labels: Sequence[str]) -> nn.Linear:
    """A head of zeros."""
    head = nn.Linear(model.config.hidden_size, len(labels))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def trained_head(head: nn.Linear | None, kind: str) -> Head | None:
    """The head as it ships; copies."""
    if head is None:
        return None
    weight, bias = (p.detach().float().cpu().numpy().copy() for p in (head.weight, head.bias))
    return Head(weight, bias, kind == TAGS)


@dataclass(frozen=True)
class TextRows:
    """The model's inputs from a batch, both int64 [E, S]."""

    input_ids: Tensor
    attention_mask: Tensor

    def compute(self, model: Any) -> Tensor:
        """States float32 [E, S, h]."""
        states: Tensor = model(input_ids=self.input_ids, attention_mask=self.attention_mask)[0]
        return states.float()


class HeadedModel(VectorModel):
    """forward takes a batch and returns the loss and its single part; state_dict is the vectors' offsets and the head."""

    def __init__(
        self, model: PreTrainedModel, scaled: Mapping[str, Scaled], head: nn.Linear, run: Runner = run_alone
    ) -> None:
        super().__init__(model, scaled, run=run)
        self.head, self.how = head, pooling_of(model.config)

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, totals: Tensor
    ) -> dict[str, Tensor]:

        def finish(states: Tensor) -> Tensor:
            read = pooled(states, attention_mask, self.how) if labels.dim() == 1 else states.flatten(0, 1)
            said = self.head(read)
            return F.cross_entropy(said, labels.flatten(), reduction="sum", ignore_index=NO_LABEL)[None] / totals[0]

        return self.run(self, TextRows(input_ids, attention_mask), finish)

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return super().state_dict() | {NAMES[name]: p.detach() for name, p in self.head.named_parameters()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        with torch.no_grad():
            for name, parameter in self.head.named_parameters():
                parameter.copy_(state_dict[NAMES[name]])
        return super().load_state_dict(state_dict, strict, assign)

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        yield from super().named_parameters()
        yield from ((NAMES[name], parameter) for name, parameter in self.head.named_parameters())


def _labels(tree: Tree, length: int) -> int | list[int]:
    """The text's label, or those of its tokens, padded."""
    numbers = tree.answers[tree.right]
    if not tree.places:
        return numbers[0]
    found = [NO_LABEL] * length
    for place, number in zip(tree.places, numbers, strict=True):
        found[place] = number
    return found


@dataclass(frozen=True)
class Texts:
    """Turns slots into a batch, like qia3.train.collator's Collator: one text per row."""

    packs: bool = False

    def __call__(self, slots: list[Slot]) -> Batch:
        whole, share = slots[0].totals, len(slots) / slots[0].batch
        return self.lay_out([s.tree for s in slots], Totals(whole.right * share, 0, 0))

    def lay_out(self, trees: list[Tree], totals: Totals | None = None) -> Batch:
        longest, used = max(len(tree.prompt) for tree in trees), totals or count(trees)
        return {
            "input_ids": torch.tensor([[*t.prompt, *[0] * (longest - len(t.prompt))] for t in trees]),
            "attention_mask": torch.tensor([[int(i < len(t.prompt)) for i in range(longest)] for t in trees]),
            "labels": torch.tensor([_labels(t, longest) for t in trees]),
            "totals": torch.tensor([used.right, used.wrong, used.chosen], dtype=torch.float32),
        }
