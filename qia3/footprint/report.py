"""The report as one object, from which the text, the JSON and the command line's tables are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qia3 import config
from qia3.bundle.checked import encode
from qia3.bundle.layout import MANIFEST
from qia3.bundle.manifest import DECODER, ENCODER, Architecture, Base, Graph, Manifest
from qia3.bundle.records import HeldOut, Measured, Parity, Record
from qia3.bundle.task import Task
from qia3.errors import BundleError
from qia3.footprint.account import Account, account
from qia3.footprint.bits import in_int8
from qia3.footprint.calibrated import calibrated_for
from qia3.footprint.kernels import (
    KernelBytes,
    bundle_kernels,
    cross_cache_bytes,
    kernel_here,
    kv_cache_bytes,
    mapped_bytes,
)
from qia3.footprint.lora import (
    FLOAT32_BYTES,
    AdapterCost,
    Linear,
    adapter_costs,
    head_entries,
    ia3_cost,
    ia3_entries,
    ia3_parameters,
    unfolded,
)
from qia3.footprint.nodes import node_count
from qia3.footprint.predicted import Compared, compared, of_bundle, on_disk
from qia3.footprint.systems import Claim, System, claim, systems
from qia3.names import ADAPTER


@dataclass(frozen=True)
class Memory:
    """What a device has to hold and read: by kernel, mapped from the file with any of them, and one row's cache at the
    full context, with the cache of an encoder's states for as many positions. `int8_products`: a token runs through
    int8 products; how many operators those take is not modelled, so `nodes`, which run per token, is None.
    """

    kernel_here: str
    kernels: dict[str, KernelBytes]
    mapped_bytes: int
    kv_cache_bytes: int
    nodes: int | None
    cross_cache_bytes: int = 0
    int8_products: bool = False

    @property
    def weights_bytes(self) -> int:
        """Held and at most mapped by the kernel of this machine."""
        kernel = self.kernels[self.kernel_here]
        return kernel.held_bytes + kernel.unpacked_bytes + self.mapped_bytes


LIMITS = ("max_difference", "max_kl", "min_top1")


@dataclass(frozen=True)
class Report:
    """All figures of the report. What was not measured is None, or missing in `training`."""

    name: str
    mode: str
    merged_task: str | None
    base: Base
    architecture: Architecture
    graphs: Mapping[str, Graph]
    versions: Mapping[str, str]
    tasks: Mapping[str, Task]
    training: Mapping[str, Record]
    evaluation: Mapping[str, HeldOut] | None
    parity: Mapping[str, Parity] | None
    limits: dict[str, float]  # of parity, by the build file's keys; empty if not known
    beyond: dict[str, list[str]]  # where parity exceeds them, by adapter
    measured: Measured | None
    account: Account
    fused_qkv: bool
    adapters: list[AdapterCost]
    systems: list[System]
    claim: Claim
    memory: Memory
    predicted: list[Compared]  # compared with measurements; empty if there are none

    def to_dict(self) -> dict[str, Any]:
        """The figures for report.json: the account with its total, graphs and tasks abridged."""
        content: dict[str, Any] = encode(self)
        for graph in content["graphs"].values():
            del graph["vectors"]
        content["tasks"] = {name: {"kind": t.kind, "choices": encode(t.choices)} for name, t in self.tasks.items()}
        content["account"]["total"] = self.account.total
        return content

    @property
    def graph(self) -> Graph:
        """The decoder, which does most of the work, or an encoder alone."""
        return self.graphs[DECODER if DECODER in self.graphs else ENCODER]


def build_report(folder: Path, manifest: Manifest, sealed: Mapping[str, int] | None = None) -> Report:
    """`sealed`: the sizes that report and manifest will have. Raises BundleError if the bytes do not add up."""
    totals = account(folder, manifest, sealed)
    ia3 = _ia3(folder, manifest)
    found, memory, limits = systems(manifest, totals, ia3), _memory(manifest, totals), _limits(manifest)
    return Report(
        name=manifest.name,
        mode=manifest.mode,
        merged_task=manifest.merged_task,
        base=manifest.base,
        architecture=manifest.architecture,
        graphs=manifest.graphs,
        versions=manifest.versions,
        tasks=manifest.tasks,
        training=manifest.training,
        evaluation=manifest.evaluation,
        parity=manifest.parity,
        limits={key: getattr(limits, key) for key in LIMITS} if limits else {},
        beyond=_beyond(manifest, limits),
        measured=manifest.measured,
        account=totals,
        fused_qkv=any(layer.role == "qkv" for layer in manifest.linears),
        adapters=adapter_costs((*manifest.linears, *manifest.dense), _shipped(ia3, manifest, totals)),
        systems=found,
        claim=claim(found),
        memory=memory,
        predicted=_predicted(manifest, totals, memory),
    )


def _predicted(manifest: Manifest, totals: Account, memory: Memory) -> list[Compared]:
    if manifest.measured is None:
        return []
    sizes = of_bundle(manifest, totals.parts, memory.kernels[memory.kernel_here], memory.nodes)
    device = calibrated_for(manifest.measured)
    return [on_disk(manifest, totals.parts), *compared(sizes, manifest.measured, device)]


def _limits(manifest: Manifest) -> config.Parity | None:
    """The parity limits of the build file."""
    if "parity" not in manifest.config:
        return None
    try:
        return config.Parity.model_validate(manifest.config["parity"])
    except ValueError as error:
        raise BundleError(
            f"{MANIFEST} is damaged: config.parity is not a valid [parity] table; build the bundle again"
        ) from error


def _beyond(manifest: Manifest, limits: config.Parity | None) -> dict[str, list[str]]:
    """Remarks on the graphs as shipped."""
    if limits is None:
        return {}
    shipped = {name: both.shipped for name, both in (manifest.parity or {}).items()}
    return {name: far for name, a in shipped.items() if (far := limits.remarks(a.kl, a.top1))}


def _ia3(folder: Path, manifest: Manifest) -> AdapterCost:
    """From the graphs' vectors and the largest adapter file, without a head; if merged, from what was trained, and what
    did not fold.
    """
    sites = manifest.sites
    trained = [record.parameters - head_entries(manifest, task) for task, record in manifest.training.items()]
    parameters = ia3_parameters(sites) if sites else max(trained, default=0)
    files = {f.name.removesuffix(ADAPTER): f.stat().st_size for f in (folder / "adapters").glob(f"*{ADAPTER}")}
    sizes = [size - FLOAT32_BYTES * head_entries(manifest, name) for name, size in files.items()]
    entries = ia3_entries(sites) if manifest.mode == "side" else unfolded(manifest) or 0
    return ia3_cost(parameters, entries, max(sizes, default=FLOAT32_BYTES * parameters))


def _shipped(ia3: AdapterCost, manifest: Manifest, totals: Account) -> AdapterCost:
    """One more task for this bundle: an adapter, or, if vectors are merged, one more model."""
    return ia3 if manifest.mode == "side" else replace(ia3, disk_bytes=totals.weights)


def _memory(manifest: Manifest, totals: Account) -> Memory:
    shape, rounded = manifest.architecture, any(not layer.once for layer in in_int8(manifest.linears))
    return Memory(
        kernel_here=kernel_here(manifest),
        kernels=bundle_kernels(manifest, totals.parts),
        mapped_bytes=mapped_bytes(manifest, totals.parts),
        kv_cache_bytes=kv_cache_bytes(shape, shape.context_length),
        nodes=None if rounded else _nodes(manifest),
        cross_cache_bytes=cross_cache_bytes(shape, shape.context_length),
        int8_products=rounded,
    )


def _nodes(manifest: Manifest) -> int:
    layers: tuple[Linear, ...] = (*manifest.linears, *manifest.dense)
    return node_count(sum(not layer.once for layer in layers), len(manifest.main.vectors), manifest.architecture)
