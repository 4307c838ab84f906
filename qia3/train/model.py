"""The adapted model as a trainer sees it: a batch goes in, losses come out, and its state is the vectors only.

The head is the largest layer of a small model, and almost all of its work would be wasted: only the slots that predict
an answer's token matter. So these slots are gathered before the head, by a hook on it. Whatever a family does to logits
afterwards (a scale, a soft cap) stays in the model's own code, since it acts entry by entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from qia3.batching.rows import Totals
from qia3.batching.tables import LANGUAGE_MODELLING
from qia3.ia3.vectors import Scaled
from qia3.train.batches import Batch, tree_mask
from qia3.train.losses import Answers, losses


class Input(Protocol):
    """The model's inputs from a batch; `compute` gives logits or states, from which the losses are computed."""

    def compute(self, model: Any) -> Tensor: ...


Finish = Callable[[Tensor], Tensor]  # from the result to the parts of the loss


class Runner(Protocol):
    """Runs the model for a task: alone, or in one pass with others (qia3.train.together)."""

    def __call__(self, task: VectorModel, given: Input, finish: Finish) -> dict[str, Tensor]:
        """The loss, whose gradients are the task's, and its parts."""


def run_alone(task: VectorModel, given: Input, finish: Finish) -> dict[str, Tensor]:
    """Runs one task's batch by itself."""
    parts = finish(given.compute(task.model))
    return {"loss": parts.sum(), "parts": parts.detach()}


class VectorModel(nn.Module):
    """forward takes a batch (qia3.batching.rows) and returns the loss and its parts; state_dict is the vectors' offsets
    from one.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        scaled: Mapping[str, Scaled],
        names: Sequence[str] = (LANGUAGE_MODELLING,),
        run: Runner = run_alone,
    ) -> None:
        super().__init__()
        self.model, self.scaled, self.names, self.run = model, dict(scaled), tuple(names), run

    def forward(
        self,
        input_ids: Tensor,
        places: Tensor,
        read: Tensor,
        targets: Tensor,
        answer: Tensor,
        example: Tensor,
        right: Tensor,
        totals: Tensor,
        position_ids: Tensor | None = None,
        tree: Tensor | None = None,
        branch: Tensor | None = None,
        prompts: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        source: Tensor | None = None,
    ) -> dict[str, Tensor]:
        rows = Rows(input_ids, places, position_ids, tree, branch, prompts, prompt_mask, source)

        def finish(logits: Tensor) -> Tensor:
            answers = Answers(log_probabilities(logits, read, targets), answer, example, right)
            return losses(answers, Totals(*totals.tolist()), self.names)

        return self.run(self, rows, finish)

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {name: layer.delta.detach() for name, layer in self.scaled.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        with torch.no_grad():
            for name, layer in self.scaled.items():
                layer.delta.copy_(state_dict[name])
        return torch.nn.modules.module._IncompatibleKeys([], [])

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, layer.delta) for name, layer in self.scaled.items())


@dataclass(frozen=True)
class Rows:
    """The model's inputs from a batch (qia3.train.batches, and qia3.train.pairs for the last three)."""

    input_ids: Tensor
    places: Tensor
    position_ids: Tensor | None = None
    tree: Tensor | None = None
    branch: Tensor | None = None
    prompts: Tensor | None = None
    prompt_mask: Tensor | None = None
    source: Tensor | None = None

    def compute(self, model: Any) -> Tensor:
        """Logits float32 [P, V]."""
        return answer_logits(model, self)

    @classmethod
    def of(cls, batch: Batch) -> Rows:
        return cls(**{field.name: batch[field.name] for field in fields(cls) if field.name in batch})


def answer_logits(model: PreTrainedModel, rows: Rows) -> Tensor:
    """Logits float32 [P, V] at `places` of the rows input_ids [R, L]."""

    def gather(_: nn.Module, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (hidden[0].flatten(0, 1)[rows.places][None], *hidden[1:])  # [R, L, h] -> [1, P, h]

    mask = None if rows.tree is None or rows.branch is None else tree_mask(rows.tree, rows.branch, model.dtype)
    hook = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        out = _run(model, rows, mask) if rows.prompts is None else _run_beside(model, rows, mask)
    finally:
        hook.remove()
    logits: Tensor = out.logits[0].float()
    return logits


def _run(model: PreTrainedModel, rows: Rows, mask: Tensor | None) -> Any:
    return model(input_ids=rows.input_ids, attention_mask=mask, position_ids=rows.position_ids, use_cache=False)


def _run_beside(model: PreTrainedModel, rows: Rows, mask: Tensor | None) -> Any:
    """Runs the encoder once per prompt, then the decoder on rows of answers. Without an explicit mask, T5Gemma's
    decoder hides every padding token, including one that it starts with.
    """
    assert rows.prompt_mask is not None
    encoded = model.get_encoder()(input_ids=rows.prompts, attention_mask=rows.prompt_mask)
    states: Tensor = encoded.last_hidden_state  # [E, S, h] -> [R, S, h]
    return model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states[rows.source]),
        attention_mask=rows.prompt_mask[rows.source],
        decoder_input_ids=rows.input_ids,
        decoder_attention_mask=torch.ones_like(rows.input_ids) if mask is None else mask,
        use_cache=False,
    )


def log_probabilities(logits: Tensor, read: Tensor, targets: Tensor) -> Tensor:
    """log p of each target [T] from logits [P, V], where `read` selects the slot; one normaliser per slot."""
    result: Tensor = _LogProbabilities.apply(logits, read, targets)  # type: ignore[no-untyped-call]
    return result


class _LogProbabilities(torch.autograd.Function):
    """log p = z[target] - log sum exp z, with d log p / dz = onehot(target) - softmax(z) written into one buffer.

    torch's own backward pass makes a [P, V] for each of the two terms and a third for their sum, and [P, V] is the
    largest tensor of a step.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, read: Tensor, targets: Tensor) -> Tensor:
        normaliser = logits.logsumexp(-1)
        ctx.save_for_backward(logits, normaliser, read, targets)
        return logits[read, targets] - normaliser[read]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, normaliser, read, targets = ctx.saved_tensors
        of_slot = grad.new_zeros(len(logits)).index_add(0, read, grad)
        buffer = (logits - normaliser[:, None]).exp_().mul_(-of_slot[:, None])
        return buffer.index_put_((read, targets), grad, accumulate=True), None, None


def read_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Logits [T, V] of a batch's predicted tokens, answer after answer."""
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    logits = answer_logits(model, Rows.of(batch))
    return logits[batch["read"][batch["answer"].argsort(stable=True)]]
