"""Loads and quantises a base model, and caches it so that the next build can read it as it is."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from socket import gethostname
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from qia3.base.complete import check_places, check_report, empty_model, note_untied
from qia3.base.distil import distil
from qia3.base.drift import Rounding
from qia3.base.family import auto_class, is_encoder
from qia3.base.frozen import BaseModel, fingerprint
from qia3.base.gguf_codes import keep_q4_0
from qia3.base.gguf_config import read_gguf_config
from qia3.base.gguf_parts import Gguf, open_gguf
from qia3.base.gguf_weights import load_gguf
from qia3.base.gguf_words import read_gguf_tokenizer
from qia3.base.given import Given, parameters
from qia3.base.kept import FORMAT, is_kept, keep, kept_as, open_kept, open_named
from qia3.base.kind import check_kind
from qia3.base.memory import give_back
from qia3.base.modules import GridLinear
from qia3.base.pooling import note_pooling
from qia3.base.quantise import Chosen, Grid, GridName, Mix, Uniform, quantise_model
from qia3.base.quantised import open_quantised
from qia3.base.reach import check_ids
from qia3.base.shards import Entry
from qia3.base.sources import Source, check_weights, own_code, resolve
from qia3.base.streaming import open_stream
from qia3.base.windows import calibration_windows, fits_in_float32, read_text
from qia3.bundle.manifest import SCALES_TRAINED
from qia3.errors import BaseModelError, StorageError, first_line
from qia3.progress import say
from qia3.storage import cache_folder

TEXTS, BATCH = 128, 4  # windows that scales train on, and those of a step
RECIPE = 6  # to be raised when the same source and settings give other codes
LEAST_KEPT = 10_000_000  # parameters; a smaller base is quantised as fast as it is read
UNIFORM = Uniform()
T = TypeVar("T")


class Track(Protocol):
    """Wraps the items of a long loop in a progress bar with a title."""

    def __call__(self, items: list[T], title: str) -> Iterable[T]: ...


@dataclass(frozen=True)
class Asked:
    """The base that is asked for: `model` as a build file names it, and the grid of its weights.

    `calibration`: "own" for text sampled from the model, "none", or the path of a text. `mix`: layers with shorter
    blocks or more bits. The grid "nf4" is that of bitsandbytes, which is not calibrated: codes are rounded to nearest,
    as there. `train_scales`: after calibration, train the scales towards the float model (qia3.base.distil).
    """

    model: str
    block_size: int = 64
    symmetric: bool = False
    calibration: str = "none"
    mix: Mix = UNIFORM
    grid: GridName = "int4"
    train_scales: bool = False

    @cached_property
    def text(self) -> str:
        """The calibration as recorded in the manifest:

        "none", "own", or the SHA-256 of the text. Raises BaseModelError if the text cannot be read.
        """
        if self.calibration in ("own", "none"):
            return self.calibration
        return f"text {hashlib.sha256(read_text(Path(self.calibration)).encode()).hexdigest()}"

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the codes depend on besides the weights, as a cached base records it."""
        return {
            "grid": self.grid,
            "block_size": self.block_size,
            "symmetric": self.symmetric,
            "calibration": self.text,
            "layers": list(self.mix.asked),
            **({"train_scales": True} if self.train_scales else {}),  # absent in bases cached before there was a choice
        }

    def uncalibrated(self) -> Asked:
        """The same without calibration, for weights that come with codes, where only the rest is quantised."""
        return replace(self, calibration="none")


def load_base(asked: Asked, track: Track = lambda items, title: items, least_kept: int | None = None) -> BaseModel:
    """Finds, loads and quantises a language model, or reads it from the cache. A model with fewer than `least_kept`
    parameters (default LEAST_KEPT) is not cached.

    Raises BaseModelError, in one line.
    """
    source = resolve(asked.model)
    if source.gguf_file is None and is_kept(Path(source.name)):
        with quiet():
            return open_named(Path(source.name), asked.settings)
    folder = _kept_folder(source, asked)
    if damaged := is_kept(folder):
        say(f"reading the quantised base from the cache: {folder}")
        try:
            with quiet():
                return open_kept(folder, asked.model)
        except BaseModelError as error:
            say(str(error))
    with quiet():
        base = _trained(source, asked, track) if asked.train_scales else _make(source, asked, track)
        if base.parameters < (LEAST_KEPT if least_kept is None else least_kept):
            return base
        try:
            keep(base, folder, asked.settings, anew=damaged)
        except StorageError as error:  # not worth throwing away minutes of work
            say(f"this base is not cached and the next build will quantise it again: {error}")
            return base
        del base  # so that the same bytes are not in memory twice
        gc.collect()
        give_back()
        return open_kept(folder, asked.model)


def same_base(asked: Asked, fingerprint: str) -> BaseModel:
    """The base with this fingerprint: from the cache, whatever it was made from, or made as in `asked`.

    Raises BaseModelError if the result has another fingerprint.
    """
    for folder in kept_as(cache_folder() / "bases", fingerprint):
        with quiet(), suppress(BaseModelError):  # a damaged one is quantised again below
            return open_kept(folder, asked.model)
    base = load_base(asked, least_kept=0)
    if base.fingerprint != fingerprint:
        raise BaseModelError(
            f"the base on {gethostname()} is {base.fingerprint[:16]}, but the tasks are for "
            f"{fingerprint[:16]} (other files, or "
            "another processor's rounding): copy the folder `bases` of the first machine's cache to "
            f"{cache_folder()} there"
        )
    return base


def load_float(reference: str) -> tuple[Any, Any]:
    """The float model of a reference, in the types of its files (GGUF: float32), and its tokenizer.

    Raises BaseModelError.
    """
    source = resolve(reference)
    files = check_weights(source)
    with quiet():
        return _float_model(source, files), read_tokenizer(source)


def _make(source: Source, asked: Asked, track: Track) -> BaseModel:
    """Keeps the codes that the files have; otherwise streams from the files if possible: calibration needs the whole
    float model.
    """
    files = check_weights(source)
    config = _checked(source)
    tokenizer = read_tokenizer(source)
    with told(source):
        asked = _calibrated(asked, read_gguf_config(_opened(source)) if source.gguf_file else config)
        model, given = open_quantised(source) or (None, None)
    if model is not None and given is not None:
        return _quantised(source, model, tokenizer, asked.uncalibrated(), track, given)
    plain = (asked.calibration == "none" or asked.grid == "nf4") and not asked.mix.asked
    if files is not None and plain:
        _check_places(source, files)
        if (stream := open_stream(Path(source.name), files)) is not None:
            return _quantised(source, stream.model, tokenizer, asked, track, None, stream.layers)
    model = _float_model(source, files)
    with told(source):
        given = keep_q4_0(model, _opened(source)) if source.gguf_file else None
    if given is not None:
        asked = asked.uncalibrated()
    return _quantised(source, model, tokenizer, asked, track, given)


def _trained(source: Source, asked: Asked, track: Track) -> BaseModel:
    """The same base without trained scales, which is cached on its own, and then its scales trained: who interrupts the
    training keeps that base.

    Raises BaseModelError for a base that cannot sample a text, or whose scales came with it.
    """
    files, config = check_weights(source), _checked(source)
    with told(source):
        config = read_gguf_config(_opened(source)) if source.gguf_file else config
    if config.is_encoder_decoder or is_encoder(config):
        kind = "an encoder-decoder" if config.is_encoder_decoder else "an encoder"
        raise BaseModelError(f"train_scales is for decoders, and {asked.model} is {kind}; remove it from [base]")
    base = load_base(replace(asked, train_scales=False), track)
    if base.codes != "own":
        raise BaseModelError(
            f"train_scales needs float weights, and {asked.model} comes with {base.codes} codes, whose scales are kept; "
            "remove it from [base], or name the float model"
        )
    teacher = _float_model(source, files).eval().requires_grad_(False)
    if not all(p.dtype == torch.float32 for p in teacher.parameters()):
        if not fits_in_float32(teacher):
            raise BaseModelError(
                "train_scales needs a float32 copy of the weights, which does not fit in memory; remove it from [base]"
            )
        for tensor in (*teacher.parameters(), *teacher.buffers()):
            tensor.data = tensor.data.float() if tensor.is_floating_point() else tensor.data
    windows = calibration_windows(teacher, base.tokenizer, asked.calibration, track, TEXTS, seed=1)
    assert windows is not None
    say(f"training scales towards the float model on {windows.numel():,} tokens")
    nats = distil(base.model, teacher, windows, BATCH, track)
    say(f"KL divergence on text that was set aside: {nats.before:.3g} nats before, {nats.after:.3g} after")
    told_calibration = base.calibration + (SCALES_TRAINED if nats.after < nats.before else "")
    return replace(base, fingerprint=fingerprint(base.model), calibration=told_calibration)


def _quantised(
    source: Source,
    model: Any,
    tokenizer: Any,
    asked: Asked,
    track: Track,
    given: Given | None,
    layers: Callable[[Iterable[str]], Iterable[str]] = lambda names: names,
) -> BaseModel:
    """`given`: codes that some layers already have. `layers` loads streamed layers one after the other."""
    check_ids(tokenizer, model.get_input_embeddings().num_embeddings)
    count, grid = parameters(model), asked.grid
    model.eval()
    if is_encoder(model.config):
        note_pooling(model.config, Path(source.name))
        model.generation_config = GenerationConfig()  # which transformers only gives to models that generate
    if given is not None:
        grid = "nf4" if given.codes == "nf4" else "int4"
        rest = "stays float" if grid == "nf4" else "is quantised without calibration"
        say(f"{given.layers} layers keep their {given.codes} codes (block {given.block_size}); the rest {rest}")
        if given.rounding is not None:
            say(_rounded(given.rounding))
    windows = None if grid == "nf4" else calibration_windows(model, tokenizer, asked.calibration, track)
    chosen = _mixed(model, asked, given, windows)
    say(
        "quantising"
        + ("" if windows is None else f", calibrating each layer on its inputs ({windows.numel():,} tokens)")
    )
    each = lambda names: layers(track(names, "quantising"))  # noqa: E731 (passed on once)
    quantise_model(model, Grid(asked.block_size, asked.symmetric, chosen.own, grid), each, windows)
    return BaseModel(
        reference=source.reference,
        model=model,
        tokenizer=tokenizer,
        fingerprint=fingerprint(model),
        block_size=asked.block_size if given is None else given.block_size,
        symmetric=asked.symmetric if given is None else given.symmetric,
        parameters=count,
        calibration="none" if windows is None else asked.text,
        eight_bit=chosen.eight_bit,
        blocks=chosen.blocks,
        codes="own" if given is None else given.codes,
        grid=grid,
        rounding=None if given is None else given.rounding,
    )


def _rounded(rounding: Rounding) -> str:
    worst = f"{rounding.worst_layer} by {rounding.worst_relative_rms:.2%}"
    anew = f", {rounding.anew} layers have blocks with other codes" if rounding.anew else ""
    return (
        f"their zero points are rounded to whole numbers: weights change by {rounding.relative_rms:.2%} (rms; "
        f"{worst}){anew}"
    )


def _mixed(model: Any, asked: Asked, given: Given | None, windows: Tensor | None) -> Chosen:
    """The layers with a form of their own.

    Raises BaseModelError if one of them already has codes: rounding cannot be undone.
    """
    if not asked.mix.asked:  # a streamed model has no weights to find roles with
        return Chosen()
    chosen = asked.mix.find(model, Grid(asked.block_size, asked.symmetric), windows)
    kept = sorted(name for name in chosen.own if isinstance(model.get_submodule(name), GridLinear))
    if chosen.own and given is not None and given.codes == "nf4":
        raise BaseModelError(
            "this base is already in NF4, where layers have their own codes or stay float; remove eight_bit "
            "and blocks from the build file"
        )
    if given is not None and kept:
        raise BaseModelError(
            f"eight_bit or blocks names {len(kept)} layers whose {given.codes} codes this base already has and keeps "
            f'(the first is {kept[0]}); name only its float layers (eight_bit = ["head"]), or use a base that '
            "is not quantised"
        )
    for block, roles in chosen.blocks.items():
        say(f"layers in blocks of {block}: {', '.join(roles)}")
    if chosen.eight_bit:
        say(f"layers at 8 bits: {', '.join(chosen.eight_bit)}")
    return chosen


def _kept_folder(source: Source, asked: Asked) -> Path:
    """Its folder in the cache: named by a hash over the source's content and the settings."""
    key = json.dumps([source.identity(), asked.settings, RECIPE, FORMAT], sort_keys=True)
    return cache_folder() / "bases" / hashlib.sha256(key.encode()).hexdigest()[:16]


def _checked(source: Source) -> Any:
    """The configuration of a folder or a hub model; None for a GGUF file, which is checked when it is read.

    Raises BaseModelError for kinds of models that are not supported.
    """
    if source.gguf_file is not None:
        return None
    with told(source):
        config = AutoConfig.from_pretrained(source.name, trust_remote_code=False)
    check_kind(config, source.reference)
    return config


def _calibrated(asked: Asked, config: Any) -> Asked:
    """Drops calibration on its own text for models that cannot generate any."""
    if asked.calibration != "own" or asked.grid == "nf4" or config is None:
        return asked
    if not config.is_encoder_decoder and not is_encoder(config):
        return asked
    what = "answers a text" if config.is_encoder_decoder else "reads a text"
    kind = "encoder-decoder" if config.is_encoder_decoder else "encoder"
    say(f"calibration skipped: an {kind} {what} and does not generate its own; set calibration = PATH under [base]")
    return asked.uncalibrated()


def read_tokenizer(source: Source) -> Any:
    with told(source):
        if source.gguf_file is not None:
            return read_gguf_tokenizer(_opened(source))
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.name, trust_remote_code=False)
        except ValueError as error:
            if "custom code" in str(error):
                raise own_code(Path(source.name) / "tokenizer_config.json") from error
            raise
    if not getattr(tokenizer, "is_fast", False):
        raise BaseModelError(
            f"the tokenizer of {source.reference!r} cannot be converted to tokenizer.json, which the device "
            "runtime needs"
        )
    return tokenizer


def _float_model(source: Source, files: Mapping[str, Entry] | None) -> Any:
    """The float model: by transformers from safetensors (`files`), by our own reader from GGUF.

    A GGUF file is dequantised to float32; other weights keep the type that they are stored in.
    """
    if files is None:
        with told(source):
            return load_gguf(_opened(source))
    _check_places(source, files)
    with told(source):
        config = AutoConfig.from_pretrained(source.name, trust_remote_code=False)
        model, report = auto_class(config).from_pretrained(
            source.name, dtype="auto", use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        check_report(report, files)
        note_untied(model)
    return model


def _opened(source: Source) -> Gguf:
    return open_gguf(Path(source.name) / str(source.gguf_file))


def _check_places(source: Source, files: Mapping[str, Entry]) -> None:
    """Compares names and shapes before anything is read. Raises BaseModelError if they do not fit."""
    with told(source):
        check_places(empty_model(Path(source.name)), files)


@contextmanager
def told(source: Source) -> Iterator[None]:
    """Turns any exception of transformers into a one-line BaseModelError."""
    try:
        yield
    except Exception as error:
        raise BaseModelError(f"cannot load the base model {source.reference!r}: {first_line(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' progress bars and notices while a model loads."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("gguf").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
