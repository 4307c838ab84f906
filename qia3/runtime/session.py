"""A bundle's graph in ONNX Runtime: one session, on the available physical cores, and the vectors that it is fed.

Vectors are ordinary inputs, [1, 1, d] for all rows or [rows, 1, d]. ONNX Runtime's own mechanism, an active adapter, is
silently ignored by the IO binding that a cache needs. A bundle may have several graphs, each with inputs for its own
vectors: all given vectors are checked, and each graph is fed its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort

from qia3.bundle.manifest import Graph
from qia3.bundle.opened import Bundle
from qia3.bundle.ports import HEAD, HEAD_BIAS, HEAD_WEIGHT, PAST, cache_type
from qia3.errors import AdapterError, BundleError, QIA3Error, first_line
from qia3.runtime.cache import Floats
from qia3.runtime.int8_products import check_products
from qia3.runtime.packed import packed_graph


class GraphSession:
    """One graph of a bundle, loaded. `ports` are its inputs by name, with their shapes."""

    def __init__(self, bundle: Bundle, graph: Graph, threads: int, packed: Path | None) -> None:
        check_products(bundle)
        path = bundle.path / graph.file if packed is None else packed_graph(bundle, graph, options(threads), packed)
        self.path, self.sizes = path, bundle.vectors
        self.session = session(path, threads)
        self.ports = {i.name: i.shape for i in self.session.get_inputs()}
        # the type of keys and values: int8 if the bundle was built with cache = "int8"
        self.cache_type = next(
            (cache_type(i.type) for i in self.session.get_inputs() if i.name.startswith(PAST)), np.float32
        )
        self.own = {vector.name for vector in graph.vectors}
        # ones for vectors without a default in the graph (the target's `vectors` is "required")
        self.ones = {
            name: np.ones((1, 1, shape[2]), np.float32) for name, shape in self.ports.items() if name in self.own
        }
        self.nought: dict[str, Floats] = {}  # a head of zeros, if the graph has no default for it
        if HEAD_WEIGHT in self.ports:
            width = self.ports[HEAD_WEIGHT][2]
            self.nought = {HEAD_WEIGHT: np.zeros((1, 1, width), np.float32), HEAD_BIAS: np.zeros((1, 1), np.float32)}

    def fed(self, vectors: Mapping[str, Floats], rows: int) -> Mapping[str, Floats]:
        """The inputs of this graph from `vectors`, with ones for missing ones that it needs. Raises AdapterError.

        A wrong number of rows could broadcast into a wrong answer, so it is refused here.
        """
        head = {name: v for name, v in vectors.items() if name in HEAD}
        self._check(self.ones | {name: v for name, v in vectors.items() if name not in HEAD}, rows)
        own = {name: v.astype(np.float32, copy=False) for name, v in vectors.items() if name in self.own}
        return self.ones | self.nought | own | head

    def running(self) -> AbstractContextManager[None]:
        """Wraps ONNX Runtime's work on the graph. Raises BundleError for its errors: a graph whose inputs are not those
        in the manifest, or that fails to run.
        """
        return running(self.path)

    def _check(self, vectors: Mapping[str, Floats], rows: int) -> None:
        sizes = self.sizes
        bad = [f"{n} is not an input of this bundle" for n in vectors if n not in sizes]
        shapes = {n: v.shape for n, v in vectors.items() if n in sizes}
        bad += [
            f"{n} has shape {list(s)}" for n, s in shapes.items() if s not in ((1, 1, sizes[n]), (rows, 1, sizes[n]))
        ]
        if len({s[0] for s in shapes.values()} | ({1} if len(shapes) < len(sizes) else set())) > 1:
            bad.append("some have one row, others several")
        if bad:
            raise AdapterError(
                f"vectors for {rows} rows must all be [1, 1, d] or all [{rows}, 1, d] and inputs of the "
                f"graph: {'; '.join(bad)}"
            )


@contextmanager
def running(path: Path) -> Iterator[None]:
    """Wraps ONNX Runtime's work on the graph at `path`. Raises BundleError for its errors."""
    try:
        yield
    except QIA3Error:
        raise
    except Exception as error:  # onnxruntime raises its own types, without a common base
        raise BundleError(f"ONNX Runtime cannot run {path}: {first_line(error)}; build the bundle again") from error


def options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # otherwise one warning per vector with a default
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Threads that go on waiting for work after a run take the processor from the next graph's: questions to a bundle
    # with two graphs took 1.7 times as long. Within a run they wait as before; decoding is as fast.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def session(path: Path, threads: int, arena: bool = True) -> ort.InferenceSession:
    """A session for a graph; `arena`: it holds on to memory that it has used. Raises BundleError if it cannot be loaded."""
    asked = options(threads)
    asked.enable_cpu_mem_arena = arena
    try:
        return ort.InferenceSession(str(path), asked, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own types, without a common base
        raise BundleError(f"ONNX Runtime cannot load {path}: {str(error).splitlines()[0]}") from error
