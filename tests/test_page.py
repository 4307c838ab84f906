"""A bundle as a page: what is in the folder, what is refused, and a person's visits to it in headless Chromium, the second
without a network (make browser). Pictures are left in QIA3_PICTURES: look at them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from email.message import Message
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import tiny_bundle as tiny
from click.testing import CliRunner
from places import whole
from test_browser import CHROMIUM, MODULES
from test_web import RUNTIME, browser, in_node, node

from qia3.bundle.opened import Bundle
from qia3.cli import qia3
from qia3.errors import ConfigError, StorageError
from qia3.page import MODULES as PACKAGES
from qia3.page import install_command, write_page
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import classify, reply, task_of
from qia3.runtime.load import open_engine

VISIT = Path(__file__).parent / "browser" / "visit.mjs"
TEXTS = ["the hall", "turn the lights off"]


def for_browsers(folder: Path, seed: int = 0, **options) -> Path:
    """A tiny bundle of the target "browser"."""
    path = tiny.write_bundle(folder, required=True, **options)
    if seed:
        for file in sorted((path / "adapters").iterdir()):
            tiny.write_adapter(file, tiny.random_vectors(seed))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["graphs"]["decoder"]["target"] = "browser"
    manifest.pop("files")
    tiny.seal(path, manifest)
    return path


@pytest.fixture
def packages(tmp_path) -> Path:
    """npm's folder in the form that it has, with other content."""
    versions = json.loads((Path(__file__).parents[1] / "web" / "package.json").read_text())["dependencies"]
    for name, files in PACKAGES.items():
        place = tmp_path / "npm" / "node_modules" / name
        (place / "dist").mkdir(parents=True)
        (place / "package.json").write_text(json.dumps({"name": name, "version": versions[name]}))
        for file in files:
            (place / "dist" / file).write_text(f"// {file}")
    return tmp_path / "npm"


def test_the_folder_holds_what_a_page_needs_and_no_more(packages, tmp_path):
    bundle = Bundle.open(for_browsers(tmp_path / "bundle"))
    made = write_page(bundle, tmp_path / "page", packages)
    held = {p.relative_to(tmp_path / "page").as_posix(): p.stat().st_size for p in (tmp_path / "page").rglob("*") if p.is_file()}  # fmt: skip
    assert made.bytes == sum(held.values())
    assert {n for n in held if n.startswith("bundle/")} == {
        *("bundle/manifest.json", "bundle/tokenizer.json", "bundle/onnx/model_q4.onnx", "bundle/onnx/model_q4.onnx_data"),
        *("bundle/adapters/lamps.onnx_adapter", "bundle/adapters/echo.onnx_adapter"),
    }  # fmt: skip
    webgpu = sum(size for name, size in held.items() if "webgpu" in name or "asyncify" in name)
    assert made.wasm_bytes == made.bytes - webgpu
    service = (tmp_path / "page" / "service.js").read_text()
    kept = json.loads(service.split("shell } = ")[1].split(";\n")[0])
    assert set(kept["files"]) == {n for n in held if n != "service.js" and (n[:7] != "bundle/" or "manifest" in n)}
    assert set(kept["shell"]) == {name for name in kept["files"] if not name.startswith("runtime/")}
    assert Bundle.open(tmp_path / "page" / "bundle").adapters == ("echo", "lamps")


def test_another_bundle_has_another_service(packages, tmp_path):
    one, other = (Bundle.open(for_browsers(tmp_path / str(seed), seed)) for seed in (0, 9))
    for bundle, name in ((one, "a"), (one, "b"), (other, "b2")):
        write_page(bundle, tmp_path / name, packages)
    texts = [(tmp_path / name / "service.js").read_text() for name in ("a", "b", "b2")]
    assert texts[0] == texts[1] != texts[2]
    write_page(other, tmp_path / "a", packages)  # in place of the older one
    assert (tmp_path / "a" / "service.js").read_text() == texts[2]


def test_what_cannot_be_a_page_is_refused(packages, tmp_path):
    default = Bundle.open(tiny.write_bundle(tmp_path / "default"))
    with pytest.raises(ConfigError, match="exported for 'ort-exact', which a browser cannot feed; export it again"):
        write_page(default, tmp_path / "page", packages)
    bundle = Bundle.open(for_browsers(tmp_path / "bundle"))
    with pytest.raises(ConfigError, match=r"no onnxruntime-web/dist/ort.wasm.min.mjs: npm install .*, then --runtime"):
        write_page(bundle, tmp_path / "page", tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(StorageError, match="is not a page; choose another output"):
        write_page(bundle, tmp_path / "other", packages)
    file = packages / "node_modules" / "onnxruntime-web" / "package.json"
    file.write_text(json.dumps({"version": "1.20.0"}))
    with pytest.raises(ConfigError, match=r"is version 1.20.0, but 1\.30\.0 was tested: npm install"):
        write_page(bundle, tmp_path / "page", packages)
    assert not (tmp_path / "page").exists()
    found = CliRunner().invoke(qia3, ["page", str(tmp_path / "bundle"), "--output", "x", "--runtime", str(tmp_path)])
    assert install_command() in str(found.exception)


@node
def test_a_file_in_pieces_is_the_same_model(tmp_path):
    bundle = Bundle.open(for_browsers(tmp_path / "bundle"))
    made = write_page(bundle, tmp_path / "page", Path(str(RUNTIME)), piece=100_000)
    assert made.pieces == 1
    places = sorted((tmp_path / "page" / "bundle" / "onnx").iterdir())
    assert [p.name for p in places] == ["model_q4.onnx", *[f"model_q4.onnx_data.{i}" for i in range(4)]]
    assert b"".join(p.read_bytes() for p in places[1:]) == (bundle.path / "onnx/model_q4.onnx_data").read_bytes()
    asked = [["scores", "the hall", "lamps"], ["generate", "the hall", "echo"]]
    jobs = [["ask", str(path), {}, asked] for path in (bundle.path, tmp_path / "page" / "bundle")]
    whole, pieces = (found["answers"] for found in in_node(jobs))
    assert whole == pieces
    places[2].write_bytes(places[1].read_bytes())
    (broken,) = in_node([jobs[1]])
    assert "model_q4.onnx_data.1 has changed; copy it again or rebuild it" in broken["error"]


def shown(path: Path, base: bool) -> list[list]:
    """What the cards say, by the Python runtime."""
    engine = open_engine(Bundle.open(path), 1)
    bank, found = AdapterBank(engine.bundle), []
    for text in TEXTS:
        cards = []
        for name in engine.bundle.adapters:
            for title, adapter in (("taught", name), ("the base", "none"))[: 1 + base]:
                job, vectors = task_of(engine, adapter, name), bank.vectors(adapter)
                if job.kind == "generate":
                    cards.append([name, title, "".join(reply(engine, job, vectors, text)), {}])
                    continue
                answer = classify(engine, job, vectors, text)
                best = sorted(answer.scores.items(), key=lambda item: -item[1])[:3]
                cards.append([name, title, answer.label, {n: pytest.approx(s, abs=2e-6) for n, s in best}])
        found.append(cards)
    return found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_free_port_is_named_and_one_in_use_is_told_before_anything_is_written(packages, tmp_path):
    bundle = for_browsers(tmp_path / "bundle")
    words = ["page", str(bundle), "--output", str(tmp_path / "page"), "--runtime", str(packages), "--serve", "--port"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused = CliRunner().invoke(qia3, [*words, port])
    assert f"cannot listen on 127.0.0.1:{port}" in str(refused.exception)
    assert not (tmp_path / "page").exists()
    with subprocess.Popen([sys.executable, "-m", "qia3", *words, "0"], stderr=subprocess.PIPE, text=True) as server:
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+/", server.stderr.readline())
            assert answered(f"{address[0]}index.html")["Cross-Origin-Opener-Policy"] == "same-origin"
        finally:
            server.terminate()
    assert server.returncode == 0


@pytest.mark.browser
@browser[1]
def test_a_person_visits(tmp_path):
    """By the command itself: the page, its headers, no complaints, what it shows, without a network, and published anew."""
    bundle, other = for_browsers(tmp_path / "bundle"), for_browsers(tmp_path / "other", seed=9)
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "qia3",
        "page",
        str(bundle),
        "--output",
        str(tmp_path / "page"),
        "--runtime",
        RUNTIME,
    ]
    with subprocess.Popen([*command, "--serve", "--port", str(port)], stderr=subprocess.PIPE) as server:
        try:
            headers = answered(f"http://127.0.0.1:{port}/runtime/ort-wasm-simd-threaded.wasm")
            assert headers["Content-Type"] == "application/wasm"
            assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            pictures = Path(os.environ.get("QIA3_PICTURES", tmp_path))
            visit = ["node", VISIT, CHROMIUM, MODULES, f"http://127.0.0.1:{port}/", pictures, "?device=wasm", *TEXTS]
            again = " ".join([*command[:4], str(other), *command[5:]])
            environment = os.environ | {"AGAIN": again}
            ran = subprocess.run([*map(str, visit)], capture_output=True, text=True, timeout=400, env=environment)
        finally:
            server.terminate()
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    first, offline, new = found["first"], found["offline"], found["again"]
    for one in (first, offline, new):
        assert [one[kind] for kind in ("console", "elsewhere", "fault", "isolated")] == [[], [], None, True]
    assert (first["wider"], first["axe"]) == ([0] * 4, [])
    assert first["answers"] == shown(bundle, base=True)
    assert offline["answers"] == shown(bundle, base=False)
    assert "opens without a network from now on" in first["facts"]
    assert [path for path in first["fetched"] if "onnx_data" in path]
    assert offline["fetched"] == []
    assert new["answers"] == shown(other, base=False)
    assert not [path for path in new["fetched"] if "onnx_data" in path]  # the weights are what they were
    assert [path for path in new["fetched"] if "onnx_adapter" in path]


@pytest.mark.browser
@browser[1]
@whole
def test_a_host_without_headers_is_enough(tmp_path):
    """Python's own server, a merged bundle: one thread at the first visit, isolated from the second on."""
    path = for_browsers(tmp_path / "bundle", mode="merged")
    write_page(Bundle.open(path), tmp_path / "page", Path(str(RUNTIME)))
    port = free_port()
    host = [
        sys.executable,
        "-m",
        "http.server",
        str(port),
        "--bind",
        "127.0.0.1",
        "--directory",
        str(tmp_path / "page"),
    ]
    with subprocess.Popen(host, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            answered(f"http://127.0.0.1:{port}/service.js")
            visit = ["node", VISIT, CHROMIUM, MODULES, f"http://127.0.0.1:{port}/", tmp_path, "?device=wasm", TEXTS[0]]
            ran = subprocess.run([*map(str, visit)], capture_output=True, text=True, timeout=400)
        finally:
            server.terminate()
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    engine = open_engine(Bundle.open(path), 1)
    label = classify(engine, task_of(engine, "lamps"), {}, TEXTS[0]).label
    for visit, isolated in ((found["first"], False), (found["offline"], True)):
        assert (visit["console"], visit["fault"], visit["isolated"]) == ([], None, isolated)
        assert [card[:3] for card in visit["answers"][0]] == [["lamps", "taught", label]]


def answered(url: str) -> Message:
    """Headers of the first answer of a server that begins."""
    for _ in range(100):
        try:
            with urlopen(url) as answer:
                return answer.headers
        except URLError:
            time.sleep(0.2)
    raise AssertionError(url)


@pytest.mark.skipif(not shutil.which("node"), reason="there is no node here")
def test_the_page_s_scripts_parse():
    for path in [
        *(Path(__file__).parents[1] / "web").rglob("*.mjs"),
        *(Path(__file__).parents[1] / "web").rglob("*.js"),
    ]:
        ran = subprocess.run(["node", "--check", str(path)], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
