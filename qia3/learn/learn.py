"""`qia3 learn`: an adapter from examples, on the device where the bundle is; and its end, `--forget`.

Everything stays on this disk: examples are read where they are, and what is written is BUNDLE (the adapter, put in as
`qia3 adapter import` does) and BUNDLE.learn/NAME, which has the prompt and the labels, but no text of the examples:
their hashes, the losses, the vectors.

BUNDLE.learn/NAME/plan.json    what was asked for (qia3.batching.asked)
BUNDLE.learn/NAME/log.jsonl, state.safetensors, best.safetensors      qia3.learn.run
BUNDLE.learn/NAME/adapter      the vectors as a PEFT checkpoint, once they are learned
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors.numpy import load_file

from qia3.adapters import check_free, put_in, take_out
from qia3.batching.asked import differences, read_asked, write_asked
from qia3.bundle.adapter import Adapter
from qia3.bundle.cache_range import RANGE
from qia3.bundle.opened import Bundle
from qia3.bundle.peft import write_peft
from qia3.bundle.records import Record
from qia3.errors import ConfigError
from qia3.learn.gradients import SLOTS, Gradients, check_learns
from qia3.learn.lesson import Lesson, Prepared, prepare
from qia3.learn.places import Places
from qia3.learn.run import BEST, STATE, Run
from qia3.machine import give_back_memory
from qia3.progress import bar, counting, say
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.evaluate import Evaluation, evaluate
from qia3.runtime.load import open_engine
from qia3.storage import locked
from qia3.tokens import Tokens

ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True)
class Learned:
    """What came of it. `score`: of the file that was named to test on."""

    bundle: Path
    name: str
    record: Record
    score: Evaluation | None


def work_folder(bundle: Path, name: str) -> Path:
    return bundle.with_name(f"{bundle.name}.learn") / name


def learn(
    bundle: Path, lesson: Lesson, test: Path | None = None, slots: int = SLOTS, threads: int | None = None
) -> Learned:
    """Trains an adapter on the bundle's own weights and puts it in. A run that was stopped goes on.

    Raises ConfigError, DataError, AdapterError before long work; Interrupted.
    """
    opened = Bundle.open(bundle)
    check_learns(opened)
    check_free(bundle, lesson.name, {*opened.tasks, *opened.adapters})
    prepared = prepare(opened, lesson, test)
    folder = work_folder(bundle, lesson.name)
    with locked(folder, "wait for it to end"):
        _begin(folder, prepared, opened.fingerprint, lesson.seed)
        record = _train(opened, prepared, lesson, folder, slots, threads)
    score = None
    if prepared.data.test:
        whole = Bundle.open(bundle, verify=False)
        engine = open_engine(whole, threads)
        bank, track = AdapterBank(whole), partial(bar, title="evaluating")
        score = evaluate(engine, bank, prepared.data.test, lesson.name, track=track)
    return Learned(bundle, lesson.name, record, score)


def forget(bundle: Path, name: str) -> None:
    """Takes an adapter that was learned here out of the bundle, and removes what was kept of it.

    Raises ConfigError where none of that name was learned on this device.
    """
    folder = work_folder(bundle, name)
    if not folder.is_dir():
        known = sorted(p.name for p in folder.parent.glob("*")) if folder.parent.is_dir() else []
        raise ConfigError(f"nothing called {name!r} was learned for {bundle}; learned: {', '.join(known) or 'nothing'}")
    with locked(folder, "wait for it to end"):
        if name in Bundle.open(bundle).adapters:
            take_out(bundle, name)
        _clear(folder)
    if not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def _begin(folder: Path, prepared: Prepared, fingerprint: str, seed: int) -> None:
    """Keeps the state of the same plan, clears that of another."""
    asked = prepared.asked(fingerprint, seed)
    was = read_asked(folder)
    if was is not None and (changed := differences(was, asked)):
        say(f"{folder} was for another plan ({'; '.join(changed[:3])}): begun anew")
        _clear(folder)
    write_asked(asked, folder)


def _clear(folder: Path) -> None:
    """Removes everything but the lock, which whoever holds it removes."""
    for entry in folder.iterdir():
        if entry.name != ".lock":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _train(opened: Bundle, prepared: Prepared, lesson: Lesson, folder: Path, slots: int, threads: int | None) -> Record:
    settings, name = prepared.settings, prepared.task.name
    limits = load_file(opened.path / RANGE) if (opened.path / RANGE).is_file() else {}
    places = Places(opened.manifest.sites, limits)
    tokens = Tokens.read(opened.path / "tokenizer.json", opened.architecture.vocab_size)
    examples, validation = prepared.examples(tokens), prepared.examples(tokens, held_back=True)
    gradients = Gradients(opened, settings.losses, settings.row_tokens, slots, threads)
    say(f"learning {name}: {places.parameters:,} parameters, {settings.steps} steps, float32, {len(examples)} examples")
    run = Run(folder, places, gradients, examples, validation, settings)
    with counting(name, settings.steps, "steps") as tell:
        vectors, record = run.train(lesson.seed, prepared.start, tell)
    del run, gradients
    give_back_memory()  # before the bundle is read back
    adapter = Adapter(vectors, opened.fingerprint, prepared.task)
    write_peft(folder / ADAPTER_FOLDER, adapter, opened.manifest.sites, opened.manifest.base.reference)
    put_in(opened.path, adapter, record)
    for file in (STATE, BEST):
        (folder / file).unlink(missing_ok=True)
    return record
