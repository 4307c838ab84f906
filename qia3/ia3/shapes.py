"""A model's sizes from its configuration alone: no weights are read, and hardly any memory is used.

Two models are made from one configuration. The first has full size but no numbers (torch's meta device); it gives the
shapes. The second has the same layers with the same names, but narrow: widths, head sizes and the vocabulary are
divided by as much as the family's code allows. It has random weights and runs, so roles.py can find out what each layer
does, as in a real base. The result is widened again: a vector's entries by the ratio of its layer's sizes, which keeps
the rows of a fused layer in place, since both models have the same number of heads.

Whether embedding and head are one table is decided by the weight files, if they are there, otherwise by the
configuration as written. (transformers 5 reads and writes `tie_word_embeddings` as true for every T5, and
`scale_decoder_outputs` as false if the file said otherwise; then the head is a separate table.)
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from qia3.base.architecture import architecture, head_size, text_config
from qia3.base.complete import empty
from qia3.base.experts import mixtures, products
from qia3.base.family import auto_class, embeddings, get_module, is_encoder, stays_float, weight_of
from qia3.base.gguf_config import read_gguf_config
from qia3.base.gguf_parts import open_gguf
from qia3.base.hub import not_fetched
from qia3.base.kind import check_kind
from qia3.base.load import quiet, told
from qia3.base.quantise import embedding_scale
from qia3.base.shards import entries
from qia3.base.sources import ALIASES, Source, read_config, resolve
from qia3.base.stages import prompt_only
from qia3.base.start import decoder_start
from qia3.bundle.ports import MULTIPLE, Cache
from qia3.bundle.sites import Site
from qia3.errors import BaseModelError
from qia3.footprint.shapes import Matrix, Shapes, Table
from qia3.ia3.roles import Roles, attention, device_of, find_roles

FACTORS = (32, 16, 8, 4, 2, 1)  # divisors of widths, the largest first
WIDE = 64  # a number of the configuration counts as a width from here on
NARROWEST = 300_000_000  # parameters of the largest random model that is made
PROBE = "qia3_heads"
NO_WIDTHS = ("token_id", "position", "window", "original_max", "num_")  # parts of names of numbers that are not widths


def read_shapes(reference: str) -> Shapes:
    """Sizes of a model folder, its config.json, a .gguf file, an alias, or a hub model, whose configuration is fetched.

    Raises BaseModelError if `qia3 build` would refuse the configuration, or if there is no place for vectors.
    """
    with quiet():
        return shapes_of(read_any_config(reference), reference)


def shapes_of(config: Any, reference: str) -> Shapes:
    """The same, from a configuration."""
    check_kind(config, reference)
    whole = empty(config)
    return _widened(reference, whole, *_narrow(config, reference))


def read_any_config(reference: str) -> Any:
    """The configuration of a reference. Raises BaseModelError if there is none."""
    path = Path(reference)
    if path.is_file() and path.suffix.lower() != ".gguf":
        path = path.parent if path.name == "config.json" else path
    elif not path.exists() and (path.is_absolute() or path.suffix == ".json" or reference.startswith(".")):
        raise BaseModelError(f"there is no model folder and no config.json {reference}")
    if path.is_dir():
        read_config(path)  # refuses a model with code of its own, naming the file
    source = Source(reference, str(path))
    if reference in ALIASES or path.suffix.lower() == ".gguf":
        source = resolve(reference)
    with told(source):
        if source.gguf_file is not None:
            return read_gguf_config(open_gguf(Path(source.name) / source.gguf_file))
        try:
            return AutoConfig.from_pretrained(source.name, trust_remote_code=False)
        except OSError as error:
            if Path(source.name).exists():
                raise
            failed = error
    raise not_fetched(reference, ALIASES, failed) from failed


def _narrow(config: Any, reference: str) -> tuple[Any, Roles]:
    """The configuration of the narrowest random model that runs, and the roles of its layers."""
    refused: BaseModelError | None = None
    for factor in FACTORS:
        thin = thinner(config, factor)
        try:
            if sum(p.numel() for p in empty(thin).parameters()) > NARROWEST:
                break
            torch.manual_seed(0)
            model = auto_class(thin).from_config(thin, trust_remote_code=False).float().eval()
            return model, find_roles(model)
        except BaseModelError as error:
            refused = error
        except Exception:  # widths that do not fit together; the family's code can raise anything
            continue
    raise refused or BaseModelError(
        f"{reference}: no small model of this configuration runs, so the roles of its layers are unknown; run "
        "`qia3 build` to find out"
    )


def thinner(config: Any, factor: int) -> Any:
    """The configuration with widths divided by `factor`, if possible, and a small vocabulary. Rotary embeddings with a
    number per entry of a head become plain ones: the roles of layers do not depend on them.
    """
    thin = copy.deepcopy(config)
    for part in {id(c): c for c in (thin, thin.get_text_config(), *_parts(thin))}.values():
        for name, value in list(vars(part).items()):
            if isinstance(value, int) and not isinstance(value, bool) and _is_width(name, value, factor):
                setattr(part, name, value // factor)
            if factor > 1 and isinstance(value, dict) and "long_factor" in value:  # its length is that of the heads
                setattr(
                    part,
                    name,
                    {"rope_type": "default", "rope_theta": value.get("rope_theta", 10000.0), **_partial(value)},
                )
        if factor > 1 and (getattr(part, "vocab_size", 0) or 0) > WIDE:
            part.vocab_size = WIDE
            part.pad_token_id = None if getattr(part, "pad_token_id", None) is None else 0
    return thin


def _partial(rope: dict[str, Any]) -> dict[str, Any]:
    return {key: rope[key] for key in ("partial_rotary_factor",) if key in rope}


def _parts(config: Any) -> list[Any]:
    """Configurations inside a configuration."""
    return [value for value in vars(config).values() if hasattr(value, "to_dict") and hasattr(value, "model_type")]


def _is_width(name: str, value: int, factor: int) -> bool:
    return value >= WIDE and value % factor == 0 and not any(word in name for word in NO_WIDTHS)


def _widened(reference: str, whole: Any, narrow: Any, roles: Roles) -> Shapes:
    head = get_module(whole, "get_output_embeddings")
    tables = list({id(weight_of(t)): t for t in embeddings(whole) if isinstance(t, nn.Embedding)}.values())
    thin_tables = {id(weight_of(t)): t for t in embeddings(narrow) if isinstance(t, nn.Embedding)}
    as_they_are = [embedding_scale(table) is not None for table in thin_tables.values()]
    tied = head is not None and _is_table(head, tables) and not _has_own_head(whole, reference)
    once, floats = prompt_only(narrow), stays_float(whole)
    matrices = tuple(
        Matrix(name, roles.linears.get(name, "other"), *_sizes(module), name in once, name in floats)
        for name, module in whole.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    )
    for name in mixtures(narrow):
        weights = products(whole.get_submodule(name)).items()
        matrices += tuple(Matrix(f"{name}.{part}", "experts", *sizes, False, False) for part, sizes in weights)
    found = tuple(Table(t.num_embeddings, t.embedding_dim, plain) for t, plain in zip(tables, as_they_are, strict=True))
    others = sum(p.numel() for p in whole.parameters()) - sum(
        m.numbers for m in matrices if not (m.role == "head" and head is not None and _is_table(head, tables))
    )
    kept = _heads_kept(whole, narrow)
    config, generation = whole.config, GenerationConfig.from_model_config(whole.config)
    longest = getattr(text_config(config), "max_position_embeddings", None) or getattr(config, "n_positions", None)
    shape = architecture(config, longest or 0, tied, _start(config, generation))
    return Shapes(
        reference,
        config.model_type if config.is_encoder_decoder else config.get_text_config().model_type,
        shape if kept is None else replace(shape, kv_heads=kept.heads, head_size=kept.size),
        matrices,
        found,
        others - sum(table.numbers for table in found),
        tuple(_wide(site, narrow, whole) for site in roles.sites),
    )


def _is_table(head: nn.Module, tables: list[nn.Embedding]) -> bool:
    return any(weight_of(table) is head.weight for table in tables)


def _has_own_head(model: Any, reference: str) -> bool:
    """Whether the head is a separate table although transformers' class ties it to the embedding."""
    name = next(n for n, m in model.named_modules() if m is get_module(model, "get_output_embeddings"))
    folder = Path(reference)
    if folder.is_dir() and (files := entries(folder)) is not None:
        return f"{name}.weight" in files
    raw: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # a missing file decides nothing
        raw, _ = PreTrainedConfig.get_config_dict(reference)
    return False in (raw.get("tie_word_embeddings"), getattr(model.config, "scale_decoder_outputs", None))


def _heads_kept(whole: Any, narrow: Any) -> Cache | None:
    """Number and size of the key/value heads in the cache, by what both models pass to attention: a model may repeat
    heads itself (Falcon), or build full ones from something smaller (latent attention). None for an encoder-decoder,
    whose configuration has them, and for an encoder, which has no cache.
    """
    if whole.config.is_encoder_decoder or is_encoder(whole.config):
        return None
    keys, values = _handed(narrow)
    groups = next(
        n
        for n in range(keys.shape[1], 0, -1)
        if keys.shape[1] % n == 0 and all(t.equal(t[:, ::n].repeat_interleave(n, dim=1)) for t in (keys, values))
    )
    ratio = head_size(text_config(whole.config)) / head_size(text_config(narrow.config))
    size = max(keys.shape[-1], values.shape[-1]) * ratio
    with contextlib.suppress(BaseModelError, RuntimeError, NotImplementedError):  # code that reads values
        size = max(t.shape[-1] for t in _handed(whole))
    return Cache(keys.shape[1] // groups, -(-int(size) // MULTIPLE) * MULTIPLE)


def _handed(model: Any) -> tuple[Tensor, Tensor]:
    """Keys and values [1, heads, tokens, size] of the first layer that attends."""
    seen: list[tuple[Tensor, Tensor]] = []

    def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        seen.append((k, v))
        shape = (q.shape[0], q.shape[2], q.shape[1], v.shape[-1])
        return torch.zeros(shape, dtype=v.dtype, device=v.device), None

    AttentionInterface.register(PROBE, attend)
    ids = torch.arange(4, device=device_of(model))[None]
    with attention(model, PROBE), torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return seen[0]


def _start(config: Any, generation: Any) -> tuple[int, ...]:
    try:
        return decoder_start(config, generation)
    except BaseModelError:  # another file may name it; one token in any case
        return (0,)


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs."""
    rows, columns = layer.weight.shape  # type: ignore[misc]
    return (int(rows), int(columns)) if isinstance(layer, Conv1D) else (int(columns), int(rows))


def _wide(site: Site, narrow: Any, whole: Any) -> Site:
    """The same site in the full-size model."""
    side = 0 if site.placement == "input" else 1
    thin, size = (_sizes(model.get_submodule(site.module))[side] for model in (narrow, whole))
    ratio = size // thin
    rows = None if site.rows is None else tuple(r * ratio + i for r in site.rows for i in range(ratio))
    return Site(site.module, site.role, site.placement, size, rows, site.down)
