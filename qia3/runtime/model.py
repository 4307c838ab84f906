"""A bundle from Python, without torch: the result of `qia3.open`.

    model = qia3.open("dist/home-intents")
    model.label("could you dim the hall a bit", "home-intents")                     # "lights"
    model.labels(["dim the hall", "lock up"], ["home-intents", "doors"])            # one batch, one adapter per text
    "".join(model.generate("dim the hall", "home-commands"))                        # streamed in pieces
    model.embed(["dim the hall", "lights off"])                                     # encoders only: float32 [2, hidden]

`adapter` is a name, or "none" for the base alone; by default the bundle's only adapter. `task` uses the prompt of
another task. For more control, use the engine and the functions of qia3.runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from qia3.bundle.opened import Bundle
from qia3.errors import ConfigError
from qia3.names import NONE
from qia3.runtime.adapters import AdapterBank, for_texts
from qia3.runtime.answer import (
    answer_of,
    classify,
    label,
    prepare,
    prompt_of,
    reply,
    tag,
    task_of,
)
from qia3.runtime.cache import Floats
from qia3.runtime.decoding import GREEDY, Decoding
from qia3.runtime.encoder import Encoder
from qia3.runtime.load import AnyEngine, open_engine
from qia3.runtime.score import chosen, rank_batch
from qia3.runtime.tags import Text
from qia3.runtime.texts import classify_texts, embed_texts


class Model:
    """An opened bundle. Not thread-safe; for concurrent requests use `qia3 serve`."""

    def __init__(self, path: str | Path, threads: int | None = None, packed: str | Path | None = None) -> None:
        """`threads`: by default the number of physical cores; `packed`: a folder to cache weights packed for this
        processor, which are then memory-mapped. Raises BundleError.
        """
        self.bundle = Bundle.open(Path(path))
        self.engine: AnyEngine = open_engine(self.bundle, threads, None if packed is None else Path(packed))
        self._bank = AdapterBank(self.bundle)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the bundle's adapters; for a merged bundle, the task in its weights."""
        merged = self.bundle.merged_task
        return self.bundle.adapters or (() if merged is None else (merged,))

    def label(
        self, text: str, adapter: str | None = None, *, task: str | None = None, choices: Sequence[str] | None = None
    ) -> str:
        """The best of the task's choices, or of `choices`."""
        name = self._meant(adapter)
        return label(self.engine, task_of(self.engine, name, task), self._bank.vectors(name), text, choices)

    def scores(
        self, text: str, adapter: str | None = None, *, task: str | None = None, choices: Sequence[str] | None = None
    ) -> Mapping[str, float]:
        """The probability of each choice, given that one of them is right."""
        name = self._meant(adapter)
        return classify(self.engine, task_of(self.engine, name, task), self._bank.vectors(name), text, choices).scores

    def labels(self, texts: Sequence[str], adapters: str | Sequence[str]) -> list[str]:
        """The labels of many texts in one batch, each with its own adapter; a single name applies to all."""
        if isinstance(self.engine, Encoder):
            return [answer.label for answer in classify_texts(self.engine, texts, adapters)]
        engine = self.engine
        names, vectors = for_texts(self.bundle, len(texts), adapters)
        tasks = [task_of(engine, name) for name in names]
        if without := [task.name for task in tasks if not task.choices]:
            raise ConfigError(f"task {without[0]!r} has no choices to rank")
        prompts = [prompt_of(engine, task, text) for task, text in zip(tasks, texts, strict=True)]
        choices = [[answer_of(engine, task, choice) for choice in task.choices or ()] for task in tasks]
        found = []
        for task, tokens, sums in zip(tasks, choices, rank_batch(engine, prompts, choices, vectors), strict=True):
            sizes = [len(t) if task.ranking == "mean" else 1 for t in tokens]
            found.append(chosen(task.choices or (), sums / sizes).label)
        return found

    def generate(
        self,
        text: str,
        adapter: str | None = None,
        *,
        task: str | None = None,
        max_new_tokens: int | None = None,
        decoding: Decoding = GREEDY,
    ) -> Iterator[str]:
        """Generates text, streamed in pieces."""
        name = self._meant(adapter)
        vectors, job = self._bank.vectors(name), task_of(self.engine, name, task)
        return reply(self.engine, job, vectors, text, max_new_tokens, decoding)

    def tags(self, text: Text, adapter: str | None = None) -> list[tuple[str, str]]:
        """Each word with its label (encoders only)."""
        name = self._meant(adapter)
        found = tag(self.engine, task_of(self.engine, name), self._bank.vectors(name), text)
        return list(zip(found.words, found.labels, strict=True))

    def embed(self, texts: Sequence[str], adapter: str | None = NONE) -> Floats:
        """Embeddings, float32 [texts, hidden], of an encoder's base, or with an adapter."""
        if not isinstance(self.engine, Encoder):
            raise ConfigError(f"{self.bundle.path} is not an encoder: only encoders give embeddings")
        return embed_texts(self.engine, texts, adapter)

    def prepare(self, adapter: str | None = None, *, task: str | None = None) -> None:
        """Runs the common prefix of the task's prompts once, so that later questions start after it."""
        name = self._meant(adapter)
        prepare(self.engine, task_of(self.engine, name, task), self._bank.vectors(name))

    def _meant(self, adapter: str | None) -> str:
        """The adapter to use. Raises ConfigError if none is named and there are several, AdapterError if it is unknown."""
        name = only_adapter(self.bundle) if adapter is None else adapter
        self._bank.vectors(name)  # or it would be called an unknown task, since its task is looked up first
        return name


def only_adapter(bundle: Bundle) -> str:
    """The adapter to use if none is named. Raises ConfigError if there are several."""
    names = bundle.adapters or ((bundle.merged_task,) if bundle.merged_task else (NONE,))
    if len(names) > 1:
        raise ConfigError(f"{bundle.path} has several adapters; name one: {', '.join(names)} or none")
    return names[0]
