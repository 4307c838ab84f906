"""A GGUF model: one file, or the several files of a split model, read as one.

    m-00001-of-00003.gguf    every entry; split.no = 0, split.count = 3, split.tensors.count = the tensors of all three
    m-00002-of-00003.gguf    split.no = 1 and the same counts; its share of the tensors
    m-00003-of-00003.gguf    split.no = 2 ...

Any of them may be given as the model. All parts must be there and agree; an incomplete model is refused. llama.cpp's
`llama-gguf-split` writes them, counting from 1 in file names and from 0 in `split.no`.

A model is built from sizes in the entries: a corrupted block_count could ask for billions of layers. So the number of
layers is limited by the number of tensors, and every width by the widest tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qia3.base.gguf_file import Extent, Index, Value, read_index
from qia3.errors import BaseModelError

NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)", re.IGNORECASE | re.DOTALL)
MOST_PARTS = 99_999  # five digits
LAYERS = ".block_count"
WIDTHS = (
    ".embedding_length",
    ".feed_forward_length",
    ".vocab_size",
    "head_count",
    ".head_count_kv",
    ".key_length",
    ".value_length",
)
OTHERS = {  # general.type: what such a file is
    "adapter": "an adapter (LoRA) for a model; merge it into its base first",
    "mmproj": "the vision or audio part of a model; name the file with the language model",
    "imatrix": "an importance matrix, which measures a model and holds no weights; name the model's own file",
}


class Entries(dict[str, Value]):
    """The entries about the network, without the architecture's name as prefix: entry -> value."""

    def whole(self, name: str) -> int:
        """A whole number. Raises BaseModelError if it is not one."""
        value = self.get(name)
        if type(value) is not int:
            raise BaseModelError(f"{name} must be a whole number, not {str(value)[:40]}; use another file")
        return value

    def head_size(self) -> int:
        """Size of a query or key of one head."""
        return self.whole("attention.key_length") if "attention.key_length" in self else self.share()

    def share(self) -> int:
        """Width of the model divided by its heads: the head size if the file does not say."""
        return self.whole("embedding_length") // self.whole("attention.head_count")


@dataclass(frozen=True)
class Gguf:
    """The entries of a model's first file, and the tensors of all its files. `path` is the first."""

    path: Path
    files: tuple[Path, ...]
    values: dict[str, Value]
    tensors: dict[str, Extent]

    @property
    def architecture(self) -> str:
        return str(self.values["general.architecture"])

    def of_architecture(self) -> Entries:
        """The entries that describe the network, without the architecture's name as prefix."""
        begins = f"{self.architecture}."
        return Entries({name.removeprefix(begins): v for name, v in self.values.items() if name.startswith(begins)})

    def raw(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes, row by row.

        Raises BaseModelError if the file was truncated after it was checked.
        """
        extent = self.tensors[name]
        found = np.fromfile(extent.file, np.uint8, extent.nbytes, offset=extent.start)
        if len(found) != extent.nbytes:
            raise BaseModelError(f"{extent.file} was truncated while it was read")
        rows: NDArray[np.uint8] = found.reshape(*extent.shape[:-1], -1) if extent.nbytes else found
        return rows

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor in float32. Raises BaseModelError if its format cannot be dequantised."""
        import gguf

        kind = gguf.GGMLQuantizationType(self.tensors[name].kind)
        try:
            dense: NDArray[np.float32] = gguf.dequantize(self.raw(name), kind)
        except NotImplementedError as error:
            raise BaseModelError(
                f"{self.path}: tensor {name} is in {kind.name}, which the gguf package does not dequantise; "
                "use a file in another format (Q4_0, Q8_0, F16)"
            ) from error
        return dense.reshape(self.tensors[name].shape)


def open_gguf(path: Path) -> Gguf:
    """Reads and checks the index of the model that this file is, or is a part of.

    Raises BaseModelError, in one line, for a file that is broken, incomplete or not a model.
    """
    index = read_index(path)
    model = _joined(path, index) if _number(index, "split.count", path, 1) > 1 else _alone(path, index)
    kind = model.values.get("general.type", "model")
    if kind != "model":
        raise BaseModelError(f"{path} is {OTHERS.get(str(kind), f'of type {str(kind)[:40]!r}, not a model')}")
    if not isinstance(model.values.get("general.architecture"), str):
        raise BaseModelError(
            f"{model.path} is not a complete GGUF file (it has no general.architecture); fetch it again"
        )
    _check_sizes(model)
    return model


def _alone(path: Path, index: Index) -> Gguf:
    return Gguf(path, (path,), index.values, index.tensors)


def _joined(path: Path, index: Index) -> Gguf:
    """All parts of a split model."""
    count, number = _number(index, "split.count", path, 1), _number(index, "split.no", path, -1)
    named = NAME.fullmatch(path.name)
    if named is None or int(named["count"]) != count or int(named["number"]) != number + 1:
        raise BaseModelError(
            f"{path} is part {number + 1} of a model of {count} files, which are found by name: restore its "
            f"name (it ends in -{number + 1:05d}-of-{count:05d}.gguf), with the others beside it"
        )
    files = [path.with_name(f"{named['stem']}-{i:05d}-of-{named['count']}{named['end']}") for i in range(1, count + 1)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise BaseModelError(
            f"{path} is one of {count} files of a model, and {len(missing)} of them are not beside it: "
            f"{', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}; fetch them as well"
        )
    parts = {file: index if file == path else read_index(file) for file in files}
    first = parts[files[0]]
    for i, (file, part) in enumerate(parts.items()):
        _check_part(file, part, i, count, first)
    tensors: dict[str, Extent] = {}
    for part in parts.values():
        if twice := sorted(set(tensors) & set(part.tensors)):
            raise BaseModelError(f"two files of {path} hold tensor {twice[0][:60]!r}; fetch them again from one source")
        tensors |= part.tensors
    told = _number(first, "split.tensors.count", files[0], len(tensors))
    if told != len(tensors):
        raise BaseModelError(f"the files of {path} hold {len(tensors)} tensors instead of {told}; fetch them again")
    return Gguf(files[0], tuple(files), first.values, tensors)


def _check_part(file: Path, part: Index, number: int, count: int, first: Index) -> None:
    """Checks that a part belongs to the first one. Entries about the network that it repeats must be the same."""
    own = _number(part, "split.no", file, -1), _number(part, "split.count", file, 1)
    if own != (number, count):
        raise BaseModelError(
            f"{file} says that it is part {own[0] + 1} of {own[1]}, but its name says {number + 1} of {count}; "
            "fetch the model's files again from one source"
        )
    for name, value in part.values.items():
        if not name.startswith(("split.", "general.", "GGUF.")) and first.values.get(name) != value:
            raise BaseModelError(
                f"{file} and the first file differ in {name[:60]}; fetch the model's files again from one source"
            )
    if part.values.get("general.architecture", arch := first.values.get("general.architecture")) != arch:
        raise BaseModelError(f"{file} is a part of a model of another architecture; fetch the files from one source")


def _number(index: Index, name: str, path: Path, absent: int) -> int:
    value = index.values.get(name, absent)
    if type(value) is not int or not -1 <= value <= (MOST_PARTS if name == "split.count" else 1 << 40):
        raise BaseModelError(f"{path} is not a complete GGUF file (its {name} is {str(value)[:40]}); fetch it again")
    return value


def _check_sizes(model: Gguf) -> None:
    """Raises BaseModelError if an entry names a size that the tensors cannot have."""
    widest = max((size for extent in model.tensors.values() for size in extent.shape), default=0)
    for name, value in model.values.items():
        most = len(model.tensors) if name.endswith(LAYERS) else widest if name.endswith(WIDTHS) else None
        for number in _numbers(value) if most is not None else ():
            if most is not None and not 0 <= number <= most:
                raise BaseModelError(
                    f"{model.path} is not a complete GGUF file ({name[:60]!r} is {number}, but its tensors "
                    f"allow at most {most}); "
                    "fetch it again"
                )


def _numbers(value: Value) -> Iterator[int | float]:
    """The numbers of an entry: some architectures have one size per layer."""
    if isinstance(value, int | float):
        yield value
    elif not isinstance(value, str):
        yield from value.elements or ()
