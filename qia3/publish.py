"""From a trained base to a complete bundle: graph, gate, adapters, evaluation, measurement, report.

If a step fails, nothing is published.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qia3.base.family import embeddings, is_encoder
from qia3.base.frozen import BaseModel
from qia3.base.load import LEAST_KEPT
from qia3.base.stages import prompt_only
from qia3.base.zero_points import write_zero_points
from qia3.bundle.adapter import Adapter, write_adapter
from qia3.bundle.cache_range import write_range
from qia3.bundle.checked import decode
from qia3.bundle.folder import whole_or_absent
from qia3.bundle.head import Head
from qia3.bundle.layout import TRAIN_GRAPH
from qia3.bundle.manifest import DECODER, ENCODER, TRAIN, Manifest
from qia3.bundle.opened import Bundle
from qia3.bundle.peft import write_peft
from qia3.bundle.ports import Cache
from qia3.bundle.records import HeldOut
from qia3.bundle.task import TAGS
from qia3.config import Build
from qia3.describe import dense_layers, describe, linear_layers, places, positions
from qia3.footprint.bits import on_their_grid
from qia3.footprint.measure import measure
from qia3.gate import Tests, gate, recoded, texts_seen
from qia3.gradients import check_gradients, check_learns, learning_graph
from qia3.graph.encoder import export_encoder
from qia3.graph.export import cache_of, export_decoder
from qia3.graph.export_seq2seq import export_seq2seq
from qia3.graph.external import write_graphs
from qia3.graph.kept import Place
from qia3.graph.loader_configs import write_configs, write_tokenizer
from qia3.graph.preflight import preflight
from qia3.graph.preflight_encoder import preflight_encoder
from qia3.graph.preflight_seq2seq import preflight_seq2seq
from qia3.ia3.adapted import AdaptedBase
from qia3.names import ADAPTER
from qia3.printers.documents import seal
from qia3.progress import bar, say
from qia3.rounding import (
    UNROUNDED,
    add_prompts,
    check_rounding,
    replaced,
    rounded_layers,
    shipped_places,
    write_rounded,
)
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.evaluate import evaluate
from qia3.runtime.load import open_engine
from qia3.runtime.readback import read_back
from qia3.storage import alone
from qia3.targets import load_target
from qia3.train.task import Job, Trained

Graphs = Mapping[str, ir.Model]  # by role: "decoder", in an encoder-decoder "encoder" before it


def exported(plan: Build, adapted: AdaptedBase) -> Graphs:
    """The graphs with unmerged vectors, compared with torch before anything is trained; those of a base that is cached
    are cached, too. Raises BaseModelError.
    """
    check_learns(plan, adapted)
    write_zero_points(adapted.model, load_target(plan.export.target).accuracy_level)
    place = _place(plan, adapted) if adapted.base.parameters >= LEAST_KEPT else None
    graphs: Graphs
    if place is not None and (kept := place.read()) is not None:
        say(f"reading the graph from the cache: {place.folder}")
        graphs = kept
    else:
        say("exporting the graph and comparing it with torch, before anything is trained")
        graphs = _exported(plan, adapted)
        if place is not None:
            place.keep(graphs)
    check_rounding(plan.export, adapted.model, graphs)
    return graphs


def _place(plan: Build, adapted: AdaptedBase) -> Place:
    """Where such graphs are cached."""
    level, positions_, logits, required = _settings(plan, adapted.base)
    settings = {
        "accuracy_level": level,
        "positions": positions_,
        "logits": logits,
        "required": required,
        "trainable": plan.export.trainable,
        "max_difference": plan.parity.max_difference,
    }
    return Place.of(adapted.base, adapted.sites, settings)


def _settings(plan: Build, base: BaseModel) -> tuple[int, int, str, bool]:
    """accuracy_level, positions, logits, and whether vectors are required inputs."""
    target = load_target(plan.export.target)
    return target.accuracy_level, positions(plan, base), plan.export.logits, target.vectors == "required"


def _exported(plan: Build, adapted: AdaptedBase) -> Graphs:
    base, limit = adapted.base, plan.parity.max_difference
    level, positions_, logits, required = _settings(plan, base)
    settings = (positions_, level, logits, required)
    if is_encoder(base.model.config):
        return {ENCODER: preflight_encoder(base.model, adapted.scaled, positions_, level, required, limit)}
    if base.start:
        return preflight_seq2seq(base.model, adapted.scaled, *settings, limit)
    decoder = {DECODER: preflight(base.model, adapted.scaled, *settings, limit)}
    return decoder | ({TRAIN: learning_graph(adapted, positions_)} if plan.export.trainable else {})


@dataclass(frozen=True)
class Lines:
    """The test and training examples of each task, by name."""

    tests: Tests
    seen: Tests

    @classmethod
    def of(cls, jobs: Iterable[Job]) -> Lines:
        read = tuple(jobs)
        return cls({j.task.name: j.data.test for j in read}, {j.task.name: j.data.train for j in read})


def publish(
    plan: Build, adapted: AdaptedBase, trained: Sequence[Trained], lines: Lines, graphs: Graphs, evaluated: bool = True
) -> Path:
    """Writes the bundle of `plan` and returns its folder. `graphs` come from `exported`. `evaluated`: scored on the
    tests; if not, the manifest's `evaluation` is null and the report says so.
    """
    tests = lines.tests
    target, base, side = load_target(plan.export.target), adapted.base, plan.export.mode == "side"
    drift = recoded(plan, adapted, trained, tests) if base.grid == "nf4" and target.nf4 != "exact" else None
    seen = (base.model, adapted.roles, prompt_only(base.model))
    linears, dense = rounded_layers(base, plan.export, linear_layers(*seen)), dense_layers(*seen)
    if (slow := target.slow_at_eight_bits()) and any(layer.bits == 8 for layer in on_their_grid(linears)):
        say(f"warning: {slow}")
    if not side:
        trained = [t for t in trained if t.task.name == plan.export.merge_task]
        adapted.merge(trained[0].vectors)
    with alone(plan.output_folder, say), whole_or_absent(plan.output_folder, read_back) as folder:
        if not side or drift is not None:  # the weights differ from those in `graphs`
            say("exporting the graph")
            graphs = _again(plan, base, None if side else trained[0].head)
        files, ships = places(base.model), shipped_places(base.model, target)
        data = files[DECODER if DECODER in files else ENCODER][1]
        learns = {TRAIN_GRAPH: graphs[TRAIN]} if TRAIN in graphs else {}
        graphs = {name: graph for name, graph in graphs.items() if name != TRAIN}
        rounds, vocabulary = replaced(plan.export, base.model), _vocabulary(base.model)
        first = folder / UNROUNDED if rounds else folder
        written = {files[n][0]: g for n, g in graphs.items()} | learns
        regions = write_graphs(written, data, first, vocabulary)
        if learns:
            say("comparing the gradients of torch and ONNX Runtime")
            check_gradients(folder / TRAIN_GRAPH, base.model, adapted.scaled)
        if rounds or plan.export.prompts == "int8":
            say("measuring activations, and rounding weights to int8")
            texts = texts_seen(plan, adapted, trained, lines.seen)
            if rounds:
                regions = write_rounded(base, plan.export, folder, texts, vocabulary)
            else:
                regions += add_prompts(folder, files[DECODER][0], texts, vocabulary)
        cache = cache_of(graphs[DECODER]) if DECODER in graphs else None
        manifest = describe(
            plan, base, adapted.scaled, trained, linears, dense, regions, ships, target.accuracy_level, cache, drift
        )
        say("comparing torch and ONNX Runtime")
        final = {name: folder / file for name, (file, _) in ships.items()}
        parity = gate(plan, adapted, trained, lines.tests, lines.seen, graphs, first, final)
        manifest = replace(manifest, parity=parity)
        if rounds:
            shutil.rmtree(first)
        _write_files(adapted, trained, folder, manifest)
        seal(folder, manifest)
        if evaluated:
            manifest = replace(manifest, evaluation=_evaluation(folder, trained, tests, side))
        say("measuring memory and speed in a fresh process")
        seal(folder, replace(manifest, measured=measure(folder)))
    return plan.output_folder


def _again(plan: Build, base: BaseModel, head: Head | None) -> Graphs:
    settings = _settings(plan, base)
    if is_encoder(base.model.config):
        level, positions_, _, required = settings
        return {ENCODER: export_encoder(base.model, level, positions_, required, head)}
    if base.start:
        return export_seq2seq(base.model, *settings)
    return {DECODER: export_decoder(base.model, *settings)}


def _vocabulary(model: Any) -> list[str]:
    """Paths of the embeddings and the head."""
    ends = (*embeddings(model), model.get_output_embeddings())
    return [name for name, module in model.named_modules(remove_duplicate=False) if any(module is e for e in ends)]


def _write_files(adapted: AdaptedBase, trained: Sequence[Trained], folder: Path, manifest: Manifest) -> None:
    """Writes the adapters in both forms (unless merged), the tokenizer and the configurations."""
    base = adapted.base
    for t in trained if adapted.scaled else ():
        place = folder / "adapters" / t.task.name
        write_adapter(place.with_name(f"{t.task.name}{ADAPTER}"), t.vectors, base.fingerprint, t.head)
        adapter = Adapter(t.vectors, base.fingerprint, head=t.head)
        write_peft(place, adapter, adapted.sites, manifest.base.reference, is_encoder(base.model.config))
    if manifest.architecture.cache == "int8" and adapted.scaled:
        kept = [site.name for site in adapted.sites if site.role != "feed_forward"]
        write_range(folder, kept, [t.vectors for t in trained])
    write_tokenizer(base.tokenizer, folder)
    labels = None if adapted.scaled else trained[0].choices
    tags, shape = trained[0].task.kind == TAGS, manifest.architecture
    cache = Cache(shape.kv_heads, shape.head_size)
    int8 = load_target(manifest.main.target).products == "int8"
    write_configs(base.model, folder, shape.context_length, manifest.stop_tokens, cache, labels, tags, int8)


def _evaluation(folder: Path, trained: Sequence[Trained], tests: Tests, side: bool) -> dict[str, HeldOut]:
    """Scores of the bundle itself on held-out examples: without the adapter and with it (merged models, and encoders,
    which need the adapter's head to label: with it only).
    """
    bundle = Bundle.open(folder)
    engine, bank = open_engine(bundle), AdapterBank(bundle)
    results: dict[str, HeldOut] = {}
    without = side and bundle.architecture.pooling is None
    for t in trained:
        name = t.task.name
        say(f"evaluating {name} on {t.task.test.name}")
        scores = {}
        for when, adapter in [*([("before", None)] if without else []), ("after", name)]:
            track = partial(bar, title=f"{'with' if adapter else 'without'} its adapter")
            scores[when] = evaluate(engine, bank, tests[name], adapter, name, track).to_dict()
        results[name] = decode(HeldOut, {"n": scores["after"]["n"], **scores})
    return results
