"""The build file: what a build is asked to do, in TOML.

    name = "home-intents"            # the bundle's name; default output: dist/NAME
    seed = 0

    [base]
    model = "smollm2-135m-instruct"  # an alias, a folder, a .gguf file or a hub id
    grid = "int4"                    # or "nf4", bitsandbytes' codes (target "nf4-exact", or any other with recode)
    block_size = 64                  # inputs that share a scale: 16, 32, 64, 128 or 256. Smaller: more accurate, but larger and slower
    symmetric = false                # true: no zero points, codes around 8
    calibration = "own"              # calibrate rounding on text sampled from the model ("own"), on a text file, or not ("none")
    eight_bit = ["value", "down@0-2,11"]  # layers kept at 8 bits; also "head", "query", "key", "output", "up". Default: none
    blocks = { 32 = ["up@0-3"] }     # layers with another block size; the same names. Default: none
    train_scales = false             # true: then train the blocks' scales towards the float model's answers. No more bytes, minutes once
    bits = 5.0                       # or: average bits per weight; the build picks the layers that gain most from 8 bits or blocks of 32

    [train]                          # defaults for every task; a task may override any of them under [task.training]
    preset = "t-few"                 # or "short"; explicit keys override it. Without a preset: the values below
    steps = 120                      # optimiser updates
    batch_size = 8                   # examples per update, over all processes and accumulated parts
    accumulate = 1                   # parts in which a step's batch is computed
    learning_rate = 2e-2             # its peak: up over warmup_steps, then down to zero
    optimizer = "adamw"              # or "adafactor"
    losses = ["lm", "unlikelihood", "length-normalised"]  # T-Few's. ["lm"] uses no wrong answers: faster, less accurate. Generation: lm
    answers = 16                     # answers compared per example and step, at most: the right one and others, drawn anew each time
    gradient_checkpointing = false   # true: less memory, one more forward pass per step
    row_tokens = 512                 # with packing: maximum tokens per row
    validation = 0.1                 # fraction held out, by a hash of the text; or a file. The best checkpoint is kept
    patience = 3                     # stop after this many checkpoints without a better validation loss
    init_adapter = "general.onnx_adapter"  # start from a PEFT folder or an .onnx_adapter instead of from ones

    [[task]]
    name = "home-intents"
    kind = "classify"                # or "generate", or, on an encoder, "token-classification"
    prompt = "Which device? {text}"  # or several, one drawn per example and step: ["Which device? {text}", "{text} Device:"]
    eval_prompt = "Device: {text}"   # the prompt in the bundle, if not the first
    train = "train.jsonl"            # or several. {"text": ..., "label": ..., and "choices": [...] if it has its own}; generate: "target";
                                     # token-classification: {"tokens": [...], "tags": [...]}
    test = "test.jsonl"
    ranking = "sum"                  # of log-probabilities, or their "mean" per token; default: what the losses train
    chat = true                      # false: without the base's chat template
    end = "<|im_end|>"               # the token that ends an answer. Default: the base's own
    overlong = "refuse"              # for texts longer than the context; "cut" shortens them and reports how many
    shots = 0                        # demonstrations before the question, drawn from the task's other examples
    # name = "*", train = "tasks/*.jsonl": one task per file (qia3/task_files.py)
    mixture = ["quiz", "commands"]   # also train on these tasks' examples, with their prompts (without `train`: only on these)

    [export]
    target = "ort-cpu"               # see `qia3 targets`
    mode = "side"                    # or "merged", with merge_task
    recode = "int8"                  # or "int4": what an NF4 base ships as, except with the target nf4-exact; by default the target's
    cache = "float32"                # or "int8": a quarter of the memory (decoders)
    prompts = "q4"                   # or "int8": prompts about twice as fast, with int8 weights; for a decoder, in a second graph

Paths of data are relative to the build file. `output`, the bundle's folder, and `work`, the folder for trained vectors
(default: OUTPUT.work), are relative to the current folder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from qia3.complaints import complaints, nearest, worded
from qia3.errors import ConfigError
from qia3.names import check_file_name, check_name
from qia3.parse import parse_toml, read_text
from qia3.recipe import Section
from qia3.recipe import Train as Train
from qia3.task_files import task_files

LAYERS = re.compile(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*")
NUMBER = re.compile(r"[0-9]{1,4}")
STACKS = ("encoder", "decoder")
LAYER_ROLES = ("head", "query", "key", "value", "output", "up", "down")
LARGEST = 1 << 20  # bytes of a build file


class Base(Section):
    """The base model and the grid its weights are stored on."""

    model: str
    grid: Literal["int4", "nf4"] = "int4"
    block_size: Literal[16, 32, 64, 128, 256] = 64
    symmetric: bool = False
    calibration: str = "own"
    eight_bit: tuple[str, ...] = ()
    blocks: dict[Literal[16, 32, 64, 128, 256], tuple[str, ...]] = Field(default_factory=dict)
    bits: float | None = Field(default=None, ge=4, le=9)
    train_scales: bool = False

    @field_validator("blocks", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        """TOML keys are strings; block sizes are numbers."""
        return (
            {int(k) if NUMBER.fullmatch(str(k)) else k: v for k, v in value.items()}
            if isinstance(value, dict)
            else value
        )

    @field_validator("eight_bit")
    @classmethod
    def _roles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _layers(value)

    @field_validator("blocks")
    @classmethod
    def _each(cls, value: dict[Any, tuple[str, ...]]) -> dict[Any, tuple[str, ...]]:
        return {block: _layers(roles) for block, roles in sorted(value.items())}

    @model_validator(mode="after")
    def _whole(self) -> Base:
        named = self.eight_bit or self.blocks
        if self.grid == "nf4" and (self.block_size == 16 or named):
            raise ValueError(
                "on the nf4 grid block_size must be 32 or more, the same for all layers (no eight_bit, no blocks)"
            )
        if self.bits is not None and (self.grid == "nf4" or named or self.calibration == "none"):
            raise ValueError('bits cannot be combined with eight_bit, blocks, grid = "nf4" or calibration = "none"')
        if self.train_scales and (self.grid == "nf4" or self.calibration == "none"):
            raise ValueError('train_scales cannot be combined with grid = "nf4" or calibration = "none"')
        return self


def _layers(value: tuple[str, ...]) -> tuple[str, ...]:
    """[STACK.]ROLE or [STACK.]ROLE@LAYERS, in order, each once. Raises ValueError."""
    for asked in value:
        path, at, layers = asked.partition("@")
        stack, dot, role = path.rpartition(".")
        if dot and stack not in STACKS:
            raise ValueError(f"there is no stack called {stack[:80]!r}; an encoder-decoder has {' and '.join(STACKS)}")
        if role not in LAYER_ROLES:
            raise ValueError(f"there are no layers called {role!r}{nearest(role, list(LAYER_ROLES))}")
        if at and not LAYERS.fullmatch(layers):
            raise ValueError(f"{asked[:80]!r}: after '@' layer numbers are expected, such as 0-2,11")
        for first, last in (ends.split("-") for ends in layers.split(",") if "-" in ends):
            if int(first) > int(last):
                raise ValueError(f"{asked!r}: {first}-{last} is empty; put the lower number first")
    return tuple(sorted(set(value)))


class Task(Section):
    """One task: its data, its prompt, its adapter's name."""

    name: str
    kind: Literal["classify", "generate", "token-classification"]
    prompt: str | tuple[str, ...] = "{text}"
    eval_prompt: str | None = None
    chat: bool = True
    train: Path | tuple[Path, ...] = ()
    test: Path
    choices: tuple[str, ...] | None = None
    ranking: Literal["sum", "mean"] | None = None
    shots: int = Field(default=0, ge=0)
    mixture: tuple[str, ...] = ()
    max_new_tokens: int = Field(default=32, ge=1, lt=2**31)
    end: str | None = None
    overlong: Literal["refuse", "cut"] = "refuse"
    overrides: dict[str, Any] = Field(default_factory=dict, alias="training")

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_name(value)

    @field_validator("prompt", "train", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        several = isinstance(value, list | tuple) and value and all(isinstance(v, str | Path) for v in value)
        if not several and not isinstance(value, str | Path):
            raise ValueError("a string or a list of strings is expected")
        return tuple(value) if several else value

    @field_validator("prompt", "eval_prompt")
    @classmethod
    def _prompt(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if any(prompt.count("{text}") != 1 for prompt in _several(value)):
            raise ValueError("a prompt must contain {text} exactly once")
        return value

    @field_validator("choices")
    @classmethod
    def _apart(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value and (not all(value) or len(set(value)) < len(value) or len(value) == 1):
            raise ValueError("choices must be two or more different, non-empty answers")
        return value

    @field_validator("overrides")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if key not in Train.model_fields:
                raise ValueError(f"unknown key {key!r}{nearest(key, list(Train.model_fields))}")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Task:
        if not self.train and not self.mixture:
            raise ValueError(
                f"task {self.name!r} needs 'train' (files of examples) or 'mixture' (other tasks whose "
                "examples it trains on)"
            )
        if self.kind != "classify" and self.ranking is not None:
            does = "generates" if self.kind == "generate" else "labels each word"
            raise ValueError(f"task {self.name!r} {does}: 'ranking' only applies to choices")
        return self

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts that training draws from."""
        return _several(self.prompt)

    @property
    def question(self) -> str:
        """The prompt in the bundle."""
        return self.eval_prompt or self.prompts[0]

    @property
    def train_files(self) -> tuple[Path, ...]:
        return _several(self.train)


def _several(value: Any) -> tuple[Any, ...]:
    """A single value or several, as a tuple."""
    return () if value is None else value if isinstance(value, tuple) else (value,)


class Export(Section):
    """The [export] table: what the ONNX graph looks like.

    `query_vectors` adds inputs for vectors on the queries, which PEFT trains for some families. `cache`: type of the
    cached keys and values (qia3.graph.cache). `recode` None: as the target says. `prompts`: "int8" adds a decoder for
    prompts with int8 products, or replaces an encoder's (qia3.rounding). `trainable` adds a training graph
    (qia3.graph.trainable).
    """

    target: str = "ort-cpu"
    mode: Literal["side", "merged"] = "side"
    merge_task: str | None = None
    logits: Literal["last", "all"] = "last"
    context_length: int = Field(default=2048, ge=16, le=2**24)
    query_vectors: bool = False
    recode: Literal["int8", "int4"] | None = None
    cache: Literal["float32", "int8"] = "float32"
    prompts: Literal["q4", "int8"] = "q4"
    trainable: bool = False


class Parity(Section):
    """How torch and ONNX Runtime are compared.

    `max_difference` limits |logit difference| at accuracy_level 0 and is a gate. The other two concern the graph as
    shipped, whose int8 activations are an approximation: beyond them there is a warning.
    """

    prompts: int = Field(default=8, ge=1)
    decode_steps: int = Field(default=4, ge=0)
    max_difference: float = Field(default=1e-3, gt=0)
    max_kl: float = Field(default=0.02, gt=0)
    min_top1: float = Field(default=0.9, ge=0, le=1)

    def remarks(self, kl: float, top1: float) -> list[str]:
        """The limits that the graph as shipped exceeds, in words."""
        far = [] if kl <= self.max_kl else [f"KL divergence {kl:.3g} nats (max_kl {self.max_kl:g})"]
        few = [] if top1 >= self.min_top1 else [f"same top token {top1:.1%} (min_top1 {self.min_top1:.1%})"]
        return far + few


class Build(Section):
    """The whole build file."""

    name: str
    seed: int = Field(default=0, ge=0, lt=2**32)
    output: Path | None = None
    work: Path | None = None
    base: Base
    train: Train = Train()
    task: tuple[Task, ...] = Field(min_length=1)
    export: Export = Export()
    parity: Parity = Parity()

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_file_name(value)

    @model_validator(mode="after")
    def _whole(self) -> Build:
        names = [t.name for t in self.task]
        if doubled := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"two tasks are called {doubled[0]!r}; give each its own name")
        for name in names:
            check_name(name, names)
        if self.export.mode == "merged" and self.export.merge_task not in names:
            raise ValueError(f"mode 'merged' needs merge_task (--task), one of {', '.join(names)}")
        for i, task in enumerate(self.task):
            self._check_training(i, task)
            self._check_mixture(task)
        return self

    def _check_training(self, i: int, task: Task) -> None:
        """Checks [train] overlaid by the task's keys; errors are reported as keys of [task.training]."""
        try:
            self.training_of(task)
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                "Build",
                [
                    InitErrorDetails(
                        type=PydanticCustomError("training", "{told}", {"told": worded(e)}),
                        loc=("task", i, "training", *e["loc"]),
                        input=e["input"],
                    )
                    for e in error.errors()
                ],
            ) from error

    def _check_mixture(self, task: Task) -> None:
        """A mixture consists of other tasks with examples of their own."""
        others = {t.name: t for t in self.task if t.name != task.name}
        able = sorted(name for name, other in others.items() if not other.mixture)
        for name in task.mixture:
            if name not in others:
                raise ValueError(f"the mixture of {task.name!r} names {name!r}{nearest(name, able)}")
            if others[name].mixture:
                raise ValueError(
                    f"the mixture of {task.name!r} names {name!r}, which is a mixture itself; name its tasks instead"
                )

    def training_of(self, task: Task) -> Train:
        """The [train] table overlaid by the task's [task.training] keys, with the preset below both.

        Without choices: only the lm loss.
        """
        settings = Train.model_validate({**self.train.model_dump(exclude_unset=True), **task.overrides})
        kinds = {t.kind for t in self.task if t.name in (task.name, *task.mixture)}
        return settings if "classify" in kinds else settings.model_copy(update={"losses": ("lm",)})

    def ranking_of(self, task: Task) -> Literal["sum", "mean"]:
        """How the task's choices are ranked: as it says, or by default as its losses train."""
        return task.ranking or self.training_of(task).ranking

    @field_validator("output", "work")
    @classmethod
    def _place(cls, value: Path | None) -> Path | None:
        """A folder that can have a sibling: "." is resolved to its name."""
        if value is None or value.name not in ("", ".."):
            return value
        if not (named := value.resolve()).name:
            raise ValueError(f"{str(value)!r} is the root of a disk; name a folder in it")
        return named

    @property
    def output_folder(self) -> Path:
        """The folder of the bundle."""
        return self.output if self.output is not None else Path("dist") / self.name

    @property
    def work_folder(self) -> Path:
        """The folder of checkpoints and trained adapters: by default beside the bundle."""
        return self.work if self.work is not None else self.output_folder.with_name(self.output_folder.name + ".work")


def read_build(path: Path, **overrides: Any) -> Build:
    """Reads a build file.

    `overrides` maps dotted keys ("export.mode") to values given on the command line; None is skipped.

    Raises ConfigError with the file and either the line (malformed TOML) or the key and the nearest valid one.
    """
    try:
        text = read_text(path, ConfigError, largest=LARGEST)
    except ConfigError as error:
        raise ConfigError(f"the build file: {error}") from error
    try:
        document = parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    try:
        written = task_files(document, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    for dotted, value in overrides.items():
        if value is not None:
            *tables, key = dotted.split(".")
            place = document
            for table in tables:
                place = place.setdefault(table, {})
            if isinstance(place, dict):  # otherwise the file has no table there, which is reported below
                place[key] = value
    try:
        build = Build.model_validate(document)
    except ValidationError as error:
        errors = _where_written(error.errors(), written)
        raise ConfigError(f"{path}: " + "; ".join(complaints(errors, text, _known_keys()))) from error
    return _beside(build, path.parent)


def _where_written(errors: Sequence[Any], written: Sequence[int]) -> list[Any]:
    """The errors, with tasks numbered as the tables in the file, each once."""
    found: dict[tuple[Any, str], Any] = {}
    for error in errors:
        place = tuple(error["loc"])
        if place[:1] == ("task",) and len(place) > 1 and isinstance(place[1], int) and place[1] < len(written):
            place = ("task", written[place[1]], *place[2:])
        found.setdefault((place, str(error["msg"])), error | {"loc": place})
    return list(found.values())


def _beside(build: Build, here: Path) -> Build:
    """The build with its data paths resolved relative to `here`."""
    tasks = tuple(
        t.model_copy(
            update={"train": _there(t.train, here), "test": here / t.test, "overrides": _placed(t.overrides, here)}
        )
        for t in build.task
    )
    train = build.train.model_copy(update=_placed(build.train.model_dump(exclude_unset=True), here))
    model = here / build.base.model
    text = build.base.calibration
    found = {"model": str(model)} if model.exists() else {}
    base = build.base.model_copy(update=found | ({} if text in ("own", "none") else {"calibration": str(here / text)}))
    return build.model_copy(update={"task": tasks, "base": base, "train": train})


def _there(train: Path | tuple[Path, ...], here: Path) -> Path | tuple[Path, ...]:
    return here / train if isinstance(train, Path) else tuple(here / file for file in train)


def _placed(training: dict[str, Any], here: Path) -> dict[str, Any]:
    """A training table with its two paths resolved relative to `here`."""
    paths = {k: here / training[k] for k in ("validation", "init_adapter") if isinstance(training.get(k), str | Path)}
    return training | paths


def _known_keys() -> dict[str, list[str]]:
    """The keys of each table, by its name."""
    tables: dict[str, type[Section]] = {
        "": Build,
        "base": Base,
        "train": Train,
        "training": Train,
        "task": Task,
        "export": Export,
        "parity": Parity,
    }
    return {name: [field.alias or key for key, field in table.model_fields.items()] for name, table in tables.items()}
