"""A bundle as a web page: a folder of plain files that any web server can send, which runs the model in the browser.

    index.html  page.css  page.mjs     the page
    service.js                         caches it, so that a second visit needs no network
    qia3/                              qia3.mjs and its parts
    runtime/                           ONNX Runtime's and the tokenizer's modules, as published on npm
    bundle/                            manifest.json, and the parts of the bundle that a page reads

A browser accepts at most 2 GB in one piece, so a larger file is split into several, listed in the page's manifest:

    "pieces": {"onnx/model_q4.onnx_data": [{"file": "onnx/model_q4.onnx_data.0", "sha256": "...", "bytes": 1073741824}, ...]}
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

from qia3.bundle.layout import MANIFEST
from qia3.bundle.manifest import ADAPTERS, DECODER, ENCODER
from qia3.bundle.opened import Bundle
from qia3.bundle.seal import files_on_disk, to_json
from qia3.errors import ConfigError, StorageError
from qia3.footprint.bits import in_int8
from qia3.names import ADAPTER
from qia3.parse import read_json_table
from qia3.storage import replaced
from qia3.targets import load_target

PIECE = 2**30  # bytes
WORDS = ("tokenizer.json", "tokenizer_config.json")
PAGE = ("index.html", "page.css", "page.mjs")
SERVICE, BUILD = "service.js", "{ version: '', files: [], shell: [] }"
# files of the npm packages, per device and for both
WASM = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
WEBGPU = ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
TYPES = "types"  # for who writes TypeScript: no page reads them
MODULES = {"onnxruntime-web": (*WASM, *WEBGPU), "@huggingface/tokenizers": ("tokenizers.min.mjs",)}


@dataclass(frozen=True)
class Page:
    """What was written: `bytes` in all, and the bytes that a first visit fetches on WebAssembly and on WebGPU (None: the
    bundle has int8 products, which only WebAssembly has).
    """

    path: str
    bytes: int
    wasm_bytes: int
    webgpu_bytes: int | None
    pieces: int


def write_page(bundle: Bundle, output: Path, packages: Path, piece: int = PIECE) -> Page:
    """Writes a bundle's page, completely or not at all, in place of an older page. `packages` is npm's folder, or the
    node_modules in it; `piece` is the maximum size of a file, in bytes.

    Raises ConfigError for a bundle that a page cannot run and for missing packages, StorageError if `output` exists and
    is not a page.
    """
    _check(bundle)
    sources = _modules(packages)
    if output.exists() and not (output / SERVICE).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise StorageError(f"{output} exists and is not a page; choose another output or move it away")
    with replaced(output) as scratch:
        for folder in ("qia3", "runtime", "bundle"):
            (scratch / folder).mkdir()
        _write_web(scratch)
        for name, source in sources.items():
            shutil.copyfile(source, scratch / "runtime" / name)
        count = _write_bundle(bundle, scratch / "bundle", piece)
        _write_service(scratch)
        sizes = files_on_disk(scratch)
    whole, (wasm, webgpu) = sum(sizes.values()), [sum(sizes[f"runtime/{n}"] for n in each) for each in (WASM, WEBGPU)]
    return Page(str(output), whole, whole - webgpu, None if in_int8(bundle.manifest.linears) else whole - wasm, count)


def install_command(folder: str = "runtime") -> str:
    """The npm command that installs the packages, at the versions that were tested."""
    wanted = " ".join(f"{name}@{version}" for name, version in sorted(_versions().items()))
    return f"npm install --ignore-scripts --prefix {folder} {wanted}"


def _versions() -> dict[str, str]:
    found: dict[str, str] = json.loads(_text("package.json"))["dependencies"]
    return found


def _text(name: str) -> str:
    return files("qia3.web").joinpath(name).read_text(encoding="utf-8")


def _check(bundle: Bundle) -> None:
    for graph in bundle.manifest.graphs.values():
        if load_target(graph.target).vectors != "required":
            raise ConfigError(
                f"{bundle.path} was exported for {graph.target!r}, which a browser cannot feed; "
                "export it again with --target browser or browser-wasm"
            )


def _modules(packages: Path) -> dict[str, Path]:
    """Files of the packages by their names in the page. Raises ConfigError if one is missing or has another version."""
    root = packages / "node_modules" if (packages / "node_modules").is_dir() else packages
    found = {name: root / package / "dist" / name for package, names in MODULES.items() for name in names}
    if missing := [path.relative_to(root).as_posix() for path in found.values() if not path.is_file()]:
        raise ConfigError(f"{packages} has no {missing[0]}: {install_command()}, then --runtime runtime")
    for package, version in _versions().items():
        file = root / package / "package.json"
        if (there := read_json_table(file, ConfigError, "install it again").get("version")) != version:
            raise ConfigError(f"{root / package} is version {there}, but {version} was tested: {install_command()}")
    return found


def _write_web(scratch: Path) -> None:
    for name in (name for name in json.loads(_text("package.json"))["files"] if name != TYPES):
        (scratch / "qia3" / name).write_text(_text(name), encoding="utf-8")
    for name in PAGE:
        (scratch / name).write_text(_text(f"page/{name}"), encoding="utf-8")


def _write_bundle(bundle: Bundle, folder: Path, piece: int) -> int:
    """Writes the parts of a bundle that a page reads. Returns the number of files that were split."""
    manifest = bundle.manifest
    run = [manifest.graphs[name] for name in (ENCODER, DECODER) if name in manifest.graphs]
    graphs = {name for graph in run for name in (graph.file, graph.data)}
    adapters = {f"{ADAPTERS}{name}{ADAPTER}" for name in manifest.adapters}
    content: dict[str, Any] = json.loads((bundle.path / MANIFEST).read_text(encoding="utf-8"))
    pieces = {}
    for name in sorted(graphs | adapters | {name for name in WORDS if name in manifest.files}):
        source, place = bundle.path / name, folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if manifest.files[name].bytes <= piece:
            shutil.copyfile(source, place)
        else:
            with source.open("rb") as opened:
                pieces[name] = list(_cut(opened, place, name, piece))
    (folder / MANIFEST).write_bytes(to_json(content | ({"pieces": pieces} if pieces else {})))
    return len(pieces)


def _cut(source: BinaryIO, place: Path, name: str, piece: int) -> Iterator[dict[str, Any]]:
    """Writes NAME.0, NAME.1, ... and yields their entries in the manifest."""
    number = 0
    while data := source.read(piece):
        place.with_name(f"{place.name}.{number}").write_bytes(data)
        yield {"file": f"{name}.{number}", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        number += 1


def _write_service(scratch: Path) -> None:
    """Writes the service worker, with a version that depends on every file that it caches."""
    kept = [name for name in files_on_disk(scratch) if not name.startswith("bundle/") or name == f"bundle/{MANIFEST}"]
    version = hashlib.sha256(b"".join(hashlib.sha256((scratch / name).read_bytes()).digest() for name in kept))
    shell = [name for name in kept if not name.startswith("runtime/")]
    build = json.dumps({"version": version.hexdigest()[:16], "files": kept, "shell": shell})
    text = _text(f"page/{SERVICE}")
    assert BUILD in text  # otherwise page.py and service.js do not match
    (scratch / SERVICE).write_text(text.replace(BUILD, build), encoding="utf-8")
