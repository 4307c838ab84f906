"""The report: one object, from which the text, the JSON and the command line's tables are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qia3.config import Parity
from qia3.footprint.account import Account, account
from qia3.footprint.kernels import KernelBytes, kernel_bytes, kernel_here, kv_cache_bytes, mapped_bytes
from qia3.footprint.lora import FLOAT32_BYTES, AdapterCost, adapter_costs, ia3_cost, ia3_entries, ia3_parameters
from qia3.footprint.systems import Claim, System, claim, systems

# a layer's nodes beside its linear layers and vectors, as counted in the exported SmolLM2-135M (801 nodes, 30 layers)
OTHER_NODES = 16


@dataclass(frozen=True)
class Memory:
    """What a device has to hold and read: by kernel, mapped from the file, and one row's cache at the full context."""

    kernel_here: str
    kernels: dict[str, KernelBytes]
    mapped_bytes: int
    kv_cache_bytes: int
    nodes: int


@dataclass(frozen=True)
class Report:
    """Everything that the report says. What was not measured is None, or left out of `training`."""

    name: str
    mode: str
    merged_task: str | None
    base: dict[str, Any]
    architecture: dict[str, Any]
    graph: dict[str, Any]
    versions: dict[str, str]
    tasks: dict[str, dict[str, Any]]
    training: dict[str, dict[str, Any]]
    evaluation: dict[str, Any] | None
    parity: dict[str, Any] | None
    beyond: dict[str, list[str]]  # what of parity is past the build file's limits, by adapter
    measured: dict[str, Any] | None
    account: Account
    fused_qkv: bool
    adapters: list[AdapterCost]
    systems: list[System]
    claim: Claim
    memory: Memory

    def to_dict(self) -> dict[str, Any]:
        """For report.json: the account with its total."""
        return asdict(self) | {"account": asdict(self.account) | {"total": self.account.total}}


def build_report(folder: Path, manifest: Mapping[str, Any], sealed: Mapping[str, int] | None = None) -> Report:
    """`sealed`: sizes that report and manifest are about to have. Raises BundleError where the bytes do not add up."""
    totals = account(folder, manifest, sealed)
    ia3 = _ia3(folder, manifest)
    found = systems(manifest, totals, ia3)
    return Report(
        name=manifest["name"],
        mode=manifest["mode"],
        merged_task=manifest.get("merged_task"),
        base=dict(manifest["base"]),
        architecture=dict(manifest["architecture"]),
        graph={k: v for k, v in manifest["graph"].items() if k != "vectors"},
        versions=dict(manifest.get("versions") or {}),
        tasks={name: {"kind": t["kind"], "choices": t.get("choices")} for name, t in manifest["tasks"].items()},
        training=dict(manifest.get("training") or {}),
        evaluation=manifest.get("evaluation"),
        parity=manifest.get("parity"),
        beyond=_beyond(manifest),
        measured=manifest.get("measured"),
        account=totals,
        fused_qkv=any(layer["role"] == "qkv" for layer in manifest["linears"]),
        adapters=adapter_costs(manifest["linears"], ia3),
        systems=found,
        claim=claim(found),
        memory=_memory(manifest, totals),
    )


def _beyond(manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """Remarks on the graphs as shipped, by the limits that the build file had."""
    asked = (manifest.get("config") or {}).get("parity")
    if asked is None:
        return {}
    limits = Parity.model_validate(asked)
    shipped = {name: both["shipped"] for name, both in (manifest.get("parity") or {}).items()}
    return {name: far for name, a in shipped.items() if (far := limits.remarks(a["kl"], a["top1"]))}


def _ia3(folder: Path, manifest: Mapping[str, Any]) -> AdapterCost:
    """From the graph's vectors and the largest adapter file; merged: from what was trained, with no bytes and no
    arithmetic left.
    """
    vectors = manifest["graph"]["vectors"]
    trained = [t["parameters"] for t in (manifest.get("training") or {}).values()]
    parameters = ia3_parameters(vectors) if vectors else max(trained, default=0)
    files = [f.stat().st_size for f in (folder / "adapters").glob("*.onnx_adapter")]
    return ia3_cost(parameters, ia3_entries(vectors), max(files, default=FLOAT32_BYTES * parameters))


def _memory(manifest: Mapping[str, Any], totals: Account) -> Memory:
    shape = manifest["architecture"]
    return Memory(
        kernel_here=kernel_here(manifest),
        kernels=kernel_bytes(manifest),
        mapped_bytes=mapped_bytes(manifest, totals.parts),
        kv_cache_bytes=kv_cache_bytes(manifest, shape["context_length"]),
        nodes=len(manifest["linears"]) + len(manifest["graph"]["vectors"]) + OTHER_NODES * shape["layers"],
    )
