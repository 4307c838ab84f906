"""What a build is asked to do, read from TOML.

    name = "home-intents"            # the bundle's name; default output: dist/NAME
    seed = 0

    [base]
    model = "smollm2-135m-instruct"  # an alias, a folder, a .gguf file or a hub id
    block_size = 64                  # at most 16, 32, 64, 128 or 256 inputs share one scale: smaller is better, larger and slower
    symmetric = false                # true: no zero points, codes around 8
    calibration = "own"              # round for the inputs that layers get: on text the model makes ("own"), on a text file, or not ("none")

    [train]                          # defaults for every task; a task may override any of them under [task.train]
    steps = 120
    batch_size = 8
    learning_rate = 1e-2

    [[task]]
    name = "home-intents"
    kind = "classify"                # or "generate"
    prompt = "Which device? {text}"
    train = "train.jsonl"            # {"text": ..., "label": ...}; generate: {"text": ..., "target": ...}
    test = "test.jsonl"

    [export]
    target = "ort-cpu"               # see `qia3 targets`
    mode = "side"                    # or "merged", with merge_task

Paths of data are relative to the build file; `output` is relative to the current folder.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from qia3.errors import ConfigError

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


class Section(BaseModel):
    """A part of the build file: unknown keys are refused, values cannot change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Base(Section):
    """The base model and the grid its weights are stored on."""

    model: str
    block_size: Literal[16, 32, 64, 128, 256] = 64
    symmetric: bool = False
    calibration: str = "own"


class Train(Section):
    """How the vectors are trained. `steps` are optimiser updates; `compute` is the matrix type, the vectors are always bfloat16."""

    steps: int = Field(default=120, ge=1)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-2, gt=0)
    warmup_steps: int = Field(default=10, ge=0)
    max_length: int = Field(default=256, ge=8)
    checkpoint_every: int = Field(default=25, ge=1)
    compute: Literal["auto", "float32", "bfloat16"] = "auto"


class Task(Section):
    """One job of the model: its data, its prompt, its adapter's name."""

    name: str
    kind: Literal["classify", "generate"]
    prompt: str = "{text}"
    chat: bool = True
    train: Path
    test: Path
    choices: tuple[str, ...] | None = None
    max_new_tokens: int = Field(default=32, ge=1)
    overrides: dict[str, Any] = Field(default_factory=dict, alias="training")

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME.match(value) or value in ("none", "."):
            raise ValueError("a task's name is letters, digits, '.', '_' and '-', and not 'none'")
        return value

    @field_validator("prompt")
    @classmethod
    def _prompt(cls, value: str) -> str:
        if value.count("{text}") != 1:
            raise ValueError("a prompt holds {text} exactly once")
        return value


class Export(Section):
    """What the ONNX graph looks like. `query_vectors` adds places for vectors on the queries, which PEFT trains for some families."""

    target: str = "ort-cpu"
    mode: Literal["side", "merged"] = "side"
    merge_task: str | None = None
    logits: Literal["last", "all"] = "last"
    context_length: int = Field(default=2048, ge=16)
    query_vectors: bool = False


class Parity(Section):
    """Limits of the gate. `max_difference` bounds |logit difference| at accuracy_level 0; the others the graph as shipped."""

    prompts: int = Field(default=8, ge=1)
    decode_steps: int = Field(default=4, ge=0)
    max_difference: float = Field(default=1e-3, gt=0)
    max_kl: float = Field(default=0.02, gt=0)
    min_top1: float = Field(default=0.9, ge=0, le=1)


class Build(Section):
    """The whole build file."""

    name: str
    seed: int = 0
    output: Path | None = None
    base: Base
    train: Train = Train()
    task: tuple[Task, ...] = Field(min_length=1)
    export: Export = Export()
    parity: Parity = Parity()

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME.match(value):
            raise ValueError("a name is letters, digits, '.', '_' and '-'")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Build:
        names = [t.name for t in self.task]
        if doubled := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"two tasks are called {doubled[0]!r}; names must differ")
        if self.export.mode == "merged" and self.export.merge_task not in names:
            raise ValueError(f"mode 'merged' needs merge_task (--task), one of {', '.join(names)}")
        for task in self.task:
            self.training_of(task)
        return self

    def training_of(self, task: Task) -> Train:
        """The [train] table with the task's own [task.training] keys laid over it."""
        return Train.model_validate({**self.train.model_dump(), **task.overrides})

    @property
    def output_folder(self) -> Path:
        """Where the bundle goes."""
        return self.output if self.output is not None else Path("dist") / self.name


def read_build(path: Path, **overrides: Any) -> Build:
    """Reads a build file. `overrides` maps dotted keys ("export.mode") to values given at the command line; None is skipped.

    Raises ConfigError with the file, the line (malformed TOML) or the key and the nearest right one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ConfigError(f"cannot read the build file {path}: {reason}") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for dotted, value in overrides.items():
        if value is not None:
            *tables, key = dotted.split(".")
            place = document
            for table in tables:
                place = place.setdefault(table, {})
            if isinstance(place, dict):  # else the file has no table there, which is told below
                place[key] = value
    try:
        build = Build.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(_complaint(e, text) for e in error.errors())) from error
    here = path.parent
    tasks = tuple(t.model_copy(update={"train": here / t.train, "test": here / t.test}) for t in build.task)
    model = here / build.base.model
    text = build.base.calibration
    found = {"model": str(model)} if model.exists() else {}
    base = build.base.model_copy(update=found | ({} if text in ("own", "none") else {"calibration": str(here / text)}))
    return build.model_copy(update={"task": tasks, "base": base})


def _complaint(error: Any, text: str) -> str:
    """One pydantic error as a clause: key, line where it stands, what is wrong, and the nearest right key."""
    location = [part for part in error["loc"] if isinstance(part, str)]
    key = location[-1] if location else ""
    dotted = ".".join(str(part) for part in error["loc"])
    where = (
        next((f" (line {i})" for i, line in enumerate(text.splitlines(), 1) if re.match(rf"\s*\[*{re.escape(key)}\b", line)), "")
        if key
        else ""
    )
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, _keys_beside(location), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(_keys_beside(location))}"
        return f"unknown key {dotted!r}{where}{hint}"
    if error["type"] == "missing":
        return f"{dotted!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{dotted}{where}: {message}" if dotted else message


def _keys_beside(location: list[str]) -> list[str]:
    """The keys allowed in the table that `location`'s last part stands in."""
    tables: dict[str, type[Section]] = {"base": Base, "train": Train, "task": Task, "export": Export, "parity": Parity}
    section: type[Section] = tables.get(location[-2], Build) if len(location) > 1 else Build
    return [field.alias or name for name, field in section.model_fields.items()]
