"""manifest.json: what a bundle is, as a type, with one writer and one reader.

    {"format": 3, "qia3": "0.2.0", "name": "home-intents", "mode": "side", ...
     "graphs": {"decoder": {"file": "onnx/model_q4.onnx", "data": "onnx/model_q4.onnx_data", ...}},
     "files": {"onnx/model_q4.onnx": {"sha256": "7667...", "bytes": 441235}, ...}}

A bundle has one or more graphs, named by what they do ("decoder"; also an encoder, a training graph or a second decoder
for prompts), which may share a data file. Each has inputs for its own vectors, and an adapter holds the vectors of all
graphs: in an encoder-decoder those of both stacks (cross-attention's keys and values belong to the decoder). Everything
read here is checked: counts are whole numbers, figures are finite, names are those of qia3.names, paths stay inside the
bundle's folder. Bundles of formats 1 and 2 are read as ones of this format (upgrade.py). A change that an older reader
would misread raises FORMAT; an additional key does not (checked.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from qia3.bundle.checked import Codec, Part, Rule, decode, encode, plain
from qia3.bundle.records import Count, Drift, HeldOut, Measured, Parity, Record, Rounding, Size
from qia3.bundle.sites import SUFFIX, Placement, Role, Site
from qia3.bundle.task import Task
from qia3.bundle.upgrade import upgraded
from qia3.errors import shown
from qia3.names import ADAPTER, check_file_name, check_name

FORMAT = 3
DECODER, ENCODER, TRAIN, PROMPT = "decoder", "encoder", "train", "prompt"
ADAPTERS = "adapters/"
LONGEST = 1000  # characters of a path or of a name
SCALES_TRAINED = ", scales trained"  # the end of a grid's `calibration`, if they were


def _outside(name: str) -> bool:
    """Whether a path leaves its folder on any operating system, or is not a path at all."""
    parts = name.split("/")
    if len(name) > LONGEST:
        return True
    return "\\" in name or "\0" in name or ":" in parts[0] or bool({"", ".", ".."} & {*parts})


def _is_name(name: str) -> bool:
    try:
        return check_file_name(name) == name
    except ValueError:
        return False


# aliases, since an annotation is evaluated in the namespace of its class
Sha256 = Annotated[str, Rule(re.compile("[0-9a-f]{64}").fullmatch, "a SHA-256 of 64 hexadecimal digits")]
Inside = Annotated[str, Rule(lambda name: not _outside(name), "a path inside the bundle")]
Block = Annotated[int, Rule(lambda n: 2 <= n <= 2**31 and n % 2 == 0, "an even number from 2 to 2^31")]
Name = Annotated[str, Rule(_is_name, "a name of up to 64 letters, digits, '.', '_' and '-'")]
Input = Annotated[str, Rule(lambda name: name.endswith(SUFFIX), f"a name that ends in {SUFFIX}")]
Level = Annotated[int, Rule(lambda n: 0 <= n <= 4, "a whole number from 0 to 4")]
Brief = Annotated[str, Rule(lambda name: len(name) <= LONGEST, f"a name of at most {LONGEST} characters")]
Bits = Annotated[int, Rule(lambda n: n in (2, 4, 8), "2, 4 or 8")]
Code = Literal["int4", "int8", "nf4"]


@dataclass(frozen=True)
class Stored(Part):
    """How a tensor is stored. A block of int4 or int8 covers inputs of one row, a block of nf4 consecutive entries
    across rows.
    """

    bits: Bits
    format: Code
    block_size: Block
    symmetric: bool


@dataclass(frozen=True)
class Grid(Part):
    """The grid that was asked for, or that a checkpoint came on. `calibration`: "own", "none" or "text SHA-256", with
    SCALES_TRAINED behind it if they were. `codes`: "own", or the checkpoint format that they come from; `rounding`:
    what whole zero points changed about those.

    `eight_bit`: roles of the layers at 8 bits. `blocks`: roles of the layers in other blocks, by block size.
    `embedding` is None if it is not quantised.
    """

    format: Code
    block_size: Block
    symmetric: bool
    calibration: str
    codes: str
    embedding: Stored | None
    eight_bit: tuple[str, ...] = ()
    blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rounding: Rounding | None = None


@dataclass(frozen=True)
class Base(Part):
    """The frozen model. Adapters are bound to `fingerprint`; `drift` is what recoding changed."""

    reference: str
    fingerprint: Sha256
    model_type: str
    parameters: Count
    grid: Grid
    drift: Drift | None = None


@dataclass(frozen=True)
class Pooling(Part):
    """How an encoder's states become one vector per text: their mean, or the first state; `normalize`: to unit length."""

    mode: Literal["mean", "cls"]
    normalize: bool


@dataclass(frozen=True)
class Architecture(Part):
    """Counts and sizes of the base. `context_length` is in tokens, at most what the base was made for.

    An encoder-decoder has `layers` in its decoder and `encoder_layers` in its encoder. Its answers follow the tokens
    `decoder_start`: one, or two if the first word is forced (BART). The context length holds for encoder and decoder
    separately. An encoder alone has `layers`, and says how a text's states are pooled.
    """

    layers: Size
    heads: Size
    kv_heads: Size
    head_size: Size
    hidden_size: Size
    vocab_size: Size
    context_length: Size
    tied_embedding: bool
    encoder_layers: Size | None = None
    decoder_start: tuple[Count, ...] = ()
    pooling: Pooling | None = None
    cache: Literal["float32", "int8"] = "float32"  # type of the cached keys and values

    def positions(self, prompt: int, more: int) -> int:
        """Positions of the context that a prompt of `prompt` tokens and `more` tokens after it take.

        A decoder needs them in one row. With an encoder, prompt and answer are separate, and the answer follows the
        decoder's start.
        """
        return prompt + more if self.encoder_layers is None else max(prompt, len(self.decoder_start) + more)


@dataclass(frozen=True)
class Layer(Part):
    """A linear layer and the grid that it was trained on. `once`: it runs for the prompt only, not per token of the
    answer, as do an encoder's layers and cross-attention's keys and values. `products`: "grid" if the graph has the
    grid's codes, "int8" if it has int8 weights made from them instead.
    """

    name: Brief
    inputs: Size
    outputs: Size
    role: str
    bits: Bits
    format: Code
    block_size: Block
    symmetric: bool
    once: bool = False
    products: Literal["grid", "int8"] = "grid"


@dataclass(frozen=True)
class Dense(Part):
    """A linear layer that stays in float32, as T5's `wo` does in transformers."""

    name: Brief
    inputs: Size
    outputs: Size
    role: str
    once: bool = False


@dataclass(frozen=True)
class Region(Part):
    """A range of a data file. `part` is the footprint's name for what it holds.

    `packed` lists the base's own tensors that were concatenated into it, with their bytes; empty if it is a single one.
    """

    name: Brief
    part: Brief
    bytes: Count
    offset: Count
    file: Inside
    packed: tuple[tuple[str, Count], ...] = ()


@dataclass(frozen=True)
class Vector(Part):
    """A graph input for one vector: a Site and the input's name."""

    name: Input
    size: Size
    role: Role
    placement: Placement
    down: str | None = None
    rows: tuple[Count, ...] | None = None

    @classmethod
    def of(cls, site: Site) -> Vector:
        return cls(site.name, site.size, site.role, site.placement, site.down, site.rows)

    @property
    def site(self) -> Site:
        return Site(self.name.removesuffix(SUFFIX), self.role, self.placement, self.size, self.rows, self.down)


@dataclass(frozen=True)
class Graph(Part):
    """One .onnx and its data file, written for a target. `logits`: "last" or "all" positions."""

    file: Inside
    data: Inside
    target: str
    accuracy_level: Level
    logits: str
    vectors: tuple[Vector, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of its vectors, in the graph's order."""
        return tuple(vector.site for vector in self.vectors)


@dataclass(frozen=True)
class Prompt(Part):
    """What the base's chat template puts around a user's words."""

    prefix: str
    suffix: str


@dataclass(frozen=True)
class File(Part):
    """Expected size and hash of a file."""

    sha256: Sha256
    bytes: Count


def _read_tasks(value: Any) -> dict[str, Task]:
    if not isinstance(value, dict):
        raise ValueError("is not an object of tasks by name")
    for name, task in value.items():
        check_name(name, value)
        try:
            Task.from_json(name, task)
        except ValueError as error:
            raise ValueError(f"holds {name!r}, which is not a valid task: {error}") from error
    return {name: Task.from_json(name, task) for name, task in value.items()}


def _read_config(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError("is not an object")
    return plain(value)


def _write_tasks(tasks: Mapping[str, Task]) -> dict[str, Any]:
    return {name: task.to_json() | dict(task.later) for name, task in tasks.items()}


@dataclass(frozen=True, kw_only=True)
class Manifest(Part):
    """The whole manifest. `files` lists every other file of a sealed bundle and is empty before that. None: not
    measured.

    `config` is the build file as given; `qia3` and `versions` say what made the bundle.
    """

    qia3: str
    name: Name
    mode: Literal["side", "merged"]
    merged_task: Brief | None
    seed: int
    versions: Mapping[str, str]
    base: Base
    architecture: Architecture
    linears: tuple[Layer, ...]
    dense: tuple[Dense, ...] = ()
    graphs: Mapping[str, Graph]
    tensors: tuple[Region, ...]
    prompt: Prompt
    stop_tokens: tuple[Count, ...]
    tasks: Annotated[Mapping[str, Task], Codec(_read_tasks, _write_tasks)]
    training: Mapping[str, Record] = field(default_factory=dict)
    config: Annotated[Mapping[str, Any], Codec(_read_config, lambda config: config)] = field(default_factory=dict)
    parity: Mapping[str, Parity] | None = None
    evaluation: Mapping[str, HeldOut] | None = None
    measured: Measured | None = None
    files: Mapping[str, File] = field(default_factory=dict)

    @property
    def decoder(self) -> Graph:
        """The graph that predicts the next token."""
        return self.graphs[DECODER]

    @property
    def encoder(self) -> Graph | None:
        """The graph that reads the prompt; None if there is only a decoder."""
        return self.graphs.get(ENCODER)

    @property
    def main(self) -> Graph:
        """The graph that gives the answer: the decoder, or the encoder if there is only that."""
        return self.graphs[DECODER if DECODER in self.graphs else ENCODER]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of all graphs, in order: what an adapter has vectors for."""
        return tuple(dict.fromkeys(site for graph in self.graphs.values() for site in graph.sites))

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapter files."""
        files = [f for f in self.files if f.startswith(ADAPTERS) and f.endswith(ADAPTER)]
        return tuple(sorted(f.removeprefix(ADAPTERS).removesuffix(ADAPTER) for f in files))

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values, the format first. A bundle that was not evaluated says so: `evaluation` is null."""
        content: dict[str, Any] = encode(self)
        return {"format": FORMAT} | content | ({"evaluation": None} if self.evaluation is None else {})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """Reads this format or an earlier one. Raises ValueError, in one line, that names the places in the JSON."""
        table = upgraded(value, FORMAT)
        found = decode(cls, {key: entry for key, entry in table.items() if key != "format"})
        if bad := list(_contradictions(found)):
            raise ValueError("; ".join(bad))
        return found


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """Contradictions between parts that are valid by themselves."""
    alone = manifest.architecture.pooling is not None
    if (needed := ENCODER if alone else DECODER) not in manifest.graphs:
        yield f"graphs.{needed} is missing"
    if alone and (DECODER in manifest.graphs or manifest.architecture.decoder_start):
        yield "architecture.pooling is for an encoder alone, but there is a decoder"
    if not alone:
        yield from _of_an_encoder(manifest)
    if (manifest.mode == "merged") != (manifest.merged_task is not None):
        yield "merged_task must be given in mode 'merged' and null in mode 'side'"
    elif manifest.merged_task is not None and manifest.merged_task not in manifest.tasks:
        yield f"merged_task {shown(manifest.merged_task)} is not one of the tasks"
    for key, graph in manifest.graphs.items():
        names = [vector.name for vector in graph.vectors]
        if len(set(names)) < len(names):
            yield f"graphs.{shown(key[:80])}.vectors names a vector twice"
        if any(vector.rows and max(vector.rows) >= vector.size for vector in graph.vectors):
            yield f"graphs.{shown(key[:80])}.vectors has rows past a vector's size"
    apart = [name for name, count in Counter(site.name for site in manifest.sites).items() if count > 1]
    yield from (f"graphs differ in the vector {shown(name[:80])}" for name in apart[:1])
    yield from (f"files.{shown(file[:LONGEST])} is outside the bundle" for file in manifest.files if _outside(file))
    for adapter in manifest.adapters:
        if not _is_name(adapter):
            yield f"files has an adapter with the invalid name {adapter[:80]!r}"


def _of_an_encoder(manifest: Manifest) -> Iterator[str]:
    """An encoder-decoder needs an encoder, its number of layers and the decoder's start; a decoder has none of these."""
    shape = manifest.architecture
    has = {
        f"graphs.{ENCODER}": manifest.encoder,
        "architecture.encoder_layers": shape.encoder_layers,
        "architecture.decoder_start": shape.decoder_start or None,
    }
    missing = [name for name, value in has.items() if value is None]
    if 0 < len(missing) < len(has):
        yield f"{' and '.join(missing)} is missing, which an encoder-decoder needs"
    elif max(shape.decoder_start, default=0) >= shape.vocab_size:
        yield "architecture.decoder_start is past the vocabulary"
