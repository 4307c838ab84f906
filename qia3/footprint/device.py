"""A device profile: what a device has, each figure with its source and how far to trust it.

One TOML file per device. The first lines say what it is, then each figure has its own table:

    title = "Raspberry Pi 5 (8 GB)"
    family = "arm"                     x64, arm or wasm: which kernels ONNX Runtime has there
    target = "ort-arm"                 the export target to build for; `qia3 targets` lists them
    notes = "Sold with 2 to 16 GB."    optional

    [usable_bytes]
    value = 7_945_689_497              in the unit that the key names: bytes, bytes per second, a count
    confidence = "measured"            one of the words below
    source = "https://..."             where it was found; several: ["https://...", "https://..."]
    how = "free, system just started"  how it was measured or derived

    measured     run on such a device, with a description of how
    specified    stated by the manufacturer
    derived      computed from other figures; `how` has the arithmetic and is required
    reported     stated without a method: a press article, a remark in a thread

Figures that nobody publishes are left out. Memory, instruction sets, family and target are required. A file of your own
is given by its path, `--device ./my.toml`; errors in it are reported in one line.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from qia3.complaints import complaints
from qia3.errors import ConfigError
from qia3.parse import parse_toml
from qia3.targets import target_names

Confidence = Literal["measured", "specified", "derived", "reported"]
MIB, TB = 2**20, 10**12
BYTES = "in bytes: 8 GB are 8_589_934_592"
RATE = "in bytes per second: 17 GB/s are 17_000_000_000"
SECONDS = "in seconds: a microsecond is 1e-6"
OPERATIONS = "in operations per second (multiplies and adds): 100 billion are 100_000_000_000"


class Entry(BaseModel):
    """A part of a profile: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sourced(Entry):
    """The source of something, and how far to trust it."""

    confidence: Confidence
    source: tuple[str, ...] = Field(min_length=1)
    how: str = ""

    @field_validator("source", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_told(self) -> Self:
        if any(len(source.strip()) < 8 for source in self.source):
            raise ValueError("source must say where the figure was found, preferably with its address")
        if self.confidence == "derived" and not self.how:
            raise ValueError("a derived figure needs `how`, the arithmetic behind it")
        return self


class Figure(Sourced):
    """A number."""

    value: float = Field(gt=0, allow_inf_nan=False, strict=True)

    @field_serializer("value")
    def _as_written(self, value: float) -> int | float:
        return int(value) if value == int(value) else value


class Words(Sourced):
    """Names."""

    value: tuple[str, ...] = Field(min_length=1)


def _within(least: float, most: float, unit: str) -> AfterValidator:
    """Refuses figures that can only be in another unit."""

    def check(figure: Figure) -> Figure:
        if not least <= figure.value <= most:
            raise ValueError(f"{figure.value:,.10g} is out of range; give it {unit}")
        return figure

    return AfterValidator(check)


def _whole(figure: Figure) -> Figure:
    if figure.value != int(figure.value) or figure.value > 4096:
        raise ValueError(f"{figure.value:g} is not a number of cores")
    return figure


Bytes = Annotated[Figure, _within(16 * MIB, 64 * TB, BYTES)]
Rate = Annotated[Figure, _within(10**7, 64 * TB, RATE)]
Count = Annotated[Figure, AfterValidator(_whole)]
Small = Annotated[Figure, _within(MIB, TB, BYTES)]
Seconds = Annotated[Figure, _within(1e-9, 1e-2, SECONDS)]
Moment = Annotated[Figure, _within(1e-13, 1e-6, SECONDS)]
Operations = Annotated[Figure, _within(10**7, 10**16, OPERATIONS)]


class Device(Entry):
    """One device. None: nobody publishes it. The description of each figure is what `show` prints."""

    name: str
    title: str = Field(min_length=1)
    family: Literal["x64", "arm", "wasm"]
    target: str
    notes: str = ""
    memory_bytes: Bytes = Field(description="memory")
    usable_bytes: Bytes | None = Field(None, description="usable by one application")
    entitled_bytes: Bytes | None = Field(None, description="usable with the increased-memory-limit entitlement")
    largest_file_bytes: Bytes | None = Field(None, description="largest file that can be read at once")
    peak_bandwidth_bytes_per_second: Rate | None = Field(None, description="peak memory bandwidth")
    read_bandwidth_bytes_per_second: Rate | None = Field(None, description="speed of reading memory")
    copy_bandwidth_bytes_per_second: Rate | None = Field(None, description="speed of copying memory (bytes copied)")
    fill_bandwidth_bytes_per_second: Rate | None = Field(None, description="speed of filling memory")
    decode_bandwidth_low_bytes_per_second: Rate | None = Field(None, description="weights read while decoding (low)")
    decode_bandwidth_high_bytes_per_second: Rate | None = Field(None, description="weights read while decoding (high)")
    node_seconds: Seconds | None = Field(None, description="time per operator while decoding, besides its weights")
    float_bandwidth_bytes_per_second: Rate | None = Field(None, description="float32 weights read while decoding")
    product_operations_per_second: Operations | None = Field(None, description="4-bit products of a prompt")
    output_seconds: Moment | None = Field(None, description="time per output of a product in a prompt, besides that")
    load_bytes_per_second: Rate | None = Field(None, description="weights loaded and packed")
    process_held_bytes: Small | None = Field(None, description="held by a process without weights, cache and prompt")
    process_mapped_bytes: Small | None = Field(None, description="libraries that such a process has mapped")
    cores: Count | None = Field(None, description="cores")
    core_names: Words | None = Field(None, description="kinds of cores")
    isa: Words = Field(description="instruction sets")

    @field_validator("target")
    @classmethod
    def _is_a_target(cls, value: str) -> str:
        if value not in target_names():
            raise ValueError(f"there is no export target {value!r}; known: {', '.join(target_names())}")
        return value

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        low, high = self.decode_bandwidth_low_bytes_per_second, self.decode_bandwidth_high_bytes_per_second
        if (low is None) is not (high is None):
            raise ValueError("decode_bandwidth_low and _high must be given together; they may be equal")
        orders = [("decode_bandwidth_low_bytes_per_second", "decode_bandwidth_high_bytes_per_second")]
        orders += [(k, "memory_bytes") for k in ("usable_bytes", "entitled_bytes")]
        orders += [(f"{k}_bandwidth_bytes_per_second", "peak_bandwidth_bytes_per_second") for k in ("read", "copy")]
        for least, most in orders:
            small, large = getattr(self, least), getattr(self, most)
            if small is not None and large is not None and small.value > large.value:
                raise ValueError(f"{least} is more than {most}")
        return self

    @property
    def sourced(self) -> dict[str, Figure | Words]:
        """The known figures by key, in the order above."""
        found = {key: getattr(self, key) for key in type(self).model_fields}
        return {key: value for key, value in found.items() if isinstance(value, Figure | Words)}


WORDS = ("core_names", "isa")
PLAIN = ("title", "family", "target", "notes")
SOURCED = tuple(key for key in Device.model_fields if key not in (*PLAIN, "name"))
ENTRY = tuple(Figure.model_fields)
KNOWN = {"": (*PLAIN, *SOURCED)} | dict.fromkeys(SOURCED, ENTRY)


def parse_device(name: str, text: str, place: str | None = None) -> Device:
    """Parses a profile. Raises ConfigError, in one line that begins with `place`, the file's path or name."""
    where = place or f"{name}.toml"
    try:
        content = parse_toml(text)
        if "name" in content:
            raise ConfigError(f"{where}: unknown key 'name'; a profile has the name of its file")
        return Device.model_validate({**content, "name": name})
    except ValidationError as error:
        told = "; ".join(complaints(error.errors(), text, KNOWN))
        raise ConfigError(f"the device profile {where}: {told}") from error
    except ValueError as error:
        raise ConfigError(f"the device profile {where} is not valid TOML: {error}") from error
