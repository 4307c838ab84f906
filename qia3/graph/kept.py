"""Exported graphs in the cache: made and compared with torch once, and read in a second by every later export.

CACHE/graphs/KEY/decoder.onnx, ...   a graph per role, without its large tensors
CACHE/graphs/KEY/rest.bin            those of them that are not the base's own (rotary tables, transposed float weights)
CACHE/graphs/KEY/graphs.json         the key, and of each large tensor which tensors of the base it consists of
CACHE/graphs/KEY/graphs.sha256       of the other files

A graph's weights are the base's bytes, some of them concatenated (packing.py). So they are not written again: a tensor
of 3 rows of codes of q, k and v reads

    "model.layers.0.self_attn.qkv_proj.codes": {"of": ["model.layers.0.self_attn.q_proj.store.codes", ...], "packed": ...}

and is put together from the base in memory, whose fingerprint is part of the key. So is everything else that a graph
and its comparison with torch depend on: the base's configuration and modules, sites, settings, qia3's own source, the
versions of the packages and the processor. A folder is complete or absent; one that is damaged or was made for another
key is not used, and replaced.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qia3.base.frozen import BaseModel, tables
from qia3.base.modules import GridEmbedding, GridLinear
from qia3.base.shards import raw
from qia3.bundle.sites import Site
from qia3.errors import BaseModelError, QIA3Error, StorageError, first_line
from qia3.graph.packing import PACKED
from qia3.machine import processor
from qia3.parse import read_json_table
from qia3.progress import say
from qia3.storage import cache_folder, made_once

FORMAT = 1
FACTS, SEAL, REST = "graphs.json", "graphs.sha256", "rest.bin"
MOST = 16  # folders that are kept, the newest
LARGE = 1024  # bytes; smaller tensors stay inside the .onnx
SMALLEST = 16  # bytes of a part that is looked for in the base: of fewer, many are alike
PACKAGES = ("torch", "transformers", "onnxruntime", "onnx-ir", "onnxscript", "onnx", "numpy")
Graphs = Mapping[str, ir.Model]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Place:
    """Where the graphs of a base with these settings are cached, and the key that they must have."""

    base: BaseModel
    key: Mapping[str, Any]

    @classmethod
    def of(cls, base: BaseModel, sites: Iterable[Site], settings: Mapping[str, Any]) -> Place:
        """`settings`: JSON values that the export depends on, besides the base and the vectors' sites."""
        model = base.model
        config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
        key = {
            "format": FORMAT,
            "base": base.fingerprint,
            "tables": tables(model),
            "config": config,
            "modules": [_described(name, module) for name, module in model.named_modules()],
            "sites": [asdict(site) for site in sites],
            "settings": settings,
            "source": _source(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "processor": processor(),
        }
        return cls(base, json.loads(json.dumps(key, default=str)))

    @property
    def folder(self) -> Path:
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        return cache_folder() / "graphs" / digest[:16]

    def read(self) -> dict[str, ir.Model] | None:
        """The graphs; None if there are none. Damaged ones are reported and removed."""
        folder = self.folder
        if not folder.is_dir():
            return None
        try:
            if (folder / SEAL).read_text(encoding="utf-8") != _seal(folder):
                raise BaseModelError("it has changed since it was written")
            facts = read_json_table(folder / FACTS, BaseModelError)
            if facts["key"] != self.key:
                raise BaseModelError("it was made for another base or other settings")
            own = Tensors(self.base.model)
            rest = np.fromfile(folder / REST, np.uint8)
            return {role: _read(folder / f"{role}.onnx", facts["graphs"][role], own, rest) for role in facts["graphs"]}
        except MemoryError:
            raise
        except Exception as error:  # a damaged file can raise any exception in onnx and json
            reason = str(error) if isinstance(error, QIA3Error) else first_line(error)
            say(f"the cached graph {folder} is not used, and exported again: {reason}")
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def keep(self, graphs: Graphs) -> None:
        """Writes the graphs, unless another process was faster. Without room they are not cached, which is only
        reported.
        """
        try:
            with made_once(self.folder) as scratch:
                _write(graphs, Tensors(self.base.model), self.key, scratch)
            for old in sorted(self.folder.parent.glob(f"*/{FACTS}"), key=lambda f: f.stat().st_mtime)[:-MOST]:
                shutil.rmtree(old.parent, ignore_errors=True)
        except (StorageError, OSError) as error:
            say(f"this graph is not cached and the next export will make it again: {error}")


class Tensors:
    """The base's tensors as bytes: by name, and by the digest of their bytes."""

    def __init__(self, model: Any) -> None:
        self.named: dict[str, Any] = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def bytes_of(self, name: str) -> Bytes:
        """The bytes of one, without a copy. Raises KeyError."""
        return np.frombuffer(raw(self.named[name]), np.uint8)

    def by_digest(self) -> dict[str, str]:
        """A name for the bytes with each SHA-256."""
        large = [name for name, tensor in self.named.items() if tensor.nbytes >= SMALLEST]
        return {hashlib.sha256(raw(self.named[name])).hexdigest(): name for name in reversed(large)}


def _described(name: str, module: Any) -> list[Any]:
    """A module's name, class, and if it is on a grid how."""
    kind = type(module)
    known: list[Any] = [name, f"{kind.__module__}.{kind.__qualname__}"]
    if isinstance(module, GridLinear | GridEmbedding):
        known += [module.store.kind, module.store.block_size, getattr(module, "scale", None)]
    return known


@cache
def _source() -> str:
    """SHA-256 of qia3's own source."""
    seen, package = hashlib.sha256(), Path(__file__).parents[1]
    for file in sorted(package.rglob("*.py")):
        seen.update(f"{file.relative_to(package).as_posix()}|{file.stat().st_size}|".encode() + file.read_bytes())
    return seen.hexdigest()


def _seal(folder: Path) -> str:
    seen = hashlib.sha256()
    for file in sorted(f for f in folder.iterdir() if f.name != SEAL):
        seen.update(f"{file.name}|{file.stat().st_size}|".encode() + file.read_bytes())
    return seen.hexdigest()


def _write(graphs: Graphs, own: Tensors, key: Mapping[str, Any], folder: Path) -> None:
    known = own.by_digest()
    facts: dict[str, dict[str, Any]] = {role: {} for role in graphs}
    with (folder / REST).open("wb") as rest:
        for role, graph in graphs.items():
            inputs = {value.name for value in graph.graph.inputs}
            taken: dict[str, ir.TensorProtocol] = {}
            try:
                for name, value in graph.graph.initializers.items():
                    tensor = value.const_value
                    packed = value.meta.get(PACKED)
                    if tensor is None or name in inputs or (tensor.nbytes < LARGE and packed is None):
                        continue
                    facts[role][name] = _found(tensor, packed, known, rest)
                    taken[name] = tensor
                    shape = ir.Shape(tensor.shape.numpy())
                    value.const_value = ir.ExternalTensor(REST, 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)
                ir.save(graph, folder / f"{role}.onnx")
            finally:
                for name, tensor in taken.items():
                    graph.graph.initializers[name].const_value = tensor
    written = {"key": key, "graphs": facts}
    (folder / FACTS).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    (folder / SEAL).write_text(_seal(folder), encoding="utf-8")


def _found(
    tensor: ir.TensorProtocol, packed: Sequence[tuple[str, int]] | None, known: Mapping[str, str], rest: Any
) -> dict[str, Any]:
    """Which tensors of the base a tensor consists of, or where its own bytes are, which are then written."""
    content = tensor.tobytes()
    ends = np.cumsum([size for _, size in packed or [("", len(content))]]).tolist()
    parts = [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    names = [known.get(hashlib.sha256(part).hexdigest()) for part in parts]
    found: dict[str, Any] = {} if packed is None else {"packed": [list(part) for part in packed]}
    if None not in names:
        return found | {"of": names}
    found |= {"at": rest.tell(), "bytes": len(content)}
    rest.write(content)
    return found


def _read(file: Path, facts: Mapping[str, Any], own: Tensors, rest: Bytes) -> ir.Model:
    graph = ir.load(file)
    for name, known in facts.items():
        value = graph.graph.initializers[name]
        tensor = value.const_value
        assert tensor is not None
        own_bytes = "of" in known
        parts = [own.bytes_of(of) for of in known["of"]] if own_bytes else [rest[known["at"] :][: known["bytes"]]]
        if sum(part.nbytes for part in parts) != tensor.nbytes:
            raise BaseModelError(f"{name} has {tensor.nbytes} bytes, and its parts have not")
        value.const_value = _tensor(name, tensor.dtype, tensor.shape, parts)
        if "packed" in known:
            value.meta[PACKED] = tuple((str(part), int(size)) for part, size in known["packed"])
    return graph


def _tensor(name: str, dtype: ir.DataType, shape: ir.Shape, parts: Sequence[Bytes]) -> ir.TensorProtocol:
    """A tensor of these bytes; several are concatenated each time that it is read, as when it was packed."""
    sizes = shape.numpy()
    if len(parts) > 1:
        return ir.LazyTensor(
            lambda: ir.Tensor(np.concatenate(parts).view(dtype.numpy()).reshape(sizes)), dtype, shape, name=name
        )
    if dtype.itemsize < 1:  # several to a byte
        return ir.PackedTensor(parts[0], dtype, shape=shape, name=name)
    return ir.Tensor(parts[0].view(dtype.numpy()).reshape(sizes), dtype, shape=shape, name=name)
