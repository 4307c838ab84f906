"""An encoder through the whole road: build, run, eval, report, adapters in and out, merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from running import Running, chat
from test_build import qia3
from tiny_encoders import write_encoder

from qia3.bundle.opened import Bundle
from qia3.runtime.load import open_engine
from qia3.runtime.texts import classify_texts, embed_texts

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
[export]
target = "ort-exact"
[parity]
prompts = 3
"""


def lines(labels: dict[str, str]) -> str:
    rows = [{"text": text, "label": labels.get(label, label)} for label, texts in SAID.items() for text in texts]
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_encoder_build(folder: Path, name: str = "bert", **changed) -> Path:
    write_encoder(folder / "base", name, **changed)
    (folder / "topics.jsonl").write_text(lines({}))
    (folder / "door.jsonl").write_text(lines({"lights": "no", "music": "no", "lock": "yes"}))
    (folder / "qia3.toml").write_text(FILE)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
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
    assert all(p["exact"]["max_difference"] < 1e-4 for p in manifest["parity"].values())
    assert len(manifest["graphs"]["encoder"]["vectors"]) == 3 * 3  # k, v and the feed-forward of each layer
    assert manifest["evaluation"]["topics"]["after"]["accuracy"] > 0.9
    assert manifest["tasks"]["door"]["choices"] == ["no", "yes"]
    assert not (bundle / "genai_config.json").exists()
    assert not (bundle / "generation_config.json").exists()


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
        asked = [(name, text) for name in engine.bundle.adapters for text in TEXTS]
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
        other = made.http.post("/v1/classify", json={"model": asked[0][0], "input": "a", "choices": ["a", "b"]})
        assert "has its own labels and no others" in other.text
    finally:
        made.stop()


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
    engine = open_engine(Bundle.open(copy))
    assert classify_texts(engine, TEXTS, "again") == classify_texts(engine, TEXTS, "topics")
    (tmp_path / "peft" / "head.safetensors").unlink()
    code, _, err = qia3(capsys, "adapter", "import", copy, tmp_path / "peft", "--name", "headless")
    assert code == 2
    assert "'headless' has 3 labels, and its head 1" in err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('kind = "classify"\nprompt', 'kind = "generate"\nprompt'), "which writes no text"),
        (('name = "door"', 'name = "door"\nshots = 2'), "shots is for bases that write"),
        (("steps = 24", 'steps = 24\nlosses = ["lm", "unlikelihood"]'), "losses compare answers of tokens"),
        (('calibration = "none"', "bits = 5.0"), "bits chooses layers by the words that a base writes"),
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
    code, _, err = qia3(capsys, "build", tmp_path / "qia3.toml", "--output", tmp_path / "out")
    assert code == 2
    assert told in err
    assert "loading" not in err
