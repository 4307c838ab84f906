"""What goes wrong around a server: what clients, folders, signals and other processes do. Every request gets an answer,
in one line, with the right status; and nobody else waits for it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
import tiny_bundle as tiny
from running import Running

from qia3.bundle.adapter import Adapter
from qia3.bundle.opened import Bundle
from qia3.bundle.peft import write_peft
from qia3.bundle.task import Task
from qia3.errors import ConfigError
from qia3.server.app import Limits
from qia3.server.listen import bound
from qia3.server.place import Folder
from qia3.tokens import LONG, Tokens

JOB = Task("any", "generate", "Say: {text}\n", None, 6, tiny.END)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_bundle(tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, folder):
    place = tmp_path_factory.mktemp("adapters")
    for name, seed in (("one", 2), ("two", 5)):
        put(place, Bundle.open(folder), name, seed)
    return place


@pytest.fixture(scope="module")
def running(folder, shelf):
    made = Running(folder, adapters=shelf, limits=Limits(body_bytes=1 << 20))
    yield made
    made.stop()


def put(place, bundle, name, seed):
    vectors = {n: v.reshape(-1) for n, v in tiny.random_vectors(seed).items()}
    write_peft(place / name, Adapter(vectors, bundle.fingerprint, JOB), bundle.manifest.sites, "tiny")


def message(answer: httpx.Response) -> str:
    text = answer.json()["error"]["message"]
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"n": True}, "'n' is not supported, except 1 or null"),
        ({"presence_penalty": False}, "'presence_penalty' is not supported, except 0 or null"),
        ({"model": "x" * 5000}, "(5,000 characters); available: "),
        ({"model": "a\nb"}, r"there is no model 'a\nb'"),
        ({"model": "\ud800"}, r"there is no model '\ud800'"),
        ({"messages": [{"role": "user", "content": "x y " * 50_000}]}, "do not fit the 48 positions of a row"),
    ],
)
def test_a_bad_request_is_one_line_that_does_not_repeat_it_at_length(running, body, words):
    user = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
    answer = running.http.post("/v1/chat/completions", content=json.dumps(user | body))
    assert answer.status_code in (400, 404)
    assert words in message(answer)
    assert len(answer.text) < 500


def test_names_in_routes(running):
    assert running.client.models.retrieve("one").id == "one"
    missing = running.http.get("/v1/models/nobody")
    assert (missing.status_code, "there is no model 'nobody'" in message(missing)) == (404, True)
    for name in ("x" * 3000, "%00", "%ff", "..%2f..", "a%0ab"):
        gone = running.http.delete(f"/v1/adapters/{name}")
        assert (gone.status_code, len(message(gone)) < 300) == (404, True)
    assert running.http.put("/v1/adapters").headers["Allow"] == "GET, HEAD, POST"
    wrong = running.http.post("/v1/classify", json={"model": "lamps", "input": 1})
    assert message(wrong) == "'input' is not a string or a list of strings"


def test_vectors_that_overflow_are_told_and_harm_no_other_row(running, folder, shelf):
    bundle = Bundle.open(folder)
    huge = {n: v.reshape(-1) * np.float32(1e38) for n, v in tiny.random_vectors(2).items()}
    write_peft(shelf / "huge", Adapter(huge, bundle.fingerprint, JOB), bundle.manifest.sites, "tiny")
    ask = {"prompt": "hello", "max_tokens": 6}
    right = running.http.post("/v1/completions", json=ask | {"model": "one"}).json()["choices"]
    ways = [
        ("/v1/completions", ask),
        ("/v1/completions", ask | {"temperature": 1.0}),
        ("/v1/classify", {"input": "hello", "choices": ["a", "b"]}),
    ]
    with ThreadPoolExecutor(4) as pool:
        beside = [pool.submit(running.http.post, "/v1/completions", json=ask | {"model": "one"}) for _ in range(4)]
        for route, body in ways:
            answer = running.http.post(route, json=body | {"model": "huge"})
            assert (answer.status_code, "overflow with this adapter" in message(answer)) == (409, True)
        assert all(each.result().json()["choices"] == right for each in beside)


@pytest.mark.parametrize(("kind", "words"), [("embed", "embed"), ("token-classification", "label words")])
def test_a_task_that_the_bundle_cannot_do_is_refused(running, folder, shelf, kind, words):
    put(shelf, Bundle.open(folder), kind, 2)
    task = json.loads((shelf / kind / "task.json").read_text())
    task |= {"kind": kind, "choices": ["a", "b"] if kind == "token-classification" else None}
    (shelf / kind / "task.json").write_text(json.dumps(task))
    answer = running.http.post("/v1/adapters", json={"name": kind})
    assert (answer.status_code, f"is to {words}, but this bundle is no encoder" in message(answer)) == (409, True)


def test_an_adapter_is_replaced_and_removed_while_rows_use_it(running, folder, shelf):
    """Every answer is that of one of the two versions, whole; none is lost but those that asked while it was removed."""
    bundle, ask = Bundle.open(folder), {"prompt": "hello", "max_tokens": 6}

    def said(name):
        answer = running.http.post("/v1/completions", json={"model": name} | ask)
        assert answer.status_code in (200, 404), answer.text
        return answer.json()["choices"][0]["text"] if answer.status_code == 200 else None

    put(shelf, bundle, "new", 2)
    texts = {2: said("one"), 5: said("two")}
    assert texts[2] != texts[5]
    enough, answers = threading.Event(), list[str | None]()

    def asks():
        while not enough.is_set():
            answers.append(said("new"))

    def changes(draw):
        statuses = set()
        while not enough.is_set():
            if draw.random() < 0.3:
                statuses.add(running.http.delete("/v1/adapters/new").status_code)
            statuses.add(running.http.post("/v1/adapters", json={"name": "new"}).status_code)
        return statuses

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(asks) for _ in range(4)]
        changing = [pool.submit(changes, random.Random(i)) for i in range(2)]
        try:
            for seed in (5, 2, 5, 2, 5):
                scratch = shelf.with_name(f"next-{seed}")
                put(scratch, bundle, "new", seed)
                (scratch / "new" / "adapter_model.safetensors").replace(shelf / "new" / "adapter_model.safetensors")
                since, until = len(answers), time.monotonic() + 30
                while texts[seed] not in answers[since:]:
                    assert time.monotonic() < until
                    time.sleep(0.01)
        finally:
            enough.set()
        for each in asking:
            each.result(30)
        assert {status for each in changing for status in each.result(30)} <= {201, 204, 404}
    assert set(answers) <= {*texts.values(), None}
    assert running.http.get("/ready").status_code == 200


def test_what_is_in_memory_is_answered_while_all_readers_wait(folder, shelf):
    class Hanging(Folder):
        comes, waiting = threading.Event(), list[str]()

        def has(self, name):
            self.waiting.append(name)
            assert self.comes.wait(30)
            return super().has(name)

    made = Running(folder, adapters=shelf)
    try:
        ask = {"model": "one", "prompt": "hello", "max_tokens": 2}
        assert made.http.post("/v1/completions", json=ask).status_code == 200
        made.server.models.served[0].model.shelf.place = Hanging(shelf)
        threads = min(32, (os.cpu_count() or 1) + 4)  # asyncio's
        with ThreadPoolExecutor(threads + 2) as pool:
            body = [ask | {"model": f"new{i}"} for i in range(threads + 2)]
            waiting = [pool.submit(httpx.post, f"{made.url}/v1/completions", json=each, timeout=60) for each in body]
            while len(Hanging.waiting) < threads:
                time.sleep(0.01)
            assert made.http.post("/v1/completions", json=ask, timeout=5).status_code == 200
            assert not any(each.done() for each in waiting)
            Hanging.comes.set()
            assert {each.result().status_code for each in waiting} == {404}
    finally:
        Hanging.comes.set()
        made.stop()


def test_a_folder_that_cannot_be_read_is_503_and_what_was_listed_stays(folder, shelf):
    made = Running(folder, adapters=shelf)
    away = shelf.with_name("away")
    try:
        shelf.rename(away)
        away.joinpath("file").write_text("in the folder's place")
        away.joinpath("file").rename(shelf)
        for name in ("one", "nobody"):  # on the disk; never heard of
            answer = made.http.post("/v1/completions", json={"model": name, "prompt": "a"})
            assert (answer.status_code, message(answer)) == (503, f"{shelf} is not there any more")
        assert {"one", "two"} <= {m["id"] for m in made.http.get("/v1/models").json()["data"]}
    finally:
        shelf.unlink()
        away.rename(shelf)
        assert made.http.post("/v1/completions", json={"model": "one", "prompt": "a"}).status_code == 200
        made.stop()


def test_a_long_text_is_tokenised_beside_the_others(running, monkeypatch):
    threads = set()
    encode = Tokens.prompt

    def noted(self, template, text):
        threads.add((len(text) > LONG, threading.current_thread() is running.thread))
        return encode(self, template, text)

    monkeypatch.setattr(Tokens, "prompt", noted)
    for text in ("a", "a " * LONG):
        running.http.post("/v1/completions", json={"model": "one", "prompt": text, "max_tokens": 1})
        running.http.post("/v1/classify", json={"model": "lamps", "input": text})
    assert {(False, True), (True, False)} <= threads  # long, in the server's own thread
    assert (True, True) not in threads


def test_a_body_that_does_not_come_is_refused(folder):
    made = Running(folder, limits=Limits(deadline=0.3))
    try:
        port = int(made.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
            answer = connection.makefile("rb").read().decode()
        assert answer.startswith("HTTP/1.1 408")
        assert "the body did not arrive within 0.3 s" in answer
    finally:
        made.stop()


@contextmanager
def slow_rows(made):
    slots = made.server.models.served[0].line.slots
    step = slots.step
    slots.step = lambda tokens: (time.sleep(0.1), step(tokens))[1]
    yield slots


def test_a_signal_lets_streams_end_or_tells_them(folder):
    """A short answer is finished within the grace; of a long one, the client is told that it was cut."""
    made = Running(folder, limits=Limits(grace=1.0))
    with slow_rows(made) as slots, ThreadPoolExecutor(3) as pool:

        def streamed(count):
            body = {"model": "tiny", "prompt": "a", "max_tokens": count, "stream": True}
            with made.http.stream("POST", "/v1/completions", json=body) as answer:
                return [line.removeprefix("data: ") for line in answer.iter_lines() if line]

        short, long = (pool.submit(streamed, count) for count in (4, 40))
        whole = pool.submit(made.http.post, "/v1/completions", json={"model": "tiny", "prompt": "b", "max_tokens": 40})
        while len(slots) < 3:
            time.sleep(0.01)
        made.uvicorn.should_exit = True
        assert short.result(30)[-1] == "[DONE]"
        ended = json.loads(long.result(30)[-1])["error"]
        assert (ended["code"], ended["message"]) == (503, "the server is stopping")
        assert (whole.result(30).status_code, message(whole.result())) == (503, "the server is stopping")
    made.stop()


def test_a_port_in_use_is_told_before_anything_is_loaded(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ran = subprocess.run(
            [sys.executable, "-m", "qia3", "serve", str(tmp_path / "no-bundle"), "--port", str(port)],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"qia3: cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port")
    for host in ("no.such.host.invalid", "192.0.2.1", "a..b"):
        with pytest.raises(ConfigError, match=f"cannot listen on {host}:0: "):
            bound(host, 0)
    for host in ("localhost", "127.0.0.1"):
        sockets = bound(host, 0)
        assert len({each.getsockname()[1] for each in sockets}) == 1
        for each in sockets:
            each.close()


def test_a_server_ends_at_sigterm(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "qia3", "serve", str(folder), "--port", "0", "--threads", "1"],
        cwd=Path(__file__).parents[1],
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stderr.readline()
    url = line.partition(" on ")[2].partition("/v1")[0]
    until = time.monotonic() + 30
    while True:
        try:
            assert httpx.get(f"{url}/health").status_code == 200
            break
        except httpx.TransportError:
            assert time.monotonic() < until
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=30)
    assert all(json.loads(line)["route"] == "/health" for line in rest.splitlines())
    assert process.returncode in (0, -signal.SIGTERM)
