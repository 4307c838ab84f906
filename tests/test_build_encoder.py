"""An encoder through the whole road: build, run, eval, report, adapters in and out, merged; texts and words labelled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle
import torch
from running import Running, chat
from test_build import qia3
from test_graph_encoder import by_peft, dequantised
from tiny_encoders import tiny_encoder, write_encoder
from torch import nn
from transformers import BertForTokenClassification

from qia3.base.load import Asked, load_base
from qia3.bundle.adapter import Adapter
from qia3.bundle.opened import Bundle
from qia3.bundle.peft import write_peft
from qia3.bundle.sites import digest
from qia3.bundle.task import Task
from qia3.errors import ConfigError
from qia3.examples import read_examples
from qia3.ia3.roles import find_roles
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import reply, task_of
from qia3.runtime.load import open_engine
from qia3.runtime.tags import tag_texts
from qia3.runtime.texts import classify_texts, embed_texts
from qia3.train.start import read_start

SAID = {
    "lights": ["turn the lights off", "lights on", "the lights, please", "turn on the lights"],
    "music": ["play a song", "stop the music", "play the music", "a song, please"],
    "lock": ["lock the door", "open the door", "the door is open", "lock it, please"],
}
TEXTS = ["turn the lights off", "lock the door", "play a song, please, and then stop the music"]
FILE = """
name = "tiny"
[base]
model = "base"
block_size = 16
calibration = "none"
[train]
steps = 24
batch_size = 4
learning_rate = 3e-2
warmup_steps = 2
checkpoint_every = 4
compute = "float32"
[[task]]
name = "topics"
kind = "classify"
train = "topics.jsonl"
test = "topics.jsonl"
[[task]]
name = "door"
kind = "classify"
prompt = "Is it a door? {text}"
train = "door.jsonl"
test = "door.jsonl"
[[task]]
name = "things"
kind = "token-classification"
prompt = "Things: {text}"
train = "things.jsonl"
test = "things.jsonl"
[export]
target = "ort-exact"
[parity]
prompts = 3
"""


def lines(labels: dict[str, str]) -> str:
    rows = [{"text": text, "label": labels.get(label, label)} for label, texts in SAID.items() for text in texts]
    return "".join(json.dumps(row) + "\n" for row in rows)


TABLES = ("position_embeddings", "token_type_embeddings")
TAGS = {"lights": "B-THING", "song": "B-THING", "music": "B-THING", "door": "B-THING", "turn": "B-DO", "off": "I-DO"}


def tagged_lines() -> str:
    """Of the same sentences; "turn ... off" stands apart, so an I- begins an entity, too."""
    texts = [text.replace(",", " ,").split() for texts in SAID.values() for text in texts]
    rows = [{"tokens": words, "tags": [TAGS.get(word, "O") for word in words]} for words in texts]
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_encoder_build(folder: Path, name: str = "bert", **changed) -> Path:
    write_encoder(folder / "base", name, **changed)
    (folder / "topics.jsonl").write_text(lines({}))
    (folder / "door.jsonl").write_text(lines({"lights": "no", "music": "no", "lock": "yes"}))
    (folder / "things.jsonl").write_text(tagged_lines())
    (folder / "qia3.toml").write_text(FILE)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory, kept_graphs) -> Path:
    """A BERT as sentence-transformers saves one."""
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "normalize": True}
    return write_encoder_build(tmp_path_factory.mktemp("encoder"), pooling=pooling)


@pytest.fixture(scope="module")
def bundle(place) -> Path:
    from qia3.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["build", str(place / "qia3.toml"), "--output", str(place / "out")])
    assert not ended.value.code
    return place / "out"


def test_a_bundle_has_one_encoder_and_its_tasks_have_heads(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert set(manifest["graphs"]) == {"encoder"}
    assert manifest["architecture"]["pooling"] == {"mode": "mean", "normalize": True}
    assert manifest["architecture"]["context_length"] == 40  # as sentence-transformers has it; the base could 160
    assert all(p["exact"]["max_difference"] < 1e-4 for p in manifest["parity"].values())
    assert len(manifest["graphs"]["encoder"]["vectors"]) == 3 * 3  # k, v and the feed-forward of each layer
    assert manifest["evaluation"]["topics"]["after"]["accuracy"] > 0.9
    assert manifest["tasks"]["door"]["choices"] == ["no", "yes"]
    assert not (bundle / "genai_config.json").exists()
    assert not (bundle / "generation_config.json").exists()
    rows = [p for n, p in tiny_encoder("bert").named_parameters() if n.split(".")[1] in TABLES]
    tables = [tensor["bytes"] for tensor in manifest["tensors"] if tensor["part"] == "positions"]
    assert sorted(tables) == sorted(4 * p.numel() for p in rows)


def test_words_have_labels(bundle, place, capsys):
    code, out, err = qia3(capsys, "run", bundle, "turn the music off", "--adapter", "things")
    assert code == 0, err
    (found,) = tag_texts(open_engine(Bundle.open(bundle)), [["turn", "the", "music", "off"]], "things")
    assert out.splitlines() == [f"{word}\t{tag}" for word, tag in zip(found.words, found.labels, strict=True)]
    assert found.labels[:3] == ("B-DO", "O", "B-THING")
    told = json.loads(qia3(capsys, "run", bundle, "lock [SEP] it", "--adapter", "things", "--json")[1])
    assert told["words"] == ["lock", "[SEP]", "it"]  # text stays text
    assert len(told["labels"]) == len(told["scores"]) == 3
    found = json.loads(qia3(capsys, "eval", bundle, place / "things.jsonl", "--adapter", "things")[1])
    assert (found["kind"], found["n"]) == ("token-classification", 12)
    assert min(found["accuracy"], found["f1"]) > 0.7
    assert sum(entry["n"] for entry in found["labels"].values()) == sum(len(e.words) for e in things(place))
    assert qia3(capsys, "run", bundle, "a", "--adapter", "things", "--choice", "a", "--choice", "b")[0] == 2


def things(place):
    return read_examples(place / "things.jsonl", "token-classification")


def test_logits_of_words_are_those_of_transformers_model_for_token_classification(bundle, place):
    """Its head and PEFT's vectors on the dequantised weights, read where its tokenizer says that words begin; beside it
    in the batch another task's row.
    """
    opened = Bundle.open(bundle)
    engine, bank = open_engine(opened), AdapterBank(opened)
    base = load_base(Asked(str(place / "base"), block_size=16))
    adapter = bank.vectors("things")
    sites = find_roles(base.model).sites
    labels = opened.tasks["things"].choices
    whole = BertForTokenClassification(base.model.config)
    whole.num_labels, whole.classifier = len(labels), nn.Linear(96, len(labels))
    whole.bert = by_peft(dequantised(base.model), sites, {s.name: adapter[s.name].reshape(-1) for s in sites})
    with torch.no_grad():
        whole.classifier.weight.copy_(torch.from_numpy(adapter["head.weight"][0]))
        whole.classifier.bias.copy_(torch.from_numpy(adapter["head.bias"][0]))
    for example in things(place)[::5]:
        read = base.tokenizer(["Things", ":", *example.words], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            expected = whole.eval()(input_ids=read["input_ids"]).logits[0].numpy()
        ids, places = engine.tokens.words(opened.tasks["things"].prompt, example.words)
        assert list(ids) == read["input_ids"][0].tolist()
        assert list(places) == [read.word_ids().index(i) for i in range(2, 2 + len(example.words))]
        other = engine.tokens.prompt(opened.tasks["topics"].prompt, "play a song, please, and then stop the music")
        vectors = bank.rows(["things", "topics"])
        found = engine.token_logits([ids, other], vectors)
        np.testing.assert_allclose(found[0, : len(ids), : len(labels)], expected, atol=1e-3)
        together = tag_texts(engine, [example.words] * 2, "things")
        assert together[0].labels == tuple(labels[i] for i in expected[list(places)].argmax(-1))


@pytest.mark.parametrize("verb", ["run", "eval", "report", "bench", "devices"])
def test_the_verbs_work_alike(bundle, place, capsys, verb):
    arguments = {
        "run": [bundle, TEXTS[0], "--adapter", "topics"],
        "eval": [bundle, place / "door.jsonl", "--adapter", "door", "--json"],
        "report": [bundle],
        "bench": [bundle, "--json"],
        "devices": [bundle],
    }[verb]
    code, out, err = qia3(capsys, verb, *arguments)
    assert (code, bool(out.strip())) == (0, True), err
    assert verb != "run" or out.strip() == "lights"
    assert verb != "report" or "has a head in float32, which is not counted here: topics 291, door 194" in out
    assert verb != "report" or ("of its states" in out and "decoding" not in out and "cache for" not in out)


def test_rows_of_one_batch_have_their_own_tasks(bundle):
    engine = open_engine(Bundle.open(bundle))
    names = ["topics", "door", "topics"]
    together = classify_texts(engine, TEXTS, names)
    for text, name, answer in zip(TEXTS, names, together, strict=True):
        alone = classify_texts(engine, [text], name)[0]
        assert alone.label == answer.label
        assert alone.scores == pytest.approx(answer.scores, abs=1e-5)
    assert {*together[0].scores} == {*together[2].scores} != {*together[1].scores}  # each has its own task's labels
    assert sum(together[1].scores.values()) == pytest.approx(1, abs=1e-4)


def test_it_is_served_with_labels_and_embeddings(bundle):
    """By the real client, of all tasks at once; each answer is what the text gives alone."""
    from concurrent.futures import ThreadPoolExecutor

    engine = open_engine(Bundle.open(bundle))
    made = Running(bundle)
    try:
        asked = [(name, text) for name in ("topics", "door") for text in TEXTS]
        ask = lambda pair: made.http.post("/v1/classify", json={"model": pair[0], "input": pair[1]}).json()  # noqa: E731
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(ask, asked))
        for (name, text), answer in zip(asked, found, strict=True):
            alone = classify_texts(engine, [text], name)[0]
            assert answer["data"][0]["label"] == alone.label
            assert answer["data"][0]["scores"] == pytest.approx(alone.scores, abs=1e-4)
            assert chat(made.client, name, text).choices[0].message.content == alone.label
        vectors = made.client.embeddings.create(model=engine.bundle.name, input=TEXTS).data  # in base64
        np.testing.assert_allclose([v.embedding for v in vectors], embed_texts(engine, TEXTS), atol=1e-5)
        body = {"model": engine.bundle.name, "messages": [{"role": "user", "content": "a"}]}
        refused = made.http.post("/v1/chat/completions", json=body)
        assert (refused.status_code, "its task is to embed" in refused.text) == (400, True)
        tags = made.http.post("/v1/classify", json={"model": "things", "input": TEXTS}).json()["data"]
        for alone, answer in zip(tag_texts(engine, TEXTS, "things"), tags, strict=True):
            assert (tuple(answer["words"]), tuple(answer["labels"])) == (alone.words, alone.labels)
            assert answer["scores"] == pytest.approx(alone.scores, abs=1e-4)
        assert "no words" in made.http.post("/v1/classify", json={"model": "things", "input": " "}).text
        other = made.http.post("/v1/classify", json={"model": asked[0][0], "input": "a", "choices": ["a", "b"]})
        assert "has fixed labels; leave out choices" in other.text
    finally:
        made.stop()


def test_one_server_has_a_decoder_s_chats_and_an_encoder_s_embeddings(bundle, tmp_path):
    """Two bundles, asked at once; a name that both have is asked for by its bundle's."""
    from concurrent.futures import ThreadPoolExecutor

    writes = tiny_bundle.write_bundle(tmp_path / "writes")
    decoder, encoder = open_engine(Bundle.open(writes), threads=1), open_engine(Bundle.open(bundle))
    renamed = shutil.copytree(bundle, tmp_path / "reads")
    manifest = json.loads((renamed / "manifest.json").read_text())
    (renamed / "manifest.json").write_text(json.dumps(manifest | {"name": "reads"}))
    vectors = {n: v.reshape(-1) for n, v in tiny_bundle.random_vectors(5).items()}
    job = Task("door", "generate", "Say: {text}", None, 6, tiny_bundle.END)
    sites = decoder.bundle.manifest.sites
    write_peft(tmp_path / "shared" / "tiny" / "door", Adapter(vectors, decoder.bundle.fingerprint, job), sites, "tiny")
    made = Running([writes, renamed], adapters=tmp_path / "shared")
    try:
        names = [m.id for m in made.client.models.list()]
        assert names == ["tiny", "echo", "lamps", "tiny:door", "reads", "reads:door", "things", "topics"]
        with ThreadPoolExecutor(6) as pool:
            said = [pool.submit(chat, made.client, "tiny:echo", text, max_tokens=6) for text in TEXTS]
            felt = pool.submit(made.client.embeddings.create, model="reads", input=TEXTS)
            found = [one.result().choices[0].message.content for one in said]
            np.testing.assert_allclose(
                [v.embedding for v in felt.result().data], embed_texts(encoder, TEXTS), atol=1e-5
            )
        echo, bank = task_of(decoder, "echo"), AdapterBank(decoder.bundle)
        assert found == ["".join(reply(decoder, echo, bank.vectors("echo"), text, 6)) for text in TEXTS]
        both = made.http.post("/v1/classify", json={"model": "door", "input": "a"})
        assert (both.status_code, "use tiny:door or reads:door" in both.text) == (404, True)
        own = made.http.post("/v1/classify", json={"model": "reads:door", "input": TEXTS}).json()["data"]
        assert [d["label"] for d in own] == [a.label for a in classify_texts(encoder, TEXTS, "door")]
        assert made.http.delete("/v1/adapters/tiny:door").status_code == 204
        assert "reads:door" not in [m.id for m in made.client.models.list()]  # "door" is clear now
        assert made.http.post("/v1/adapters", json={"name": "tiny:door"}).json()["name"] == "tiny:door"
        assert 'qia3_new_tokens_total{bundle="tiny"}' in made.http.get("/metrics").text
    finally:
        made.stop()
    with pytest.raises(ConfigError, match="two bundles are called 'tiny'"):
        Running([writes, bundle])


def test_an_embedding_is_of_length_one_where_the_folder_says_so(bundle, capsys):
    vectors = embed_texts(open_engine(Bundle.open(bundle)), TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    code, out, err = qia3(capsys, "run", bundle, TEXTS[0], "--embed")
    assert code == 0, err
    np.testing.assert_allclose(json.loads(out), vectors[0], atol=1e-4)


def test_an_adapter_goes_out_as_peft_with_its_head_beside_and_comes_back(bundle, tmp_path, capsys):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    assert qia3(capsys, "adapter", "export", copy, "topics", tmp_path / "peft")[0] == 0
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["task_type"] == "FEATURE_EXTRACTION"
    assert qia3(capsys, "adapter", "import", copy, tmp_path / "peft", "--name", "again")[0] == 0
    assert qia3(capsys, "adapter", "export", copy, "things", tmp_path / "tags")[0] == 0
    assert qia3(capsys, "adapter", "import", copy, tmp_path / "tags", "--name", "tags")[0] == 0
    engine = open_engine(Bundle.open(copy))
    assert classify_texts(engine, TEXTS, "again") == classify_texts(engine, TEXTS, "topics")
    assert tag_texts(engine, TEXTS, "tags") == tag_texts(engine, TEXTS, "things")
    sites, fingerprint = Bundle.open(copy).manifest.sites, Bundle.open(copy).fingerprint
    starts = [read_start(p, sites, fingerprint) for p in (tmp_path / "peft", copy / "adapters" / "topics.onnx_adapter")]
    assert digest(starts[0]) == digest(starts[1]) != digest({})  # --init-adapter: the vectors; a head is made anew
    (tmp_path / "peft" / "head.safetensors").unlink()
    code, _, err = qia3(capsys, "adapter", "import", copy, tmp_path / "peft", "--name", "headless")
    assert code == 2
    assert "'headless' has 3 labels, but its head has 1" in err


def test_a_merged_encoder_is_the_one_with_its_vectors_beside_it(bundle, place, capsys):
    """BERT's feed-forward has no gate: what does not fold is a constant, and the codes are the same."""
    where = ("--work", place / "out.work", "--output", place / "merged")
    code, _, err = qia3(capsys, "export", place / "qia3.toml", "--mode", "merged", "--task", "things", *where)
    assert code == 0, err
    side, merged = Bundle.open(bundle), Bundle.open(place / "merged")
    assert merged.manifest.parity["things"].exact.max_difference < 1e-4
    engines, vectors = [open_engine(b) for b in (side, merged)], AdapterBank(side).vectors("things")
    rows = [engines[0].tokens.words(side.tasks["things"].prompt, text.split())[0] for text in TEXTS]
    expected, found = engines[0].token_logits(rows, vectors), engines[1].token_logits(rows, {})
    for row, ours, theirs in zip(rows, found, expected, strict=True):
        np.testing.assert_allclose(ours[: len(row)], theirs[: len(row)], atol=1e-4)
    for ours, theirs in zip(*(tag_texts(e, TEXTS, "things") for e in reversed(engines)), strict=True):
        assert (ours.words, ours.labels) == (theirs.words, theirs.labels)
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-4)
    config = json.loads((place / "merged" / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    assert list(config["id2label"].values()) == list(side.tasks["things"].choices)
    code, out, err = qia3(capsys, "run", place / "merged", "turn the music off")
    assert (code, out.splitlines()[0]) == (0, "turn\tB-DO"), err
    assert qia3(capsys, "eval", place / "merged", place / "things.jsonl", "--adapter", "things")[0] == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('kind = "classify"\nprompt', 'kind = "generate"\nprompt'), "which generates no text"),
        (('name = "door"', 'name = "door"\nshots = 2'), "shots only applies to bases that generate text"),
        (('name = "things"', 'name = "things"\noverlong = "cut"'), "would leave words without labels"),
        (
            ('name = "things"', 'name = "things"\nranking = "sum"'),
            "'things' labels each word: 'ranking' only applies to choices",
        ),
        (
            ('target = "ort-exact"', 'target = "ort-exact"\ncontext_length = 16'),
            "these 2 lines do not fit the context of 16 tokens",
        ),
        (("steps = 24", 'steps = 24\nlosses = ["lm", "unlikelihood"]'), "losses compare answers made of tokens"),
        (('calibration = "none"', "bits = 5.0"), "bits in [base] needs a base that generates text"),
    ],
)
def test_what_an_encoder_has_no_use_for_is_told_before_it_is_loaded(place, tmp_path, capsys, change, told):
    for file in place.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    (tmp_path / "base").symlink_to(place / "base")
    (tmp_path / "qia3.toml").write_text(FILE.replace(*change))
    if "generate" in change[1]:
        (tmp_path / "door.jsonl").write_text('{"text": "a door", "target": "yes"}\n')
    if "context" in change[1]:
        row = {"tokens": ["lights", "off"] * 10, "tags": ["B-THING", "O"] * 10}
        (tmp_path / "things.jsonl").write_text(json.dumps(row) + "\n")
    code, _, err = qia3(capsys, "build", tmp_path / "qia3.toml", "--output", tmp_path / "out")
    assert code == 2
    assert told in err
    assert "loading" not in err
