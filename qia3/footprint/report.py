"""The report: one object, from which the text, the JSON and the command line's table are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qia3.footprint.account import Account, account
from qia3.footprint.lora import AdapterCost, adapter_costs, ia3_parameters
from qia3.footprint.systems import System, claim, kv_cache_bytes, systems


@dataclass(frozen=True)
class Report:
    """Everything that the report says. Optional parts are None where they were not measured."""

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
    measured: dict[str, Any] | None
    account: Account
    adapters: list[AdapterCost]
    systems: list[System]
    claim: dict[str, Any]
    kv_cache_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """For report.json: the account with its total."""
        return asdict(self) | {"account": asdict(self.account) | {"total": self.account.total}}


def build_report(folder: Path, manifest: Mapping[str, Any], sealed: Mapping[str, int] | None = None) -> Report:
    """Raises BundleError where the bytes do not add up."""
    totals = account(folder, manifest, sealed)
    parameters = _ia3_parameters(manifest)
    files = [f.stat().st_size for f in sorted((folder / "adapters").glob("*.onnx_adapter"))]
    found = systems(manifest, totals, parameters)
    return Report(
        name=manifest["name"],
        mode=manifest["mode"],
        merged_task=manifest.get("merged_task"),
        base=dict(manifest["base"]),
        architecture=dict(manifest["architecture"]),
        graph={k: v for k, v in manifest["graph"].items() if k != "vectors"},
        versions=dict(manifest["versions"]),
        tasks={n: {"kind": t["kind"], "choices": t["choices"]} for n, t in manifest["tasks"].items()},
        training=dict(manifest.get("training") or {}),
        evaluation=manifest.get("evaluation"),
        parity=manifest.get("parity"),
        measured=manifest.get("measured"),
        account=totals,
        adapters=adapter_costs(manifest["linears"], parameters, max(files, default=4 * parameters)),
        systems=found,
        claim=claim(found),
        kv_cache_bytes=kv_cache_bytes(manifest, manifest["architecture"]["context_length"]),
    )


def _ia3_parameters(manifest: Mapping[str, Any]) -> int:
    """From the graph's vectors, or, merged, from what was trained."""
    if manifest["graph"]["vectors"]:
        return ia3_parameters(manifest["graph"]["vectors"])
    return max((t["parameters"] for t in (manifest.get("training") or {}).values()), default=0)
