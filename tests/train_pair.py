"""Trains a mixture on a tiny encoder-decoder, with several prompts and a demonstration: a program, so that several
processes can share it.

    python tests/train_pair.py BASE WORK [INIT_ADAPTER]
"""

from __future__ import annotations

import sys
from pathlib import Path

from qia3.base.load import Asked, load_base
from qia3.batching.data import Data
from qia3.config import Task
from qia3.examples import Example
from qia3.ia3.adapted import AdaptedBase
from qia3.recipe import Train
from qia3.train.task import Job, Trained, train_task

SAID = {
    "lights": ["turn the lights off", "lights on", "the lamp is dim", "light the hall"],
    "music": ["music and more music", "play a song", "stop the music", "a louder song"],
    "lock": ["lock the door", "open the door", "the door is open", "lock up"],
}
PAIRS = tuple(Example(text, label) for label, texts in SAID.items() for text in texts)
SETTINGS = Train(steps=8, batch_size=4, learning_rate=3e-2, warmup_steps=2, checkpoint_every=4, compute="float32")


def job(settings: Train = SETTINGS) -> Job:
    """A task of its own examples and another's."""
    files = {"train": "a.jsonl", "test": "b.jsonl"}
    own = Task(name="topics", kind="classify", prompt=["Topic of {text}?", "{text}: what is it"], shots=1, **files)
    other = Task(name="commands", kind="generate", prompt="Do: {text}", **files)
    of_own = Data(PAIRS[::2], PAIRS[1::2], tuple(SAID), PAIRS[1:6:2])
    return Job(own, of_own, settings, 0, "mean", ((other, Data(PAIRS[1::2], PAIRS[::2], None)),))


def trained(base: Path, work: Path, settings: Train = SETTINGS) -> Trained:
    adapted = AdaptedBase.of(load_base(Asked(str(base), block_size=32)))
    return train_task(adapted.base, adapted.scaled, job(settings), work)


if __name__ == "__main__":
    start = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    trained(Path(sys.argv[1]), Path(sys.argv[2]), SETTINGS.model_copy(update={"init_adapter": start}))
