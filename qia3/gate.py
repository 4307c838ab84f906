"""One experiment, done twice: force tokens after real prompts, record torch's logits, change something, compare.

The parity gate (law 4) replaces torch by ONNX Runtime: for the base alone and every adapter, on prompts from the tasks'
own test sentences, with the graph at accuracy_level 0 and as shipped. If they differ too much, nothing is published.

Recoding changes the grid: a base that was trained on NF4 ships on another one. Law 1 cannot hold across that step,
since the codes differ, so the difference is reported: how far weights, logits and first choices moved. The gate comes
after it, on the model that ships.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qia3.base.frozen import BaseModel
from qia3.base.recode import recode
from qia3.bundle.adapter import as_inputs
from qia3.bundle.checked import decode
from qia3.bundle.head import Head
from qia3.bundle.layout import PROMPT_GRAPH
from qia3.bundle.manifest import DECODER, ENCODER
from qia3.bundle.records import Drift, Parity, approximations, change
from qia3.bundle.sites import Vectors
from qia3.config import Build
from qia3.describe import places, positions
from qia3.examples import Example
from qia3.graph.cache import Text, largest_kept, pairs_of, with_int8_cache
from qia3.graph.forced import OrtDecoder, torch_continued, torch_logits
from qia3.graph.forced_encoder import OrtEncoder
from qia3.graph.forced_seq2seq import OrtPair
from qia3.graph.parity import Agreement, Floats, check, compare, remedy
from qia3.graph.passes import AccuracyLevel
from qia3.ia3.adapted import AdaptedBase
from qia3.names import NONE
from qia3.progress import say
from qia3.targets import load_target
from qia3.train.compute import computing
from qia3.train.task import Trained

SEEN = 32  # lines per task that int8 ranges are made from
HELD = 1 << 30  # bytes of dequantised weights, at most: a case takes a pass or two
DRAWN = 256  # random tokens per row that is added to them
Tests = Mapping[str, Sequence[Example]]
Opened = OrtDecoder | OrtPair | OrtEncoder


@dataclass(frozen=True)
class Case:
    """Prompts, the tokens forced after each, and torch's logits [T, V] for all of them, with the adapter `vectors`. For
    an encoder there are no forced tokens; the logits are those of `head`, or without one its states [T, hidden].

    `guessed`: the logits of the exact graph, if it guessed all of these tokens.
    """

    vectors: Vectors
    forced: Sequence[tuple[list[int], list[int]]]
    reference: Floats
    head: Head | None = None
    guessed: Floats | None = None

    def by_torch(self, adapted: AdaptedBase) -> Agreement:
        """Compares with the same tokens through the model as it is now."""
        with adapted.wearing(self.vectors):
            return compare(self.reference, _logits(adapted.model, self.forced, self.head))

    def as_guessed(self) -> Agreement:
        """by_ort of the exact graph, which has run these tokens already."""
        assert self.guessed is not None
        return compare(self.reference, self.guessed)

    def by_ort(self, decoder: Opened, merged: bool) -> Agreement:
        """Compares with the same tokens through a graph, with the vectors as inputs."""
        if isinstance(decoder, OrtEncoder):
            return compare(self.reference, np.concatenate(self._by_encoder(decoder, merged)))
        fed = as_inputs(self.vectors)
        return compare(self.reference, np.concatenate([decoder.logits(*pair, fed) for pair in self.forced]))

    def _by_encoder(self, encoder: OrtEncoder, merged: bool) -> list[Floats]:
        head = self.head
        fed = as_inputs(self.vectors) | ({} if head is None or merged else head.inputs)
        kind = (head is not None, head is not None and head.per_token)
        return [encoder.logits(text, fed, *kind) for text, _ in self.forced]


def gate(
    plan: Build,
    adapted: AdaptedBase,
    trained: Sequence[Trained],
    tests: Tests,
    seen: Tests,
    graphs: Mapping[str, ir.Model],
    folder: Path,
    shipped: Mapping[str, Path],
) -> dict[str, Parity]:
    """Agreement of torch and ONNX Runtime, by adapter. Raises ParityError if they disagree. An int8 cache is calibrated
    on the way, on the lines in `seen`. `graphs` were written into `folder`; `shipped` are the files that are published.

    The graphs are opened one level at a time: each session holds its own packed copy of the weights.
    """
    written = {name: folder / file for name, (file, _) in places(adapted.model).items()}
    # beside the weight file that they share
    exact = {name: path.with_name(f"exact-{path.name}") for name, path in written.items()}
    for name, graph in graphs.items():
        AccuracyLevel(0)(graph)
        ir.save(graph, exact[name])
    cases: dict[str, Case] = {}
    found: dict[str, dict[str, Agreement]] = {}
    between = {"four_bit_products": written} if written != shipped else {}
    for kind, paths in ({"exact": exact} | between | {"shipped": shipped}).items():
        opened = _opened(paths, adapted.base)
        cases = cases or _cases(plan, adapted, trained, tests, opened if isinstance(opened, OrtDecoder) else None)
        for name, case in cases.items():
            known = kind == "exact" and case.guessed is not None
            found.setdefault(name, {})[kind] = case.as_guessed() if known else case.by_ort(opened, not adapted.scaled)
        prompts = folder / PROMPT_GRAPH if (folder / PROMPT_GRAPH).is_file() else None
        if kind == "shipped" and isinstance(opened, OrtDecoder) and plan.export.cache == "int8":
            most = largest_kept(opened, texts_seen(plan, adapted, trained, seen), pairs_of(ir.load(paths[DECODER])))
            for graph in (paths[DECODER], *([prompts] if prompts else [])):
                with_int8_cache(graph, most)
            del opened
            opened = OrtDecoder(paths[DECODER])
            for name, case in cases.items():
                found[name] |= {"float_cache": found[name][kind], kind: case.by_ort(opened, not adapted.scaled)}
        if kind == "shipped" and isinstance(opened, OrtDecoder) and prompts:
            del opened
            opened = OrtDecoder(paths[DECODER], prompts)
            for name, case in cases.items():
                found[name] |= {"prompts_like_steps": found[name][kind], kind: case.by_ort(opened, False)}
        del opened
    for path in exact.values():
        path.unlink()
    level = load_target(plan.export.target).accuracy_level
    for name, both in found.items():
        causes, kept = approximations(level, both), str(plan.work_folder)
        remarks = check(both["exact"], both["shipped"], plan.parity, f"adapter {name}", kept, causes)
        if remarks:
            say(
                f"warning: {change(causes)} adapter {name} more than [parity] allows: "
                f"{'; '.join(remarks)}; {remedy(causes)}"
            )
    return {name: decode(Parity, {kind: a.to_dict() for kind, a in both.items()}) for name, both in found.items()}


def texts_seen(plan: Build, adapted: AdaptedBase, trained: Sequence[Trained], seen: Tests) -> Iterator[Text]:
    """Prompts from the tasks' training lines, for int8 ranges: each task's with its own vectors, some of all tasks with
    none, and rows of random tokens with each.
    """
    draws, words = np.random.default_rng(plan.seed), adapted.model.get_input_embeddings().num_embeddings
    size = min(DRAWN, positions(plan, adapted.base))
    worn: dict[str, Mapping[str, Floats]] = {NONE: {}} if adapted.scaled else {}
    worn |= {t.task.name: as_inputs(t.vectors) if adapted.scaled else {} for t in trained}
    yield from ((draws.integers(0, words, size).tolist(), fed) for fed in worn.values() for _ in range(2))
    for t in trained:
        prompts = [list(adapted.base.tokens.prompt(t.prompt, e.text)) for e in seen[t.task.name][:SEEN]]
        fed = as_inputs(t.vectors) if adapted.scaled else {}
        yield from ((prompt, fed) for prompt in prompts)
        if adapted.scaled:
            yield from ((prompt, {}) for prompt in prompts[: -(-SEEN // len(trained))])


def _opened(paths: Mapping[str, Path], base: BaseModel) -> Opened:
    if DECODER not in paths:
        return OrtEncoder.read(paths[ENCODER])
    if ENCODER in paths:
        return OrtPair.read(paths[ENCODER], paths[DECODER], base.start)
    return OrtDecoder(paths[DECODER])


def recoded(plan: Build, adapted: AdaptedBase, trained: Sequence[Trained], tests: Tests) -> Drift:
    """Moves an NF4 base to the grid that it ships on, in place; measures the change for it and for each adapter."""
    to = plan.export.recode or load_target(plan.export.target).recode
    say(f"writing the NF4 base as {to}, and measuring what that changes")
    cases = _cases(plan, adapted, trained, tests)
    drift = recode(adapted.model, to, adapted.base.block_size)
    assert drift is not None, "a base on NF4 has layers on NF4"
    with computing(adapted.model, torch.float32):
        logits = {name: case.by_torch(adapted).to_dict() for name, case in cases.items()}
    return decode(Drift, asdict(drift) | {"logits": logits})


def _cases(
    plan: Build, adapted: AdaptedBase, trained: Sequence[Trained], tests: Tests, guesses: OrtDecoder | None = None
) -> dict[str, Case]:
    """Cases for the base alone and each adapter; a merged model, whose vectors are in its scales, is one case."""
    if adapted.scaled:
        worn: dict[str, tuple[Vectors, Head | None, Sequence[Trained]]] = {NONE: ({}, None, trained)}
        worn |= {t.task.name: (t.vectors, t.head, [t]) for t in trained}
    else:
        worn = {t.task.name: ({}, t.head, [t]) for t in trained}
    with computing(adapted.model, torch.float32, HELD):
        return {name: _case(plan, adapted, *given, tests, guesses) for name, given in worn.items()}


def _case(
    plan: Build,
    adapted: AdaptedBase,
    vectors: Vectors,
    head: Head | None,
    asked: Sequence[Trained],
    tests: Tests,
    guesses: OrtDecoder | None,
) -> Case:
    """A case from torch's own choices after prompts of these tasks, with its logits. `guesses`: a graph that says what
    they may be, for torch to confirm.
    """
    with adapted.wearing(vectors):
        prompts = _prompts(plan, adapted, asked, tests)
        size, most = positions(plan, adapted.base), plan.parity.decode_steps
        counts = [min(most, max(0, size - _taken(adapted.base, prompt))) for prompt in prompts]
        fed, guessed = as_inputs(vectors), None
        if guesses is not None:
            guessed = [guesses.continued(prompt, count, fed) for prompt, count in zip(prompts, counts, strict=True)]
        guess = None if guessed is None else [tokens for tokens, _ in guessed]
        found = torch_continued(adapted.model, prompts, counts, guess, head)
        forced = [(prompt, chosen) for prompt, (chosen, _) in zip(prompts, found, strict=True)]
        right = guessed is not None and guess == [chosen for chosen, _ in found]
        by_graph = np.concatenate([logits for _, logits in guessed]) if guessed and right else None
        return Case(vectors, forced, np.concatenate([logits for _, logits in found]), head, by_graph)


def _taken(base: BaseModel, prompt: Sequence[int]) -> int:
    """Positions of the decoder that are used before the answer."""
    return len(base.start or prompt)


def _logits(model: Any, forced: Sequence[tuple[list[int], list[int]]], head: Head | None) -> Floats:
    return np.concatenate([torch_logits(model, *pair, head) for pair in forced])


def _prompts(plan: Build, adapted: AdaptedBase, asked: Sequence[Trained], tests: Tests) -> list[list[int]]:
    """Prompts from the tasks' test sentences, taking tasks in turn."""
    texts = [(t.prompt, e.text) for t in asked for e in tests[t.task.name][: plan.parity.prompts]]
    step = max(1, len(texts) // plan.parity.prompts)
    return [list(adapted.base.tokens.prompt(*pair)) for pair in texts[::step][: plan.parity.prompts]]
