"""A bundle from Python, without torch: what `qia3.open` gives.

    model = qia3.open("dist/home-intents")
    model.label("could you dim the hall a bit", "home-intents")                     # "lights"
    model.labels(["dim the hall", "lock up"], ["home-intents", "doors"])            # one batch, an adapter for each
    "".join(model.generate("dim the hall", "home-commands"))                        # as it comes, in pieces
    model.embed(["dim the hall", "lights off"])                                     # of an encoder: float32 [2, hidden]

`adapter` is a name, or "none" for the base alone; left out it is the only one that the bundle has. `task` asks an
adapter, or the base, the question of another task. The parts are there for those who want more: the engine, and the
functions of qia3.runtime.
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
    """An opened bundle. Not for several threads at once: a server is `qia3 serve`."""

    def __init__(self, path: str | Path, threads: int | None = None, packed: str | Path | None = None) -> None:
        """`threads`: by default as many as there are cores; `packed`: a folder that keeps the weights as this processor
        wants them, from where they are mapped. Raises BundleError.
        """
        self.bundle = Bundle.open(Path(path))
        self.engine: AnyEngine = open_engine(self.bundle, threads, None if packed is None else Path(packed))
        self._bank = AdapterBank(self.bundle)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the bundle's adapters; of a merged one, the task that is in its weights."""
        merged = self.bundle.merged_task
        return self.bundle.adapters or (() if merged is None else (merged,))

    def label(
        self, text: str, adapter: str | None = None, *, task: str | None = None, choices: Sequence[str] | None = None
    ) -> str:
        """The best of the task's choices, or of these."""
        name = self._meant(adapter)
        return label(self.engine, task_of(self.engine, name, task), self._bank.vectors(name), text, choices)

    def scores(
        self, text: str, adapter: str | None = None, *, task: str | None = None, choices: Sequence[str] | None = None
    ) -> Mapping[str, float]:
        """Each choice's probability, given that it is one of them."""
        name = self._meant(adapter)
        return classify(self.engine, task_of(self.engine, name, task), self._bank.vectors(name), text, choices).scores

    def labels(self, texts: Sequence[str], adapters: str | Sequence[str]) -> list[str]:
        """Of many texts in one batch, each asked its own adapter's question; one name is for all of them."""
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
        """Text in pieces, as it comes."""
        name = self._meant(adapter)
        vectors, job = self._bank.vectors(name), task_of(self.engine, name, task)
        return reply(self.engine, job, vectors, text, max_new_tokens, decoding)

    def tags(self, text: Text, adapter: str | None = None) -> list[tuple[str, str]]:
        """Each word with its label; of an encoder."""
        name = self._meant(adapter)
        found = tag(self.engine, task_of(self.engine, name), self._bank.vectors(name), text)
        return list(zip(found.words, found.labels, strict=True))

    def embed(self, texts: Sequence[str], adapter: str | None = NONE) -> Floats:
        """float32 [texts, hidden]; of an encoder, by its base unless an adapter is named."""
        if not isinstance(self.engine, Encoder):
            raise ConfigError(f"{self.bundle.path} is no encoder: only those give embeddings")
        return embed_texts(self.engine, texts, adapter)

    def prepare(self, adapter: str | None = None, *, task: str | None = None) -> None:
        """Runs what the task's prompts all begin with, once, so that later questions start behind it."""
        name = self._meant(adapter)
        prepare(self.engine, task_of(self.engine, name, task), self._bank.vectors(name))

    def _meant(self, adapter: str | None) -> str:
        """Raises ConfigError where none is named and there are several."""
        return only_adapter(self.bundle) if adapter is None else adapter


def only_adapter(bundle: Bundle) -> str:
    """The adapter that is meant when none is named. Raises ConfigError."""
    names = bundle.adapters or ((bundle.merged_task,) if bundle.merged_task else (NONE,))
    if len(names) > 1:
        raise ConfigError(f"{bundle.path} has several adapters, name one: {', '.join(names)} or none")
    return names[0]
