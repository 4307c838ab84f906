"""Adapters in an object store: `qia3 serve --adapters s3://bucket/adapters` with s3fs, and moto as the store.

    make store                                    or, with a Python that has moto, s3fs and what `qia3 serve` needs:
    QIA3_STORE=PYTHON pytest tests/test_server_store.py

moto speaks S3's protocol over HTTP, with its checks of keys and buckets; the server is a process of its own.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
import tiny_bundle as tiny

from qia3.bundle.adapter import Adapter
from qia3.bundle.opened import Bundle
from qia3.bundle.peft import write_peft
from qia3.bundle.task import Task

PYTHON = os.environ.get("QIA3_STORE", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="QIA3_STORE names no Python that has moto and s3fs (make store)")
ROOT = Path(__file__).parents[1]
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request"}  # moto checks no more
JOB = Task("any", "generate", "Say: {text}\n", None, 6, tiny.END)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(url, *command, **environment):
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while True:
            assert process.poll() is None, command
            try:
                httpx.get(url)
                break
            except httpx.TransportError:
                assert time.monotonic() < until
                time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


def environment(store: str, **more: str) -> dict[str, str]:
    """Without the keys and settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    own = {"AWS_ENDPOINT_URL": store, "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1"}
    nobody = {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "1",
    }
    return kept | own | nobody | {"PYTHONPATH": str(ROOT)} | more


@contextmanager
def moto(unchecked: int | None = None):
    """A store with an empty bucket. `unchecked`: requests that need no valid key; None: all."""
    url = f"http://127.0.0.1:{free_port()}"
    checks = {} if unchecked is None else {"INITIAL_NO_AUTH_ACTION_COUNT": str(unchecked)}
    command = [PYTHON, "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rpartition(":")[2]]
    with running(f"{url}/moto-api/data.json", *command, **environment(url, **checks)) as process:
        httpx.put(f"{url}/bucket").raise_for_status()
        yield url, process


@contextmanager
def serving(folder, store, *more):
    port = free_port()
    command = [PYTHON, "-m", "qia3", "serve", str(folder), "--port", str(port), "--adapters", "s3://bucket/adapters"]
    server = running(f"http://127.0.0.1:{port}/health", *command, *more, **environment(store, **KEYS))
    with server, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        yield http


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_bundle(tmp_path_factory.mktemp("served") / "bundle")


def put(store: str, bundle: Bundle, name: str, seed: int, place: Path, base: str | None = None) -> None:
    """An adapter of random vectors, and other files as a training run leaves them beside it."""
    vectors = {n: v.reshape(-1) for n, v in tiny.random_vectors(seed).items()}
    write_peft(place / name, Adapter(vectors, base or bundle.fingerprint, JOB), bundle.manifest.sites, "tiny")
    files = {f"{name}/{file.name}": file.read_bytes() for file in (place / name).iterdir()}
    for key, content in {**files, f"{name}/checkpoint/optimizer.bin": b"x", "notes.txt": b"x"}.items():
        httpx.put(f"{store}/bucket/adapters/{key}", content=content, headers=SIGNED).raise_for_status()


def states(http: httpx.Client) -> dict[str, str]:
    return {e["name"]: e["state"] for e in http.get("/v1/adapters").json()["data"] if not e["own"]}


def said(http: httpx.Client, name: str) -> str:
    answer = http.post("/v1/completions", json={"model": name, "prompt": "hello", "logprobs": 0})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def test_adapters_come_change_and_go_in_a_bucket(folder, tmp_path):
    bundle = Bundle.open(folder)
    with moto() as (store, process):
        put(store, bundle, "one", 2, tmp_path)
        with serving(folder, store) as http:
            assert states(http) == {"one": "on disk"}
            one, echo = said(http, "one"), said(http, "echo")  # echo has the vectors of seed 2
            assert np.allclose(one["logprobs"]["token_logprobs"], echo["logprobs"]["token_logprobs"])
            put(store, bundle, "two", 5, tmp_path)  # found when it is asked for
            two = said(http, "two")
            assert not np.allclose(one["logprobs"]["token_logprobs"][:1], two["logprobs"]["token_logprobs"][:1])
            put(store, bundle, "one", 5, tmp_path)  # changed
            assert said(http, "one") == one
            assert http.post("/v1/adapters", json={"name": "one"}).status_code == 201
            assert said(http, "one") == two
            put(store, bundle, "foreign", 5, tmp_path, "a" * 64)
            foreign = http.post("/v1/adapters", json={"name": "foreign"})
            assert foreign.status_code == 409
            assert foreign.json()["error"]["message"].startswith("s3://bucket/adapters/foreign was trained on another")
            for file in ("adapter_config.json", "adapter_model.safetensors", "task.json"):
                httpx.delete(f"{store}/bucket/adapters/two/{file}", headers=SIGNED).raise_for_status()
            assert states(http) == {"one": "loaded", "foreign": "refused"}
            gone = http.post("/v1/adapters", json={"name": "two"})
            assert (gone.status_code, "s3://bucket/adapters has no adapter 'two'" in gone.text) == (404, True)
            process.kill()
            process.wait()
            assert said(http, "one") == two  # what is in memory is still served, and listed
            assert "one" in states(http)
            for answer in (
                http.post("/v1/completions", json={"model": "new", "prompt": "hello"}),
                http.post("/v1/adapters", json={"name": "new"}),
            ):
                message = answer.json()["error"]["message"]
                assert answer.status_code == 503
                assert message.startswith("s3://bucket/adapters/new cannot be read: Could not connect to the endpoint")


def test_a_thousand_are_listed_from_several_pages(folder, tmp_path):
    bundle = Bundle.open(folder)
    with moto() as (store, _):
        put(store, bundle, "one", 2, tmp_path)
        with httpx.Client() as client:
            for i in range(1200):
                client.put(f"{store}/bucket/adapters/a{i}/adapter_config.json", content=b"{}").raise_for_status()
        with serving(folder, store) as http:
            assert len(states(http)) == 1201
            said(http, "one")


@pytest.mark.parametrize(
    ("url", "keys", "words"),
    [
        ("s3://bucket/adapters", KEYS, "there is nothing at s3://bucket/adapters (bucket/adapters); put the first"),
        ("s3://nowhere/adapters", KEYS, "nothing at s3://nowhere/adapters (The specified bucket does not exist)"),
        ("s3://", KEYS, "s3:// names no folder in a store"),
        ("s3://bucket/file", KEYS, "s3://bucket/file is not a folder of adapters"),
        ("gs://bucket/adapters", KEYS, "gs://bucket/adapters cannot be opened: Please install gcsfs"),
        ("s3://bucket/adapters", {}, "s3://bucket/adapters cannot be opened: Unable to locate credentials"),
    ],
)  # fmt: skip
def test_what_cannot_be_opened_is_one_line_at_the_start(folder, url, keys, words):
    with moto() as (store, _):
        httpx.put(f"{store}/bucket/file", content=b"x").raise_for_status()
        assert words in refusal(folder, url, environment(store, **keys))


def test_a_wrong_key_and_a_store_that_does_not_answer_are_one_line(folder):
    with moto(unchecked=1) as (store, _):
        told = refusal(folder, "s3://bucket/adapters", environment(store, **KEYS))
    assert "s3://bucket/adapters cannot be opened: The AWS Access Key Id you provided does not exist" in told
    told = refusal(folder, "s3://bucket/adapters", environment("http://127.0.0.1:9", **KEYS))
    assert "s3://bucket/adapters cannot be opened: Could not connect to the endpoint URL" in told


def refusal(folder: Path, url: str, environment: dict[str, str]) -> str:
    command = [PYTHON, "-m", "qia3", "serve", str(folder), "--port", "0", "--adapters", url]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2, ran.stderr
    (line,) = ran.stderr.splitlines()
    return line
