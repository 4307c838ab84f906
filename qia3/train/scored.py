"""How well vectors do on a task's test lines, in torch, before there is a bundle: for the summary of many tasks.

One forward pass per line, without its vectors and with them, of the prompt that the bundle will use:

    classify               the answer with the highest log-probability (ranking) is right
    generate               every token of the target is the most likely one after those before it: greedy decoding gives the
                           exact target (`qia3 eval` ignores case, spaces and a full stop)
    token-classification   the share of words whose label is right

These are torch's figures; those of the bundle, on ONNX Runtime, are in its report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from qia3.base.pooling import pooled, pooling_of
from qia3.base.start import start_of
from qia3.batching.trees import Tree
from qia3.bundle.checked import decode
from qia3.bundle.head import Head
from qia3.errors import ConfigError
from qia3.examples import Example
from qia3.ia3.adapted import AdaptedBase
from qia3.parse import read_json_table
from qia3.storage import writing
from qia3.train.collator import Collator
from qia3.train.compute import choose_compute, computing
from qia3.train.headed import NO_LABEL, Texts
from qia3.train.losses import Answers
from qia3.train.model import Rows, answer_logits, log_probabilities
from qia3.train.probe import packs
from qia3.train.task import Job, Trained

SCORES = "scores.json"
AT_ONCE = 8  # lines


@dataclass(frozen=True)
class Scores:
    """Shares of the `n` test lines (or of their words) that are right, without the vectors and with them; an encoder
    needs its head and has no score without.
    """

    n: int
    before: float | None
    after: float


def kept_scores(adapted: AdaptedBase, job: Job, trained: Trained, folder: Path) -> Scores:
    """The cached scores in the work folder, if they belong to these vectors and lines; otherwise computed and cached."""
    path, key = folder / SCORES, _key(job, trained)
    if path.is_file() and (found := read_json_table(path, ConfigError, "delete it")).get("of") == key:
        return decode(Scores, {name: found.get(name) for name in ("n", "before", "after")})
    scores = score(adapted, job, trained)
    with writing(folder):
        path.write_text(json.dumps(asdict(scores) | {"of": key}) + "\n", encoding="utf-8")
    return scores


def score(adapted: AdaptedBase, job: Job, trained: Trained) -> Scores:
    """Scores over the task's test lines."""
    dtype = choose_compute(job.settings.compute)
    ask = _Writes(adapted, job, trained) if trained.head is None else _Labels(adapted, trained, trained.head)
    with computing(adapted.model, dtype), torch.no_grad():
        before = _share(adapted, ask, job.data.test, {}) if trained.head is None else None
        return Scores(len(job.data.test), before, _share(adapted, ask, job.data.test, trained.vectors))


def _share(adapted: AdaptedBase, ask: Callable[[Sequence[Example]], Iterator[bool]], lines: Any, vectors: Any) -> float:
    with adapted.wearing(vectors):
        right = [r for start in range(0, len(lines), AT_ONCE) for r in ask(lines[start : start + AT_ONCE])]
    return sum(right) / len(right)


class _Writes:
    """For a model that generates text: compares answers by their tokens."""

    def __init__(self, adapted: AdaptedBase, job: Job, trained: Trained) -> None:
        self.model, self.tokens, self.trained = adapted.model, adapted.base.tokens, trained
        self.choices = trained.choices
        trees = [self._tree(example) for example in job.data.test]
        begins, size = start_of(self.model), self.model.config.get_text_config().hidden_size
        longest = max(len(begins) + max(map(len, t.answers)) if begins else t.longest_path for t in trees)
        self.lays_out = Collator(packs(self.model, longest, begins), job.settings.row_tokens, size, begins)

    def __call__(self, lines: Sequence[Example]) -> Iterator[bool]:
        trees = [self._tree(example) for example in lines]
        batch = {name: tensor.to(self.model.device) for name, tensor in self.lays_out.lay_out(trees).items()}
        logits = answer_logits(self.model, Rows.of(batch))
        said = log_probabilities(logits, batch["read"], batch["targets"])
        answers = Answers(said, batch["answer"], batch["example"], batch["right"])
        each = answers.mean_log_p() if self.trained.ranking == "mean" else answers.sum_log_p()
        likeliest = logits.argmax(-1)[batch["read"]] == batch["targets"]
        missed = torch.zeros(len(each), device=each.device).index_add(0, batch["answer"], (~likeliest).float())
        for e, line in enumerate(lines):
            own = (batch["example"] == e).nonzero()[:, 0]
            if self.trained.task.kind == "generate":
                yield bool(missed[own[0]] == 0)
            else:
                yield self._texts(line)[int(each[own].argmax())] in line.right

    def _texts(self, line: Example) -> tuple[str, ...]:
        """The texts to compare; for generation only the target."""
        return line.choices or self.choices or (line.answer,)

    def _tree(self, line: Example) -> Tree:
        texts, end = self._texts(line), self.trained.wrapping.end
        answers = tuple(self.tokens.answer(text, end) for text in texts)
        return Tree(self.tokens.prompt(self.trained.prompt, line.text), answers, texts.index(line.answer))


class _Labels:
    """For an encoder: its head gives the label of a text, or of each word."""

    def __init__(self, adapted: AdaptedBase, trained: Trained, head: Head) -> None:
        self.model, self.tokens, self.trained = adapted.model, adapted.base.tokens, trained
        self.weight, self.bias = torch.from_numpy(head.weight), torch.from_numpy(head.bias)

    def __call__(self, lines: Sequence[Example]) -> Iterator[bool]:
        labels = self.trained.choices or ()
        batch = Texts().lay_out([self._tree(line, labels) for line in lines])
        mask = batch["attention_mask"].to(self.model.device)
        states = self.model(input_ids=batch["input_ids"].to(self.model.device), attention_mask=mask)[0].float()
        right = batch["labels"]
        read = pooled(states, mask, pooling_of(self.model.config)) if right.dim() == 1 else states.flatten(0, 1)
        said = (read.cpu() @ self.weight.T + self.bias).argmax(-1)
        if right.dim() == 1:
            yield from (labels[int(k)] in line.right for k, line in zip(said, lines, strict=True))
            return
        asked = right.flatten() != NO_LABEL
        yield from (said[asked] == right.flatten()[asked]).tolist()

    def _tree(self, line: Example, labels: Sequence[str]) -> Tree:
        if not line.words:
            return Tree(self.tokens.prompt(self.trained.prompt, line.text), ((labels.index(line.answer),),))
        ids, places = self.tokens.words(self.trained.prompt, line.words)
        return Tree(ids, (tuple(map(labels.index, line.tags)),), places=places)


def _key(job: Job, trained: Trained) -> str:
    """A key of everything that scores depend on except the base, which the vectors identify."""
    digest = hashlib.sha256(json.dumps([e.content() for e in job.data.test]).encode())
    digest.update(json.dumps([trained.prompt, trained.ranking, trained.choices, trained.wrapping.end]).encode())
    for name, vector in sorted(trained.vectors.items()):
        digest.update(f"{name}|".encode() + vector.tobytes())
    return digest.hexdigest()
