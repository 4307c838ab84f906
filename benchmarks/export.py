"""How long the export takes and how much memory: the graph from a 4-bit base in memory, written to disk.

    python benchmarks/export.py smollm2-135m-instruct
    python benchmarks/export.py dist/bench/llama1b/float --calibration none      # made by decode_models.py llama1b

Peak is the process's highest resident memory from the moment the base is loaded; what torch and transformers hold
before anything is loaded is given beside it, and taken off in the ratio to the written files.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from qia3.base.load import Asked, load_base
from qia3.graph.export import export_decoder
from qia3.graph.external import write_graph
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import attach
from qia3.runtime.bench import resident


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--calibration", default="own")
    asked = parser.parse_args()
    libraries = sum(resident()[k] for k in ("RssAnon", "RssFile"))
    load_base(
        Asked(asked.model, block_size=asked.block, calibration=asked.calibration)
    )  # makes and keeps it, where that was not done before
    base = load_base(Asked(asked.model, block_size=asked.block, calibration=asked.calibration))
    roles = find_roles(base.model)
    attach(base.model, roles.sites)
    loaded = sum(resident()[k] for k in ("RssAnon", "RssFile"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        graph = export_decoder(base.model, 4, 2048, "last")
        traced = time.perf_counter()
        write_graph(graph, Path(folder), ["model.embed_tokens", "lm_head"])
        written = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
        peak = resident()["VmHWM"]
        facts = {
            "seconds": round(time.perf_counter() - started, 1),
            "of_them_tracing_and_passes": round(traced - started, 1),
            "written_mib": written >> 20,
            "libraries_mib": libraries >> 20,
            "loaded_mib": loaded >> 20,
            "peak_mib": peak >> 20,
            "peak_over_libraries_to_written": round((peak - libraries) / written, 2),
        }
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
