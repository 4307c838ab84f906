"""From a trained base to a whole bundle: graph, parity gate, adapters, evaluation, measurement, report.

Nothing is kept if a step fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qia3.base.frozen import BaseModel
from qia3.bundle.adapter import Adapter, as_inputs, write_adapter
from qia3.bundle.checked import decode
from qia3.bundle.folder import whole_or_absent
from qia3.bundle.layout import GRAPH
from qia3.bundle.manifest import Manifest
from qia3.bundle.opened import Bundle
from qia3.bundle.peft import write_peft
from qia3.bundle.records import Drift, HeldOut, Parity
from qia3.config import Build
from qia3.describe import describe, linear_layers, positions
from qia3.examples import Example
from qia3.footprint.documents import seal
from qia3.footprint.measure import measure
from qia3.graph.export import export_decoder
from qia3.graph.external import write_graph
from qia3.graph.forced import OrtDecoder, torch_choices, torch_logits
from qia3.graph.loader_configs import write_configs, write_tokenizer
from qia3.graph.parity import REMEDY, Agreement, check, compare
from qia3.graph.passes import AccuracyLevel
from qia3.graph.preflight import preflight
from qia3.ia3.roles import Roles
from qia3.ia3.vectors import Scaled, detach, fold, set_vectors
from qia3.progress import bar, say
from qia3.recoding import recode_base
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.engine import Engine
from qia3.runtime.evaluate import evaluate
from qia3.runtime.readback import read_back
from qia3.targets import load_target
from qia3.train.compute import computing
from qia3.train.task import Trained

Tests = Mapping[str, Sequence[Example]]


def exported(plan: Build, base: BaseModel, scaled: dict[str, Scaled]) -> ir.Model:
    """The graph with vectors at the side, compared with torch before anything is trained. Raises BaseModelError."""
    target = load_target(plan.export.target)
    say("exporting the graph and comparing it with torch, before anything is trained")
    required, limit = target.vectors == "required", plan.parity.max_difference
    return preflight(
        base.model, scaled, positions(plan, base), target.accuracy_level, plan.export.logits, required, limit
    )


def publish(
    plan: Build,
    base: BaseModel,
    roles: Roles,
    scaled: dict[str, Scaled],
    trained: Sequence[Trained],
    tests: Tests,
    graph: ir.Model,
) -> Path:
    """Writes the bundle of `plan` and returns its folder. `graph` is what `exported` gave."""
    target = load_target(plan.export.target)
    recoded = base.grid == "nf4" and target.nf4 != "exact"
    drift = _recoded(plan, base, scaled, trained, tests) if recoded else None
    linears = linear_layers(base.model, roles)
    if base.eight_bit and target.accuracy_level != 4:
        say(
            f"ONNX Runtime has no fast product of 8-bit weights at accuracy_level {target.accuracy_level}: this bundle will be slow"
        )
    if plan.export.mode == "merged":
        chosen = next(t for t in trained if t.task.name == plan.export.merge_task)
        trained = [chosen]
        set_vectors(scaled, chosen.vectors)
        fold(scaled)
        detach(base.model, scaled)
    with whole_or_absent(plan.output_folder, read_back) as folder:
        if plan.export.mode == "merged" or recoded:  # other weights than those that `graph` holds
            say("exporting the graph")
            graph = export_decoder(
                base.model,
                target.accuracy_level,
                positions(plan, base),
                plan.export.logits,
                target.vectors == "required",
            )
        regions = write_graph(graph, folder, _vocabulary(base.model))
        lost = None if drift is None else decode(Drift, drift)
        manifest = describe(plan, base, scaled, trained, linears, regions, target.accuracy_level, lost)
        say("comparing torch and ONNX Runtime")
        parity = _parity(plan, base, scaled, trained, tests, graph, folder)
        manifest = replace(manifest, parity={name: decode(Parity, both) for name, both in parity.items()})
        _write_files(plan, base, scaled, trained, folder, manifest)
        seal(folder, manifest)
        scores = _evaluation(folder, trained, tests, plan.export.mode == "side")
        manifest = replace(manifest, evaluation={name: decode(HeldOut, score) for name, score in scores.items()})
        say("measuring memory and speed in a fresh process")
        seal(folder, replace(manifest, measured=measure(folder)))
    return plan.output_folder


def _vocabulary(model: Any) -> list[str]:
    """Paths of the embedding and the head."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [name for name, module in model.named_modules(remove_duplicate=False) if any(module is e for e in ends)]


def _parity(
    plan: Build,
    base: BaseModel,
    scaled: Mapping[str, Scaled],
    trained: Sequence[Trained],
    tests: Tests,
    graph: ir.Model,
    folder: Path,
) -> dict[str, dict[str, dict[str, float]]]:
    """Law 4, for the base alone and for each adapter (merged: for the folded model), on prompts of the tasks' own test
    sentences.

    The two graphs are opened one after the other: each session holds the weights packed in a form of its own.
    """
    exact_path = (folder / GRAPH).with_name("exact.onnx")  # beside the weight file that it shares
    AccuracyLevel(0)(graph)
    ir.save(graph, exact_path)
    side = plan.export.mode == "side"
    adapters: dict[str, Trained | None] = {**({"none": None} if side else {}), **{t.task.name: t for t in trained}}
    with computing(base.model, torch.float32):
        cases = {name: _case(plan, base, scaled, adapter, trained, tests) for name, adapter in adapters.items()}
    found: dict[str, dict[str, Agreement]] = {name: {} for name in cases}
    for kind, path in (("exact", exact_path), ("shipped", folder / GRAPH)):
        decoder = OrtDecoder(path, base.model.config.get_text_config())
        for name, case in cases.items():
            found[name][kind] = case.compared(decoder)
        del decoder
    for name, agreement in found.items():
        remarks = check(agreement["exact"], agreement["shipped"], plan.parity, f"adapter {name}", str(plan.work_folder))
        if remarks:
            say(f"warning: int8 activations change adapter {name} beyond [parity]: {'; '.join(remarks)}; {REMEDY}")
    exact_path.unlink()
    return {name: {kind: a.to_dict() for kind, a in agreement.items()} for name, agreement in found.items()}


@dataclass(frozen=True)
class _Case:
    """Prompts with the tokens forced after each, the vectors to feed, and torch's logits [T, V] of them all."""

    forced: Sequence[tuple[list[int], list[int]]]
    vectors: Mapping[str, np.ndarray[Any, Any]]
    reference: np.ndarray[Any, Any]

    def compared(self, decoder: OrtDecoder) -> Agreement:
        return compare(self.reference, np.concatenate([decoder.logits(*pair, self.vectors) for pair in self.forced]))


def _case(
    plan: Build,
    base: BaseModel,
    scaled: Mapping[str, Scaled],
    adapter: Trained | None,
    trained: Sequence[Trained],
    tests: Tests,
) -> _Case:
    side = plan.export.mode == "side"
    if side:
        set_vectors(scaled, adapter.vectors if adapter else {})
    prompts = _prompts(plan, base, [adapter] if adapter else trained, tests)
    forced = [(prompt, torch_choices(base.model, prompt, plan.parity.decode_steps)) for prompt in prompts]
    vectors = as_inputs(adapter.vectors) if adapter and side else {}
    return _Case(forced, vectors, np.concatenate([torch_logits(base.model, *pair) for pair in forced]))


def _recoded(
    plan: Build, base: BaseModel, scaled: Mapping[str, Scaled], trained: Sequence[Trained], tests: Tests
) -> dict[str, Any]:
    """The base on the grid that it ships on; what that changes for the base and for each adapter."""
    vectors = {"none": {}, **{t.task.name: t.vectors for t in trained}}
    prompts = {
        "none": _prompts(plan, base, trained, tests),
        **{t.task.name: _prompts(plan, base, [t], tests) for t in trained},
    }
    return recode_base(base, scaled, vectors, prompts, plan.export.recode, plan.parity.decode_steps)


def _prompts(plan: Build, base: BaseModel, trained: Sequence[Trained], tests: Tests) -> list[list[int]]:
    """Prompts in turn from each task's test sentences."""
    texts = [(t.prompt, e.text) for t in trained for e in tests[t.task.name][: plan.parity.prompts]]
    step = max(1, len(texts) // plan.parity.prompts)
    return [list(base.tokens.prompt(*pair)) for pair in texts[::step][: plan.parity.prompts]]


def _write_files(
    plan: Build,
    base: BaseModel,
    scaled: Mapping[str, Scaled],
    trained: Sequence[Trained],
    folder: Path,
    manifest: Manifest,
) -> None:
    """Adapters in both forms, tokenizer, configurations."""
    if plan.export.mode == "side":
        sites = [s.site for s in scaled.values()]
        for t in trained:
            write_adapter(folder / "adapters" / f"{t.task.name}.onnx_adapter", t.vectors, base.fingerprint)
            adapter = Adapter(t.vectors, base.fingerprint)
            write_peft(folder / "adapters" / t.task.name, adapter, sites, manifest.base.reference)
    write_tokenizer(base.tokenizer, folder)
    write_configs(base.model, folder, manifest.architecture.context_length, manifest.stop_tokens)


def _evaluation(folder: Path, trained: Sequence[Trained], tests: Tests, side: bool) -> dict[str, Any]:
    """Held-out scores of the bundle itself: without the adapter and with it (merged: with it only)."""
    bundle = Bundle.open(folder)
    engine, bank = Engine(bundle), AdapterBank(bundle)
    results: dict[str, Any] = {}
    for t in trained:
        name = t.task.name
        say(f"evaluating {name} on {t.task.test.name}")
        scores = {}
        for when, adapter in [*([("before", None)] if side else []), ("after", name)]:
            track = partial(bar, title=f"{'with' if adapter else 'without'} its adapter")
            scores[when] = evaluate(engine, bank, tests[name], adapter, name, track).to_dict()
        results[name] = {"n": scores["after"]["n"], **scores}
    return results
