"""The server over its real routes, with the real client: each answer is what the same question gives alone."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import openai
import pytest
import tiny_bundle as tiny
import tiny_pair
from jinja2 import Environment
from running import Running, chat
from transformers import PreTrainedTokenizerFast

from qia3.bounded import bounded
from qia3.bundle.adapter import Adapter
from qia3.bundle.opened import Bundle
from qia3.bundle.peft import write_peft
from qia3.bundle.task import Task
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import classify, reply, task_of
from qia3.runtime.engine import Engine
from qia3.runtime.generate import generate
from qia3.runtime.load import open_engine
from qia3.server.app import Limits
from qia3.server.chats import _renderer

TEXTS = ["lights", "hello there", "turn the music off", "é", "what is the lock of the day"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_bundle(tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="module")
def alone(folder):
    """What a question gives without a server."""
    engine = Engine(Bundle.open(folder), threads=1)
    bank = AdapterBank(engine.bundle)

    def ask(adapter, text, limit=None):
        job, vectors = task_of(engine, adapter), bank.vectors(adapter)
        if job.kind == "classify":
            return classify(engine, job, vectors, text)
        return "".join(reply(engine, job, vectors, text, limit))

    return ask


@pytest.fixture(scope="module")
def shelf_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def running(folder, shelf_folder):
    made = Running(folder, adapters=shelf_folder, limits=Limits(body_bytes=4096))
    yield made
    made.stop()


def test_models_are_the_base_and_every_adapter(running):
    assert [m.id for m in running.client.models.list()] == ["tiny", "echo", "lamps"]


def test_answers_of_all_tasks_at_once_are_those_of_each_alone(running, alone):
    asked = [(name, text) for text in TEXTS for name in ("echo", "tiny", "lamps")] * 2

    def one(name, text):
        found = chat(running.client, name, text, max_tokens=6).choices[0]
        return found.message.content

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda pair: one(*pair), asked))
    for (name, text), answer in zip(asked, found, strict=True):
        expected = alone("none" if name == "tiny" else name, text, None if name == "lamps" else 6)
        assert answer == (expected.label if name == "lamps" else expected)


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_stream_is_the_whole_answer_in_pieces(running, kind):
    if kind == "chat":
        whole = chat(running.client, "echo", "hello", max_tokens=9)
        stream = chat(
            running.client, "echo", "hello", max_tokens=9, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content
    else:
        whole = running.client.completions.create(model="tiny", prompt="hello", max_tokens=9)
        options = {"include_usage": True}
        chunks = list(
            running.client.completions.create(
                model="tiny", prompt="hello", max_tokens=9, stream=True, stream_options=options
            )
        )
        assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens > 0
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason


def test_a_stop_string_ends_the_text_before_itself(running):
    whole = chat(running.client, "echo", "hello there", max_tokens=9).choices[0].message.content
    stop = whole[3:5]
    found = chat(running.client, "echo", "hello there", max_tokens=9, stop=[stop, "never"]).choices[0]
    assert found.message.content == whole[: whole.index(stop)]
    assert found.finish_reason == "stop"


def test_what_is_drawn_hangs_on_the_seed(running):
    drawn = [
        chat(running.client, "echo", "hello", temperature=1.5, top_p=0.9, seed=s).choices[0].message.content
        for s in (1, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_logprobs_are_the_model_s(running, folder):
    found = (
        chat(running.client, "echo", "hello", max_tokens=1, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    )
    engine = Engine(Bundle.open(folder), threads=1)
    vectors = AdapterBank(engine.bundle).vectors("echo")
    prompt = engine.tokens.prompt(tiny.TASKS["echo"]["prompt"], "hello")
    logits = tiny.logits(tiny.weights(engine.vocabulary), list(prompt), vectors)
    import numpy as np

    shares = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    best = np.argsort(-shares)[:3]
    assert found[0].logprob == pytest.approx(shares.max(), abs=1e-3)
    assert [t.logprob for t in found[0].top_logprobs] == pytest.approx(shares[best], abs=1e-3)


def test_classify_ranks_many_texts_and_choices_of_the_request(running, alone):
    body = {"model": "lamps", "input": TEXTS}
    found = running.http.post("/v1/classify", json=body).json()["data"]
    for text, answer in zip(TEXTS, found, strict=True):
        expected = alone("lamps", text)
        assert answer["label"] == expected.label
        assert answer["scores"] == pytest.approx(expected.scores, abs=1e-4)
    own = running.http.post("/v1/classify", json={"model": "tiny", "input": "lights", "choices": ["yes", "no"]}).json()
    assert set(own["data"][0]["scores"]) == {"yes", "no"}


BAD = [
    ({}, "'model' is missing"),
    ({"model": "echo"}, "'messages' must be a list of objects"),
    (
        {"model": "echo", "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]},
        "'echo' takes one user message in 'messages'",
    ),
    ({"model": "tiny", "messages": [{"role": "user", "content": "a"}] * 2}, "'tiny' has no chat template: send one"),
    ({"model": "tiny", "messages": [{"role": "tool", "content": "a"}]}, "not 'tool'"),
    (
        {"model": "tiny", "messages": [{"role": "assistant", "content": "a"}]},
        "the last of 'messages' must be the user's",
    ),
    ({"model": "echo", "tools": [{"type": "function"}]}, "'tools' is not supported"),
    ({"model": "echo", "n": 2}, "'n' is not supported, except 1 or null"),
    ({"model": "echo", "temperature": 3}, "'temperature' must be from 0 to 2"),
    ({"model": "echo", "temperature": True}, "'temperature' is not a number"),
    ({"model": "echo", "tempperature": 1}, "'tempperature' is not a known key"),
    ({"model": "echo", "max_tokens": 0}, "'max_tokens' must be from 1"),
    ({"model": "echo", "stop": ["a"] * 5}, "'stop' has 5 entries"),
    ({"model": "echo", "top_logprobs": 2}, "'top_logprobs' needs 'logprobs' true"),
    ({"model": "lamps", "logprobs": True}, "classifies"),
]


@pytest.mark.parametrize(("body", "words"), BAD)
def test_a_bad_body_is_one_line(running, body, words):
    user = {} if body in ({}, {"model": "echo"}) else {"messages": [{"role": "user", "content": "a"}]}
    answer = running.http.post("/v1/chat/completions", json=user | body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert "\n" not in answer.json()["error"]["message"]


TEMPLATE = (
    "{% if messages[0].role == 'system' and messages[0].content %}{{ 'S: ' + messages[0].content + '\\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'Q: ' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '\\nA: ' + m.content + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nA: ' }}{% endif %}"
)


def test_a_template_that_does_not_end_is_refused_and_nobody_waits_for_it(tmp_path, monkeypatch):
    """A bundle may come from anybody, and its template is a program: it is stopped after some seconds."""
    monkeypatch.setattr("qia3.server.chats.bounded", lambda work: bounded(work, 1.0))
    folder = tiny.write_bundle(tmp_path / "bundle")
    endless = "{% for m in messages %}{% if m.content == 'wait' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    template = f"{endless}{{% endif %}}{{% endfor %}}{TEMPLATE}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "eos_token": tiny.END}))
    made = Running(folder)
    try:
        ask = {"model": "tiny", "messages": [{"role": r, "content": "wait"} for r in ("user", "assistant", "user")]}
        with ThreadPoolExecutor(1) as pool:
            started = time.monotonic()
            waiting = pool.submit(made.http.post, "/v1/chat/completions", json=ask)
            time.sleep(0.3)
            assert made.http.get("/health").status_code == 200
            assert time.monotonic() - started < 0.9
            refused = waiting.result()
        assert (refused.status_code, "it takes more than 1 seconds" in refused.text) == (400, True)
    finally:
        made.stop()


def test_a_template_is_neither_compiled_nor_run_in_the_server_s_process(monkeypatch):
    """jinja computes constant expressions when it compiles."""
    here, compiled = [], Environment.compile
    monkeypatch.setattr(Environment, "compile", lambda *args: here.append(1) or compiled(*args))
    render = _renderer("{{ 'ab' * 2 }}{% for m in messages %}{{ m.content }}{% endfor %}", {})
    assert render([{"role": "user", "content": "!"}]) == "abab!"
    assert not here


def test_several_turns_go_through_the_bundle_s_template(tmp_path):
    folder = tiny.write_bundle(tmp_path / "bundle")
    config = {"chat_template": TEMPLATE, "eos_token": tiny.END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    words = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **config)
    engine = Engine(Bundle.open(folder), threads=1)
    turns = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "lights"},
        {"role": "user", "content": "and music"},
    ]
    made = Running(folder)
    try:
        for messages in (turns, turns[1:], turns[3:]):
            prompt = words.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)["input_ids"]
            tokens = list(
                generate(engine, prompt, AdapterBank(engine.bundle).vectors(None), 6, engine.bundle.stop_tokens)
            )
            found = made.client.chat.completions.create(model="tiny", messages=messages, max_tokens=6)
            assert found.choices[0].message.content == engine.tokenizer.decode(tokens)
            assert found.usage.prompt_tokens == len(prompt)
        last = [*turns[:-1], {"role": "user", "content": f"say {tiny.END}"}]  # text, as in one message
        assert made.client.chat.completions.create(model="tiny", messages=last, max_tokens=2).usage.prompt_tokens > 20
        turns[1]["content"] = f"say {tiny.END}"
        refused = made.http.post("/v1/chat/completions", json={"model": "tiny", "messages": turns})
        assert (refused.status_code, "before the last one contains '<|end|>'" in refused.text) == (400, True)
    finally:
        made.stop()


def test_statuses(running, folder):
    post = running.http.post
    assert post("/v1/chat/completions", content=b"{").status_code == 400
    assert post("/v1/chat/completions", content=b'{"model": "a", "model": "b"}').status_code == 400
    assert post("/v1/chat/completions", content=b" " * 5000).status_code == 413
    user = [{"role": "user", "content": "a"}]
    missing = post("/v1/chat/completions", json={"model": "lamp", "messages": user})
    assert missing.status_code == 404
    assert "there is no model 'lamp'; available: tiny, echo, lamps" in missing.json()["error"]["message"]
    long = post("/v1/chat/completions", json={"model": "echo", "messages": [{"role": "user", "content": "x y " * 60}]})
    assert long.status_code == 400
    assert "do not fit the 48 positions of a row" in long.json()["error"]["message"]
    assert running.http.get("/v1/nothing").json()["error"]["message"] == "there is no route /v1/nothing"
    assert running.http.get("/v1/classify").status_code == 405
    assert running.http.get("/health").json() == {"status": "ok"}
    assert running.http.get("/ready").json() == {"status": "ready"}
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        chat(running.client, "nobody", "a")


def test_metrics_count(running):
    before = running.http.get("/metrics").text
    chat(running.client, "echo", "hello", max_tokens=5)
    after = running.http.get("/metrics").text
    read = lambda text, name: float(next(l.split()[-1] for l in text.splitlines() if l.startswith(name)))  # noqa: E731, E741
    assert 0 < read(after, "qia3_new_tokens_total") - read(before, "qia3_new_tokens_total") <= 5
    assert read(after, "qia3_rows_in_use") == 0
    assert 'qia3_requests_total{route="/v1/chat/completions",status="200"}' in after


def test_adapters_come_and_go_while_it_runs(running, folder, shelf_folder):
    opened = Bundle.open(folder)
    sites = opened.manifest.sites
    job = Task("new", "generate", "Say: {text}\n", None, 6, tiny.END)
    vectors = {n: v.reshape(-1) for n, v in tiny.random_vectors(2).items()}

    def put(name, base=opened.fingerprint, change=lambda v: v):
        write_peft(shelf_folder / name, Adapter({n: change(v) for n, v in vectors.items()}, base, job), sites, "tiny")
        return running.http.post("/v1/adapters", json={"name": name})

    missing = running.http.post("/v1/adapters", json={"name": "new"})
    assert missing.status_code == 404
    added = put("new")
    assert added.status_code == 201
    assert added.json() == {"name": "new", "state": "loaded", "own": False, "bytes": sum(v.nbytes for v in vectors.values()), "hits": 0}  # fmt: skip
    same = [chat(running.client, name, "hello", max_tokens=6).choices[0].message.content for name in ("new", "echo")]
    assert same[0] == same[1]
    foreign = put("foreign", "a" * 64)
    assert foreign.status_code == 409
    assert "was trained on another base" in foreign.json()["error"]["message"]
    idle = put("idle", change=lambda v: v * 0 + 1)
    assert idle.status_code == 409
    assert "'idle' changes nothing: all its vectors are ones" in idle.json()["error"]["message"]
    listed = {entry["name"]: entry for entry in running.http.get("/v1/adapters").json()["data"]}
    assert listed["new"]["hits"] == 1
    assert listed["foreign"]["state"] == "refused"
    assert running.http.delete("/v1/adapters/new").status_code == 204
    assert running.http.delete("/v1/adapters/new").status_code == 404
    assert running.http.delete("/v1/adapters/echo").status_code == 409
    with pytest.raises(openai.NotFoundError):
        chat(running.client, "new", "hello")


def test_a_client_that_goes_frees_its_row(folder):
    made = Running(folder)
    try:
        slow = made.server.models.served[0].line.slots
        step = slow.step
        slow.step = lambda tokens: (time.sleep(0.05), step(tokens))[1]
        with made.http.stream(
            "POST",
            "/v1/completions",
            json={"model": "tiny", "prompt": "a", "max_tokens": 40, "stream": True},
        ) as answer:
            next(answer.iter_lines())
            while not len(slow):
                time.sleep(0.01)
        until = time.monotonic() + 2
        while len(slow) and time.monotonic() < until:
            time.sleep(0.01)
        assert len(slow) == 0
        assert made.server.models.served[0].line.counts.finished == {"cancelled": 1}
        assert made.server.models.served[0].line.counts.new_tokens < 30
    finally:
        made.stop()


def test_a_full_queue_a_late_request_and_a_key(folder, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")
    made = Running(folder, queue=1, key_file=keys, limits=Limits(deadline=0.6))
    try:
        body = {"model": "tiny", "prompt": "a", "max_tokens": 40}
        assert made.http.post("/v1/completions", json=body).status_code == 401
        assert made.http.get("/v1/models", headers={"Authorization": "Bearer third"}).status_code == 401
        made.http.headers["Authorization"] = "Bearer second"
        slow = made.server.models.served[0].line.slots
        step = slow.step
        slow.step = lambda tokens: (time.sleep(0.1), step(tokens))[1]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: made.http.post("/v1/completions", json=body), range(8)))
        assert {f.status_code for f in found} == {429, 504}
        busy = next(f for f in found if f.status_code == 429)
        assert int(busy.headers["Retry-After"]) >= 1
        assert "requests are already waiting" in busy.json()["error"]["message"]
        assert made.server.models.served[0].line.counts.finished["late"] >= 1
    finally:
        made.stop()


def test_one_request_s_crash_is_its_own(folder, alone):
    made = Running(folder)
    try:
        line, broken = made.server.models.served[0].line, []
        step = line.slots.step

        def once(tokens):
            if not broken:
                broken.append(True)
                raise RuntimeError("a kernel fell over")
            return step(tokens)

        line.slots.step = once
        body = {"model": "tiny", "prompt": "a", "max_tokens": 6}
        first = made.http.post("/v1/completions", json=body)
        assert first.status_code == 500
        assert first.json()["error"]["message"] == "the server failed: RuntimeError: a kernel fell over"
        again = chat(made.client, "echo", "hello", max_tokens=6).choices[0].message.content
        assert again == alone("echo", "hello", 6)
    finally:
        made.stop()


def test_a_server_that_stops_tells_those_that_run(folder):
    made = Running(folder, limits=Limits(grace=0.2))
    step = made.server.models.served[0].line.slots.step
    made.server.models.served[0].line.slots.step = lambda tokens: (time.sleep(0.1), step(tokens))[1]
    body = {"model": "tiny", "prompt": "a", "max_tokens": 40}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(made.http.post, "/v1/completions", json=body)
        while not len(made.server.models.served[0].line.slots):
            time.sleep(0.01)
        made.server.models.served[0].line.stop(0.2)
        assert running.result().status_code == 503
    late = made.http.post("/v1/completions", json=body)
    assert (late.status_code, late.json()["error"]["message"]) == (503, "the server is stopping")
    assert made.http.get("/health").status_code == 503
    made.stop()


def test_events_of_a_stream_are_json_until_done(running):
    body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    lines = [line for line in running.http.post("/v1/chat/completions", json=body).text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["id"].startswith("chatcmpl-") for line in lines[:-1])


def test_asyncio_is_not_blocked_by_the_model(running):
    async def both():
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as http:
            body = {"model": "tiny", "prompt": "a", "max_tokens": 30}
            long = asyncio.ensure_future(http.post("/v1/completions", json=body))
            seen = [(await http.get("/health")).status_code for _ in range(5)]
            return seen, (await long).status_code

    assert asyncio.run(both()) == ([200] * 5, 200)


def test_an_encoder_and_its_decoder_are_served(tmp_path):
    folder = tiny_pair.write_bundle(tmp_path / "pair")
    engine = open_engine(Bundle.open(folder), threads=1)
    bank = AdapterBank(engine.bundle)
    made = Running(folder)
    try:
        for name in engine.bundle.adapters:
            job, vectors = task_of(engine, name), bank.vectors(name)
            with ThreadPoolExecutor(5) as pool:
                found = list(pool.map(lambda text, name=name: chat(made.client, name, text, max_tokens=6), TEXTS))
            for text, answer in zip(TEXTS, found, strict=True):
                ranked = job.kind == "classify" and classify(engine, job, vectors, text).label
                expected = ranked or "".join(reply(engine, job, vectors, text, 6))
                assert answer.choices[0].message.content == expected
        with pytest.raises(openai.BadRequestError, match="is not an encoder"):
            made.client.embeddings.create(model=engine.bundle.name, input="hello")
    finally:
        made.stop()
