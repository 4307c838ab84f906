"""What benchmarks/fuzz.py mutates: every kind of file that qia3 reads, each with the real thing that reads it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz import ROOT, Reader

sys.path.insert(0, str(ROOT / "tests"))
LIGHT, HEAVY = 3.0, 0.5  # shares of the mutations: what takes milliseconds, and what loads a model


def readers(work: Path) -> list[Reader]:
    """Makes the inputs once, in `work`, by the real commands; a reader's folder is a copy."""
    bundle = _bundle(work)
    return [*_of_a_bundle(bundle), *_of_adapters(bundle), *_of_texts(bundle), *_of_bases(work)]


def _bundle(work: Path) -> Path:
    """A folder with a finished bundle of two tasks, an adapter taken out of it, and what it was built from."""
    from tiny_build import write_build

    place = work / "made"
    file = write_build(place, steps=2)
    file.write_text(file.read_text() + "min_top1 = 0\nmax_kl = 9\n")
    for command in (("build", "qia3.toml", "--output", "bundle"), ("adapter", "export", "bundle", "topics", "peft")):
        subprocess.run([sys.executable, "-m", "qia3", *command], cwd=place, check=True, capture_output=True)
    shutil.rmtree(place / "bundle.work")
    return place


def _copies(made: Path, *names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            source = made / name
            shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)

    return make


def _verb(*arguments: str) -> Callable[[Path], None]:
    """The command itself, in this process; {} in an argument is the folder."""

    def act(folder: Path) -> None:
        from qia3.cli import qia3

        qia3.main([a.replace("{}", str(folder)) for a in arguments], prog_name="qia3", standalone_mode=False)

    return act


def _rehash(folder: Path, file: str) -> None:
    """Has the manifest list the changed file as it is."""
    bundle = folder / "bundle"
    manifest = json.loads((bundle / "manifest.json").read_text())
    data = (folder / file).read_bytes()
    name = str(Path(file).relative_to("bundle"))
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def _of_a_bundle(made: Path) -> list[Reader]:
    bundle = _copies(made, "bundle")
    run = _verb("run", "{}/bundle", "lights off", "--adapter", "topics")
    manifest, graph = "bundle/manifest.json", "bundle/onnx/model_q4.onnx"

    def opened(folder: Path) -> None:
        from qia3.bundle.opened import Bundle

        Bundle.open(folder / "bundle")

    return [
        Reader("manifest", (manifest,), "json", bundle, opened, LIGHT),
        Reader("manifest-run", (manifest,), "json", bundle, run),
        Reader("manifest-report", (manifest,), "json", bundle, _verb("report", "{}/bundle"), LIGHT),
        Reader("manifest-devices", (manifest,), "json", bundle, _verb("devices", "{}/bundle")),
        Reader("tokenizer-bundle", ("bundle/tokenizer.json",), "json", bundle, run, 1.0, _rehash),
        Reader("onnx-graph", (graph,), "binary", bundle, run, 1.0, _rehash),
        Reader("onnx_adapter-bundle", ("bundle/adapters/topics.onnx_adapter",), "binary", bundle, run, 1.0, _rehash),
    ]


def _of_adapters(made: Path) -> list[Reader]:
    both = _copies(made, "bundle", "peft")
    put_in = _verb("adapter", "import", "{}/bundle", "{}/peft", "--name", "new")
    file = "bundle/adapters/topics.onnx_adapter"
    info = _verb("adapter", "info", f"{{}}/{file}")
    return [
        Reader("onnx_adapter-info", (file,), "binary", both, info, LIGHT),
        Reader("task", ("peft/task.json",), "json", both, put_in),
        Reader("peft-config", ("peft/adapter_config.json",), "json", both, put_in),
        Reader("peft-weights", ("peft/adapter_model.safetensors",), "binary", both, put_in),
        Reader("peft-info", ("peft/adapter_model.safetensors",), "binary", both, _verb("adapter", "info", "{}/peft")),
    ]


def _of_texts(made: Path) -> list[Reader]:
    files = _copies(made, "qia3.toml", "topics.jsonl", "topics-test.jsonl", "commands.jsonl", "commands-test.jsonl")

    def plan(folder: Path) -> None:
        from qia3.build import plan_jobs
        from qia3.config import read_build

        plan_jobs(read_build(folder / "qia3.toml"))

    lines = ("topics.jsonl", "topics-test.jsonl", "commands.jsonl")
    evaluated = _verb("eval", "{}/bundle", "{}/topics-test.jsonl", "--adapter", "topics")
    both = _copies(made, "bundle", "topics-test.jsonl")
    return [
        Reader("toml", ("qia3.toml",), "text", files, plan, LIGHT),
        Reader("jsonl", lines, "lines", files, plan, LIGHT),
        Reader("jsonl-eval", ("topics-test.jsonl",), "lines", both, evaluated),
    ]


def _of_bases(work: Path) -> list[Reader]:
    from test_base_bnb import serialised
    from tiny_build import write_base
    from tiny_quantised import write_gguf, write_packed

    def packed(codes: str, shards: int = 1) -> Callable[[Path], Any]:
        return lambda folder: write_packed(folder / "base", codes, shards=shards)

    def nf4(folder: Path) -> None:
        shutil.move(serialised(work / "bnb"), folder / "base")

    def plain(folder: Path) -> None:
        write_base(folder / "base")

    def older_awq(folder: Path) -> None:
        write_packed(folder / "base", "awq")
        file = folder / "base" / "config.json"
        config = json.loads(file.read_text())
        settings = config.pop("quantization_config")
        file.write_text(json.dumps(config))
        old = {"zero_point": True, "q_group_size": settings["group_size"], "w_bit": 4, "version": "GEMM"}
        (folder / "base" / "quant_config.json").write_text(json.dumps(old))

    def gguf(folder: Path) -> None:
        write_gguf(folder / "base")

    weights, config = ("base/model.safetensors",), ("base/config.json",)
    words = ("base/tokenizer.json", "base/tokenizer_config.json", "base/generation_config.json")
    index = ("base/model.safetensors.index.json",)
    rows = [
        ("base-config", config, "json", plain),
        ("base-weights", weights, "binary", plain),
        ("base-words", words, "json", plain),
        ("base-index", index, "json", packed("gptq", 3)),
        ("gptq-config", config, "json", packed("gptq")),
        ("gptq-weights", weights, "binary", packed("gptq")),
        ("awq-config", config, "json", packed("awq")),
        ("awq-weights", weights, "binary", packed("awq")),
        ("awq-older", ("base/quant_config.json",), "json", older_awq),
        ("bnb-config", config, "json", nf4),
        ("bnb-weights", weights, "binary", nf4),
        ("gguf", ("base/model.gguf",), "binary", gguf),
    ]
    found = [Reader(name, files, kind, _with_plan(make), _load, HEAVY) for name, files, kind, make in rows]
    kept = _with_plan(lambda folder: _keep(work, folder))
    facts = ("base/base.json", "base/config.json", "base/tokenizer.json")
    found.append(Reader("kept-facts", facts, "json", kept, _load, HEAVY))
    found.append(Reader("kept-weights", weights, "binary", kept, _load, HEAVY))
    return [*found, *_made_by_the_owners()]


def _made_by_the_owners() -> list[Reader]:
    """compressed-tensors and MLX folders, as the libraries wrote them; without a tokenizer, so they are only opened."""
    golden = ROOT / "tests" / "golden"

    def opened(folder: Path) -> None:
        from qia3.base.load import told
        from qia3.base.quantised import open_quantised
        from qia3.base.sources import resolve

        source = resolve(str(folder / "base"))
        with told(source):
            open_quantised(source)

    found = []
    for name in ("compressed", "mlx"):
        make = lambda folder, name=name: shutil.copytree(golden / name, folder / "base")  # noqa: E731
        for what, file, kind in (("config", "config.json", "json"), ("weights", "model.safetensors", "binary")):
            found.append(Reader(f"{name}-{what}", (f"base/{file}",), kind, make, opened, HEAVY))
    return found


def _with_plan(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """The base, and a build file that names it."""

    def both(folder: Path) -> None:
        make(folder)
        name = "base/model.gguf" if (folder / "base" / "model.gguf").exists() else "base"
        rows = {"train.jsonl": "ab", "test.jsonl": "ab"}
        for file, labels in rows.items():
            text = "".join(json.dumps({"text": f"the {x}", "label": x}) + "\n" for x in labels)
            (folder / file).write_text(text)
        grid = "" if not (folder / "base" / "base.json").exists() else "block_size = 16\n"
        (folder / "qia3.toml").write_text(
            f'name = "x"\n[base]\nmodel = "{name}"\ncalibration = "none"\n{grid}[[task]]\nname = "t"\nkind = "classify"\n'
            'prompt = "Which? {text}"\ntrain = "train.jsonl"\ntest = "test.jsonl"\n'
        )

    return both


def _load(folder: Path) -> None:
    """What a build does before it exports: the base and its places for vectors."""
    from qia3.build import load
    from qia3.config import read_build

    load(read_build(folder / "qia3.toml"))


def _keep(work: Path, folder: Path) -> None:
    """A kept base, as a build keeps it: by the real code, which leaves bases this small alone."""
    from tiny_build import write_base

    from qia3.base import load as loading
    from qia3.storage import cache_folder

    place = work / "to-keep"
    _with_plan(lambda at: write_base(at / "base"))(place)
    file = place / "qia3.toml"
    file.write_text(file.read_text().replace("[base]\n", "[base]\nblock_size = 16\n"))
    least, loading.LEAST_KEPT = loading.LEAST_KEPT, 0
    try:
        _load(place)
    finally:
        loading.LEAST_KEPT = least
    (kept,) = (cache_folder() / "bases").iterdir()
    shutil.move(kept, folder / "base")
    shutil.rmtree(place)
