"""What docs/serving.md and examples/serving say of a server, done: the curl lines, the commands, two servers over one folder."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import httpx2 as httpx
import pytest
import tiny_bundle as tiny
import yaml
from running import Running

from qia3.bundle.adapter import Adapter
from qia3.bundle.opened import Bundle
from qia3.bundle.peft import write_peft
from qia3.bundle.task import Task
from qia3.cli import qia3

ROOT = Path(__file__).parents[1]
SERVING = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
EXAMPLES = ROOT / "examples" / "serving"


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_readme_s_curl_lines_answer(tmp_path):
    tasks = {"home-commands": tiny.TASKS["echo"], "home-intents": tiny.TASKS["lamps"]}
    made = Running(tiny.write_bundle(tmp_path / "bundle", tasks=tasks))
    lines = [line for line in SERVING.splitlines() if line.startswith("curl ")]
    assert len(lines) >= 2
    try:
        for line in lines:
            command = shlex.split(line.replace("http://127.0.0.1:8080", made.url))
            ran = subprocess.run([*command, "-sS"], capture_output=True, text=True, timeout=60)
            assert ran.returncode == 0, ran.stderr
            answer = json.loads(ran.stdout)
            assert answer.get("choices") or answer.get("data"), line
    finally:
        made.stop()


def image() -> str:
    """What the image runs: its ENTRYPOINT after `serve`, and its CMD."""
    text = (EXAMPLES / "Containerfile").read_text()
    entry, more = (json.loads(re.search(rf"^{key} (.*)$", text, re.M).group(1)) for key in ("ENTRYPOINT", "CMD"))
    assert entry[1] == "serve"
    return " ".join(entry[2:] + more)


def test_the_image_copies_what_is_there_and_all_that_the_wheel_is_made_of():
    text = (EXAMPLES / "Containerfile").read_text()
    lines = [words.split()[:-1] for words in re.findall(r"^COPY (?!--)(.*)$", text, re.M)]
    copied = {name for names in lines for name in names} - {"${BUNDLE}"}
    made = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].values()
    assert {"pyproject.toml", "README.md", "LICENSE", "constraints.txt", "qia3", *made} == copied
    assert all((ROOT / name).exists() for name in copied)


def commands() -> list[list[str]]:
    """What follows `qia3 serve` in the files of examples/serving and in docs/serving.md."""
    unit = re.findall(r"^ExecStart=\S+ serve (.*)$", (EXAMPLES / "qia3.service").read_text(), re.M)
    compose = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())["services"]["one"]
    assert (compose["entrypoint"], (EXAMPLES / compose["build"]["context"]).resolve()) == (
        ["/qia3/bin/qia3", "serve"],
        ROOT,
    )
    assert (ROOT / compose["build"]["dockerfile"]).is_file()
    deployment = next(yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text()))
    container = deployment["spec"]["template"]["spec"]["containers"][0]["command"]
    found = [*unit, image(), compose["command"], " ".join(container[2:])]
    return [shlex.split(line) for line in found + re.findall(r"^qia3 serve (.*)$", SERVING, re.M)]


def test_the_examples_commands_are_ones_that_serve_takes():
    assert len(commands()) >= 4
    for words in commands():
        qia3.commands["serve"].make_context("serve", words)


def start(bundle: Path, adapters: Path) -> tuple[subprocess.Popen[bytes], httpx.Client]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--adapters", str(adapters), "--rows", "2", "--threads", "1"]
    command = [sys.executable, "-m", "qia3", "serve", str(bundle), *options]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL), httpx.Client(
        base_url=f"http://127.0.0.1:{port}", timeout=30
    )


def test_of_two_servers_over_one_folder_the_other_answers_on(tmp_path):
    bundle, adapters = tiny.write_bundle(tmp_path / "bundle"), tmp_path / "adapters"
    adapters.mkdir()
    servers = [start(bundle, adapters) for _ in range(2)]
    turns = itertools.cycle(servers)

    def balanced(body: dict) -> str:
        """The next one; where it is not there, the one after it."""
        for _ in range(2):
            try:
                answer = next(turns)[1].post("/v1/completions", json=body)
            except httpx.TransportError:
                continue
            assert answer.status_code == 200, answer.text
            return answer.json()["choices"][0]["text"]
        raise AssertionError("nobody answers")

    try:
        for process, http in servers:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                try:
                    http.get("/ready")
                    break
                except httpx.TransportError:
                    assert process.poll() is None
                    time.sleep(0.05)
        opened = Bundle.open(bundle)
        vectors = {n: v.reshape(-1) for n, v in tiny.random_vectors(9).items()}
        job = Task("late", "generate", "Say: {text}\n", None, 6, tiny.END)
        write_peft(adapters / "late", Adapter(vectors, opened.fingerprint, job), opened.manifest.sites, "tiny")
        body = {"model": "late", "prompt": "hello", "max_tokens": 6}
        first = [balanced(body) for _ in range(4)]  # both find what has come into the folder
        assert len(set(first)) == 1
        for _, http in servers:
            assert http.get("/v1/adapters").json()["data"][-1]["hits"] == 2
        servers[0][0].kill()
        servers[0][0].wait()
        assert [balanced(body) for _ in range(3)] == first[:3]
    finally:
        for process, http in servers:
            http.close()
            process.kill()
            process.wait()
