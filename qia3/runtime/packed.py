"""Caches a graph with its weights packed for this processor on the device, so that private memory becomes
memory-mapped.

When a session is created, ONNX Runtime packs 4-bit weights for the processor's kernel into its own memory. It can also
write the packed weights beside the graph, once, and map them from there afterwards: pages that the system may drop, and
that several processes share.

FOLDER/KEY/model.onnx, model.onnx.data      KEY: 16 hex digits of a SHA-256 over the files' hashes, ONNX Runtime's version and the processor

The packed form depends on processor and version, so it is made where it is used and never shipped. It takes about twice
the size of the weight file on disk. A KEY folder is complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path

import onnxruntime as ort

from qia3.bundle.manifest import Graph
from qia3.bundle.opened import Bundle
from qia3.errors import BundleError, QIA3Error
from qia3.storage import made_once

PACKED = "model.onnx"
SETTINGS = {
    "session.save_external_prepacked_constant_initializers": "1",
    "session.optimized_model_external_initializers_file_name": f"{PACKED}.data",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}


def packed_graph(bundle: Bundle, graph: Graph, options: ort.SessionOptions, folder: Path) -> Path:
    """The packed form of one graph of `bundle` in `folder`, made by a session with `options` if it is not there.

    Raises StorageError, and BundleError if ONNX Runtime cannot load the graph.
    """
    place, file = folder / _key(bundle, graph), bundle.path / graph.file
    if (place / PACKED).is_file():
        return place / PACKED
    try:
        with made_once(place) as scratch:
            options.optimized_model_filepath = str(scratch / PACKED)
            for name, value in SETTINGS.items():
                options.add_session_config_entry(name, value)
            ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except QIA3Error:
        raise
    except Exception as error:  # onnxruntime raises its own types, without a common base
        raise BundleError(f"ONNX Runtime cannot pack {file}: {str(error).splitlines()[0]}") from error
    return place / PACKED


def _key(bundle: Bundle, graph: Graph) -> str:
    files = bundle.manifest.files
    read = dict.fromkeys((graph.file, graph.data, bundle.manifest.main.data))  # a prompt's graph reads two data files
    what = [[files[name].sha256 for name in read], ort.__version__, _processor()]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _processor() -> list[str]:
    """What the choice of a kernel depends on: the architecture, and the first processor's instruction sets if the
    system reports them.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines() if cpuinfo.is_file() else []
    flags = [
        line.split(":", 1)[1].strip()
        for line in lines
        if line.split(":", 1)[0].strip() in ("flags", "Features", "model name")
    ]
    return [platform.machine(), platform.processor(), *flags]
