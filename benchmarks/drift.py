"""What a GGUF file's layers lose when they are encoded a second time, on our int4 grid; Q4_0 layers keep their codes
and lose nothing.

    python benchmarks/drift.py smollm2-135m-instruct --blocks 32 64           # an alias or a .gguf file
    python benchmarks/drift.py smollm2-135m-instruct --write q4_0.gguf         # a copy of it whose linear layers are Q4_0, and no more

For each format in the file: the error that re-encoding adds, as a share of the weights' own size, sqrt(sum (W' - W)^2 /
sum W^2), and for Q4_0 how many of its tensors our reader gives back without any. The rounding that made the file is not
counted. Layers are sampled evenly (--tensors).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import gguf
import numpy as np

from qia3.base.sources import resolve
from qia3.grids.int4 import dequantise, quantise
from qia3.grids.q4_0 import unpack_q4_0


def write_q4_0(source: Path, file: Path) -> None:
    """The same file with every quantised matrix but the embedding rounded to Q4_0."""
    reader, q4_0 = gguf.GGUFReader(str(source)), gguf.GGMLQuantizationType.Q4_0
    writer = gguf.GGUFWriter(str(file), reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        if tensor.name.startswith("blk.") and tensor.data.ndim == 2:
            dense = gguf.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, gguf.quants.quantize(dense, q4_0), raw_dtype=q4_0)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def drift(tensors: list, block: int) -> tuple[float, float]:
    """Relative root mean square error over the tensors: the mean of them, and the largest."""
    found = []
    for tensor in tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        found.append(float(np.linalg.norm(dequantise(quantise(weight, block)) - weight) / np.linalg.norm(weight)))
    return float(np.mean(found)), max(found)


def is_kept(tensor) -> bool:
    return np.array_equal(dequantise(unpack_q4_0(tensor.data)), gguf.dequantize(tensor.data, tensor.tensor_type))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("--blocks", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--tensors", type=int, default=8, help="of each format")
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    source = resolve(asked.model)
    path = Path(source.name) / str(source.gguf_file)
    if asked.write:
        write_q4_0(path, asked.write)
        return
    formats = defaultdict(list)
    for tensor in gguf.GGUFReader(str(path)).tensors:
        if tensor.data.ndim == 2 and tensor.name.startswith("blk."):
            formats[tensor.tensor_type].append(tensor)
    for format_, tensors in formats.items():
        sample = [tensors[i] for i in np.linspace(0, len(tensors) - 1, min(asked.tensors, len(tensors))).astype(int)]
        if format_ == gguf.GGMLQuantizationType.Q4_0:
            print(f"{format_.name}: {sum(map(is_kept, tensors))} of {len(tensors)} tensors keep their codes exactly")
        for block in asked.blocks:
            mean, most = drift(sample, block)
            print(
                f"{format_.name}, {len(tensors)} tensors, {len(sample)} seen, encoded again at block {block}: {mean:.4f} (largest {most:.4f})"
            )


if __name__ == "__main__":
    main()
