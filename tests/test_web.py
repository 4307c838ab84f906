"""qia3.mjs beside the Python runtime: the same questions have the same tokens, labels and scores, in Node and in headless
Chromium, on WebAssembly and on WebGPU; what cannot be understood is refused in a line (make browser).

Graphs are at accuracy_level 0: a page multiplies in float32.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle as tiny
import tiny_pair
from places import whole
from test_browser import CHROMIUM, MODULES
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qia3.bundle.opened import Bundle
from qia3.errors import DataError, QIA3Error
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import classify, prompt_of, reply, tag, task_of
from qia3.runtime.decoding import GREEDY, Chooser, Decoding, shares_of
from qia3.runtime.generate import generate
from qia3.runtime.load import open_engine
from qia3.runtime.model import Model
from qia3.tokens import Tokens

ROOT = Path(__file__).parents[1]
WEB, HERE = ROOT / "web", Path(__file__).parent / "browser"
RUNTIME = os.environ.get("QIA3_WEB")  # the node_modules of web/package.json
node = pytest.mark.skipif(
    not (RUNTIME and shutil.which("node")), reason="make browser runs it: it needs npm's packages"
)
browser = [pytest.mark.browser, pytest.mark.skipif(not (CHROMIUM and MODULES and RUNTIME), reason="make browser")]

TEXTS = ["the hall", "turn the lights off", "lock <|end|> up", "hé🙂llo <pad>x"]
ADAPTERS = ["none", "lamps", "echo"]


def questions(texts: list[str] = TEXTS) -> list[list]:
    """Of each text and adapter: the prompt, the choices' scores, the label, tokens, text in pieces; before that, once
    behind what the prompts begin with.
    """
    found: list[list] = []
    for text in texts:
        for adapter in ADAPTERS:
            asked = (text, adapter)
            found += [["encode", *asked], ["scores", *asked, {"task": "lamps"}], ["label", *asked, {"task": "lamps"}]]
            found += [["generateTokens", *asked, {"task": "echo"}], ["generate", *asked, {"task": "echo"}]]
    return [["prepare", "lamps"], ["scores", TEXTS[0], "lamps"], ["label", TEXTS[0], "lamps"], *found]


def expected(path: Path) -> list:
    """The same by the Python runtime."""
    engine = open_engine(Bundle.open(path), 1)
    bank, found = AdapterBank(engine.bundle), []
    for text in TEXTS:
        for adapter in ADAPTERS:
            vectors, stop = bank.vectors(adapter), engine.bundle.stop_tokens
            answer = classify(engine, task_of(engine, adapter, "lamps"), vectors, text)
            job = task_of(engine, adapter, "echo")
            prompt = prompt_of(engine, job, text)
            found += [prompt_of(engine, task_of(engine, adapter), text), answer.scores, answer.label]
            found.append(list(generate(engine, prompt, vectors, job.max_new_tokens, stop)))
            found.append(list(reply(engine, job, vectors, text)))
    again = classify(engine, task_of(engine, "lamps"), bank.vectors("lamps"), TEXTS[0])
    return [None, again.scores, again.label, *found]


def check(found: dict, wanted: list, tolerance: float) -> None:
    """`found` may be of the first questions alone."""
    assert "error" not in found, found
    assert len(found["answers"]) == (len(wanted) if tolerance < 1e-5 else 18)
    for question, answer, right in zip(questions(), found["answers"], wanted, strict=False):
        if isinstance(right, dict):
            assert answer == pytest.approx(right, abs=tolerance), question
        else:
            assert answer == right, question


def in_node(jobs: list) -> list:
    command = ["node", HERE / "ask_node.mjs", WEB, RUNTIME]
    ran = subprocess.run([*map(str, command)], input=json.dumps(jobs), capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def in_chromium(places: dict[str, Path], jobs: list) -> dict:
    places = {"web": WEB, "runtime": Path(str(RUNTIME)), **places}
    given = json.dumps({"places": {name: str(path) for name, path in places.items()}, "jobs": jobs})
    command = ["node", HERE / "ask.mjs", CHROMIUM, MODULES]
    ran = subprocess.run([*map(str, command)], input=given, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "side": tiny.write_bundle(folder / "side", required=True),
        "all": tiny.write_bundle(folder / "all", required=True, all_logits=True),
        "default": tiny.write_bundle(folder / "default"),
        "merged": tiny.write_bundle(folder / "merged", mode="merged"),
        "pair": tiny_pair.write_bundle(folder / "pair", required=True),
        "apart": tiny_pair.write_bundle(folder / "apart", required=True, prompts="batch_size"),
    }


@pytest.fixture(scope="module")
def right(bundles) -> dict[str, list]:
    return {name: expected(bundles[name]) for name in ("side", "all", "pair", "apart")}


@node
@pytest.mark.parametrize("name", ["side", "all", "pair", "apart"])
def test_node_answers_as_the_runtime_does(bundles, right, name):
    (found,) = in_node([["ask", str(bundles[name]), {}, questions()]])
    check(found, right[name], 2e-6)


@node
def test_a_merged_bundle_answers_for_its_task(bundles):
    asked = [
        ["label", "the hall"],
        ["scores", "the hall", "lamps"],
        ["label", "the hall", "none"],
        ["label", "x", "echo"],
    ]
    (found,) = in_node([["ask", str(bundles["merged"]), {}, asked]])
    label, scores, base, other = found["answers"]
    engine = open_engine(Bundle.open(bundles["merged"]), 1)
    answer = classify(engine, task_of(engine, "lamps"), {}, "the hall")
    assert (label, scores) == (answer.label, pytest.approx(answer.scores, abs=2e-6))
    assert found["facts"]["adapters"] == ["lamps"]
    for found, adapter in ((base, "none"), (other, "echo")):
        assert found["error"] == in_python(bundles["merged"], ["label", "x", adapter])


@node
def test_what_cannot_be_done_is_said_in_a_line(bundles):
    asked = [
        (["label", "x"], "has several adapters; name one: echo, lamps or none"),
        (["generate", "x", "echo", {"maxNewTokens": 0}], "maxNewTokens must be a whole number from 1, not 0"),
    ]
    default = [["generate", "x", "none"], ["label", "x", "lamps"]]
    jobs = [["ask", str(bundles["side"]), {}, [one for one, _ in asked]], ["ask", str(bundles["default"]), {}, default]]
    found, (base, vectors) = (job["answers"] for job in in_node(jobs))
    for answer, (question, words) in zip(found, asked, strict=True):
        assert answer["error"].startswith("QIA3Error: "), question
        assert words in answer["error"], question
        assert "\n" not in answer["error"]
    assert base
    assert "feeds no input that has a default; export the bundle with --target browser" in vectors["error"]


def in_python(path: Path, question: list) -> str:
    """What the runtime says of the same fault, with the place as Node says it."""
    with pytest.raises(QIA3Error) as fault:
        ask(path, *question)
    return "QIA3Error: " + str(fault.value).replace(str(path), path.as_uri())


def ask(path: Path, call: str, text, adapter: str, options: dict | None = None) -> None:
    engine, given = open_engine(Bundle.open(path), 1), options or {}
    vectors, job = AdapterBank(engine.bundle).vectors(adapter), task_of(engine, adapter, given.get("task"))
    if call == "embed":
        Model(path).embed([text], adapter)
    elif call == "tags":
        tag(engine, job, vectors, text)
    elif call == "generate":
        list(reply(engine, job, vectors, text))
    else:
        classify(engine, job, vectors, text, given.get("choices"))


FAULTS = [
    ["label", "x", "lamp"],
    ["label", "x", "lampshade"],
    ["label", "x", "it's"],
    ["label", "x", "lamps", {"task": "lamp"}],
    ["label", "x", "echo"],
    ["label", "x " * 40, "lamps"],
    ["label", "x " * 22, "lamps"],
    ["label", "\ud83d", "lamps"],
    ["label", "x", "lamps", {"choices": ["a", ""], "task": "bare"}],
    ["tags", "x", "lamps"],
    ["embed", "x", "lamps"],
]


@node
def test_a_fault_has_the_words_that_it_has_in_python(bundles, tmp_path):
    def bare(manifest):  # a task whose answers end in nothing
        manifest["tasks"]["bare"] = {**manifest["tasks"]["lamps"], "end": ""}

    place = changed(bundles["side"], tmp_path / "bare", "manifest.json", bare)
    (found,) = in_node([["ask", str(place), {}, FAULTS]])
    for answer, question in zip(found["answers"], FAULTS, strict=True):
        assert answer == {"error": in_python(place, question)}, question


@node
def test_a_bundle_or_adapter_that_is_refused_has_the_words_that_it_has_in_python(bundles, tmp_path):
    side = bundles["side"]
    places = [
        changed(side, tmp_path / "other", GRAPH, lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        changed(side, tmp_path / "short", GRAPH, lambda data: data[:-1]),
        changed(side, tmp_path / "formless", "manifest.json", lambda manifest: manifest.pop("format")),
    ]
    vectors = tiny.random_vectors(1)
    (first, one), (second, two) = list(vectors.items())[:2]
    fitting = {name: vector for name, vector in vectors.items() if name not in (first, second)}
    misfits = [
        (vectors, 1),
        (fitting | {first: one[:, :, :1], "odd.ia3_l": one}, None),
        (vectors | {first: one * np.float32("nan"), second: two * np.float32("nan")}, None),
    ]
    for number, (tensors, version) in enumerate(misfits):
        shutil.copytree(side, tmp_path / str(number))
        tiny.write_adapter(tmp_path / str(number) / VECTORS, tensors, *([] if version is None else [version]))
        places.append(resealed(tmp_path / str(number)))
    found = in_node([["ask", str(path), {}, [["label", "x", "lamps"]]] for path in places])
    for path, answer in zip(places, found, strict=True):
        with pytest.raises(QIA3Error) as fault:
            AdapterBank(Bundle.open(path)).vectors("lamps")
        said = answer.get("error") or answer["answers"][0]["error"]
        right = "QIA3Error: " + str(fault.value).replace(str(path), path.as_uri())
        assert sorted(re.split("[:;] ", said)) == sorted(
            re.split("[:;] ", right)
        )  # ONNX Runtime has tensors in no order


SETTINGS = [
    *[Decoding(*each) for each in itertools.product((2, 5), (1.0, 0.0, -1.0), (False, True, "never"))],
    Decoding(temperature=0.7, seed=0),
    Decoding(temperature=2, top_k=9, top_p=0.9, seed=7),
    Decoding(temperature=5, top_p=0.8, seed=2**50),
]


def in_javascript(given: dict) -> dict:
    """Options as JavaScript calls them."""
    return {re.sub("_(.)", lambda found: found[1].upper(), name): value for name, value in given.items()}


def options(decoding: Decoding) -> dict:
    return in_javascript({n: v for n, v in asdict(decoding).items() if v != getattr(GREEDY, n)})


def decoded(settings: list[Decoding]) -> list[list]:
    return [
        ["generateTokens", text, adapter, {"task": "echo", "maxNewTokens": 12, **options(decoding)}]
        for decoding in settings
        for text in TEXTS[:2]
        for adapter in ("echo", "none")
    ]


def decoded_in_python(path: Path, settings: list[Decoding]) -> list[list[int]]:
    engine = open_engine(Bundle.open(path), 1)
    bank, stop = AdapterBank(engine.bundle), engine.bundle.stop_tokens
    found = []
    for decoding in settings:
        for text in TEXTS[:2]:
            for adapter in ("echo", "none"):
                prompt = prompt_of(engine, task_of(engine, adapter, "echo"), text)
                found.append(list(generate(engine, prompt, bank.vectors(adapter), 12, stop, decoding)))
    return found


@node
@pytest.mark.parametrize("name", ["side", "pair"])
def test_texts_are_decoded_as_in_python(bundles, name):
    """Beams, and sampling by the same seed."""
    (found,) = in_node([["ask", str(bundles[name]), {}, decoded(SETTINGS)]])
    right = decoded_in_python(bundles[name], SETTINGS)
    for question, answer, wanted in zip(decoded(SETTINGS), found["answers"], right, strict=True):
        assert answer == wanted, question
    assert len({tuple(tokens) for tokens in right}) > 12, "settings change what is found, or this could not fail"


@node
def test_tokens_are_drawn_as_in_python():
    logits = np.random.default_rng(3).normal(0, 2, 41).astype(np.float32)
    kinds = itertools.product((0.5, 1.0, 1.7), (0, 1, 7, 100), (0.3, 0.9, 1.0), (0.0, 0.2))
    decodings = [
        Decoding(temperature=t, top_k=k, top_p=p, min_p=m, seed=seed) for seed, (t, k, p, m) in enumerate(kinds)
    ]
    (found,) = in_node([["drawn", logits.tolist(), [options(decoding) for decoding in decodings], 50]])
    for decoding, (shares, tokens) in zip(decodings, found, strict=True):
        np.testing.assert_allclose(shares, shares_of(logits, decoding), atol=1e-12)
        choose = Chooser(decoding)
        assert tokens == [choose(logits[None]) for _ in range(50)], decoding


WRONG = [
    {"beams": 0},
    {"beams": 2, "temperature": 1.0},
    {"temperature": 0.0, "top_p": 0.0},
    {"temperature": 1.0, "top_k": -1, "min_p": 2.0},
    {"seed": 0},
    {"length_penalty": 0.5},
]


@node
def test_wrong_settings_are_told_as_in_python(bundles):
    asked = [["generate", "x", "echo", in_javascript(wrong)] for wrong in WRONG]
    (found,) = in_node([["ask", str(bundles["side"]), {}, asked]])
    for wrong, answer in zip(WRONG, found["answers"], strict=True):
        with pytest.raises(QIA3Error) as fault:
            Decoding(**wrong)
        theirs = answer["error"].replace("topK", "top_k").replace("topP", "top_p").replace("minP", "min_p")
        assert theirs == f"QIA3Error: {fault.value}"


def changed(source: Path, place: Path, file: str, change) -> Path:
    """A copy of a bundle with other bytes in a file that its manifest knows; of the manifest, with other JSON."""
    shutil.copytree(source, place)
    if file == "manifest.json":
        manifest = json.loads((place / file).read_text())
        change(manifest)
        (place / file).write_text(json.dumps(manifest))
    else:
        (place / file).write_bytes(change((place / file).read_bytes()))
    return place


def resealed(place: Path) -> Path:
    """With the sizes and hashes that its files have."""
    manifest = json.loads((place / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        data = (place / name).read_bytes()
        entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (place / "manifest.json").write_text(json.dumps(manifest))
    return place


GRAPH, DATA, VECTORS = "onnx/model_q4.onnx", "onnx/model_q4.onnx_data", "adapters/lamps.onnx_adapter"
PIECE = {"file": "a", "sha256": "0" * 64, "bytes": 3}
MANIFESTS = {
    "has bundle format 4, but this version reads up to 3; upgrade qia3.mjs": lambda m: m.update(format=4),
    "has bundle format 2, but this version reads only 3; build the bundle again": lambda m: m.update(format=2),
    "has no 'format'; make one with `qia3 build`": lambda m: m.pop("format"),
    "is damaged: mode is missing or not valid here": lambda m: m.update(mode="beside"),
    "is damaged: tasks.lamps.kind is missing or not valid here": lambda m: m["tasks"]["lamps"].update(kind="guess"),
    "is damaged: tasks.echo.prompt is missing or not valid here": lambda m: m["tasks"]["echo"].update(prompt="no slot"),
    "is damaged: files is missing or not valid here": lambda m: m["files"].update(
        {"../x": {"sha256": "0" * 64, "bytes": 1}}
    ),
    "is damaged: graphs.decoder.data is missing or not valid here": lambda m: m["graphs"]["decoder"].update(
        data="/etc/passwd"
    ),
    "is damaged: architecture.cache is missing or not valid here": lambda m: m["architecture"].update(cache="int2"),
    "keeps an int8 cache, which a browser has no kernel for;": lambda m: m["architecture"].update(cache="int8"),
    "is damaged: pieces.onnx/model_q4.onnx_data.bytes is missing or not valid here": lambda m: m.update(
        pieces={DATA: [PIECE]}
    ),
}


@node
def test_a_manifest_that_is_not_understood_is_refused(bundles, tmp_path):
    places = [changed(bundles["side"], tmp_path / str(i), "manifest.json", c) for i, c in enumerate(MANIFESTS.values())]
    found = in_node([["ask", str(path), {}, []] for path in places])
    for words, answer in zip(MANIFESTS, found, strict=True):
        assert words in answer["error"], (words, answer)
        assert "\n" not in answer["error"]


@node
def test_a_file_that_has_changed_is_refused(bundles, tmp_path):
    other = changed(bundles["side"], tmp_path / "other", GRAPH, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    short = changed(bundles["side"], tmp_path / "short", DATA, lambda data: data[:-1])
    gone = changed(bundles["side"], tmp_path / "gone", DATA, lambda data: data)
    (gone / DATA).unlink()
    found = [answer["error"] for answer in in_node([["ask", str(path), {}, []] for path in (other, short, gone)])]
    assert f"differs from what was built: {GRAPH} has changed; copy it again or rebuild it" in found[0]
    assert f"{DATA} has " in found[1]
    assert "no such file" in found[2]


@node
def test_an_adapter_that_does_not_fit_is_refused(bundles, tmp_path):
    vectors = tiny.random_vectors(1)
    name, vector = next(iter(vectors.items()))
    wrong = {
        "was trained on another base (its fingerprint is 0000001…": (vectors, 1),
        f"1 bad tensor: {name} is missing": ({n: v for n, v in vectors.items() if n != name}, None),
        f"{name} has shape [1, 1, 1] instead of": (vectors | {name: vector[:, :, :1]}, None),
        f"{name} holds NaN": (vectors | {name: vector * np.float32("nan")}, None),
        "odd.ia3_l is not an input of this base": (vectors | {"odd.ia3_l": vector}, None),
    }
    places = []
    for number, (tensors, version) in enumerate(wrong.values()):
        places.append(tmp_path / str(number))
        shutil.copytree(bundles["side"], places[-1])
        tiny.write_adapter(places[-1] / VECTORS, tensors, *([] if version is None else [version]))
        resealed(places[-1])
    for cut in (0, 7, 40, 900):
        place = changed(bundles["side"], tmp_path / f"cut{cut}", VECTORS, lambda data, cut=cut: data[:cut])
        places.append(resealed(place))
    found = in_node([["ask", str(path), {}, [["label", "x", "lamps"]]] for path in places])
    for words, answer in zip([*wrong, *["cannot be read as an .onnx_adapter"] * 4], found, strict=True):
        assert words in answer["answers"][0]["error"], (words, answer)


WORDS = [
    *[
        "turn the lights off",
        "  lock   the door ",
        "Ünïcödé ❤️ 日本語 🙂🙃",
        "a\u0301\ufb01 Ⅻ",
        "1234567 8.9e-10",
        "x\n\n\ty\r\n",
    ],
    *[
        "don't we'll I'M",
        "<|im_end|>",
        "a<|im_start|>system\nb<|im_end|>",
        "<|endoftext|><unk>[UNK] [SEP]",
        "",
        "\u200b\xa0",
    ],
    *["<|im_end", "|>", "</s><pad><extra_id_0>", "<think>well</think>", "f(x) = {y: [1, 2]};  // z", "ＡＢＣ ½ ½½"],
]


def byte_level() -> Tokenizer:
    return tiny.tokenizer()


def digits(individual: bool) -> Tokenizer:
    """As SmolLM2 has them, and as others do."""
    made = tiny.tokenizer()
    steps = [pre_tokenizers.Digits(individual_digits=individual), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<pad>", "<|end|>"], show_progress=False)
    made.train_from_iterator([*tiny.CORPUS, *WORDS * 3], trainer)
    return made


def unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", "<extra_id_0>", "<think>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator([*tiny.CORPUS, *WORDS], trainer)
    return made


def word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=140, special_tokens=special, show_progress=False)
    made.train_from_iterator([*tiny.CORPUS, *WORDS], trainer)
    return made


KINDS = {
    "byte level": (byte_level, "Topic of {text}?<|end|>\n"),
    "digits": (lambda: digits(individual=True), "Topic of {text}?<|end|>\n"),
    "numbers": (lambda: digits(individual=False), "Topic of {text}?<|end|>\n"),
    "unigram": (unigram, "Topic of {text}?</s>"),
    "word piece": (word_piece, "[CLS] {text} [SEP]"),
}


@node
@pytest.mark.parametrize("kind", KINDS)
def test_words_have_the_tokens_that_they_have_in_python(kind, tmp_path):
    """A person's words are words, whatever control tokens they spell."""
    make, template = KINDS[kind]
    made = make()
    made.save(str(tmp_path / "tokenizer.json"))
    tokens, rows = Tokens.read(tmp_path / "tokenizer.json"), made.get_vocab_size()
    control = [token.content for token in made.get_added_tokens_decoder().values()]
    asked = [(frame, text) for text in [*WORDS, *control] for frame in (template, "{text}")]
    (found,) = in_node([["tokens", str(tmp_path / "tokenizer.json"), rows, asked]])
    for (frame, text), answer in zip(asked, found, strict=True):
        ids = list(tokens.prompt(frame, text))
        assert answer == [ids, tokens.tokenizer.decode(ids)], (frame, text)


@node
@pytest.mark.parametrize("kind", KINDS)
def test_words_stand_where_they_stand_in_python(kind, tmp_path):
    make, template = KINDS[kind]
    made = make()
    made.save(str(tmp_path / "tokenizer.json"))
    tokens, rows = Tokens.read(tmp_path / "tokenizer.json"), made.get_vocab_size()
    texts = [text.split() for text in [*WORDS, "lock the <|end|> door [SEP] </s> x"] if text.split()]
    asked = [(frame, words) for words in texts for frame in (template, "{text}", "Things: {text}")]
    (found,) = in_node([["words", str(tmp_path / "tokenizer.json"), rows, asked]])
    for (frame, words), answer in zip(asked, found, strict=True):
        try:
            right = [list(part) for part in tokens.words(frame, words)]
        except DataError as fault:
            right = {"error": f"QIA3Error: {fault}"}
        assert answer == right, (frame, words)


@pytest.fixture(scope="module")
def asked_in_chromium(bundles):
    jobs = [
        ["ask", "side", {"device": "wasm"}, questions()],
        ["ask", "side", {"device": "wasm", "worker": True}, questions()],
        ["ask", "side", {"device": "webgpu", "worker": True}, questions(TEXTS[:1])],
        ["ask", "pair", {"device": "wasm", "worker": True}, questions()],
        ["ask", "side", {"worker": True, "device": "wasm"}, [["label", "x", "lamp"], ["add", "extra", "not a buffer"]]],
        ["stopped", "side", "wasm", "the hall", "echo"],
        ["again", "side", {"device": "wasm"}, [["label", TEXTS[0], "lamps"]]],
        ["again", "all", {"device": "wasm"}, []],
        ["bluffed", "side", [["label", TEXTS[0], "lamps"]]],
        ["ask", "side", {"worker": True}, [["label", TEXTS[0], "lamps"]]],
        *[["ask", "merged", {"device": device}, [["scores", TEXTS[0], "lamps"]]] for device in ("wasm", "webgpu")],
        ["ask", "side", {"device": "webgpu", "worker": True}, decoded(SETTINGS[::7])],
    ]
    return in_chromium(bundles, jobs)


@pytest.mark.parametrize("place", ["page", "worker", "webgpu", "pair"])
@pytest.mark.browser
@browser[1]
@whole
def test_a_page_answers_as_the_runtime_does(asked_in_chromium, right, place):
    found = asked_in_chromium["results"][["page", "worker", "webgpu", "pair"].index(place)]
    check(found, right["pair" if place == "pair" else "side"], 1e-4 if place == "webgpu" else 2e-6)
    assert asked_in_chromium["console"] == []
    assert found["facts"]["device"] == ("webgpu" if place == "webgpu" else "wasm")
    assert found["facts"]["progress"]["loaded"] == found["facts"]["progress"]["total"] > 0


@pytest.mark.browser
@browser[1]
@whole
def test_a_merged_bundle_answers_in_a_page(asked_in_chromium, bundles):
    engine = open_engine(Bundle.open(bundles["merged"]), 1)
    right = classify(engine, task_of(engine, "lamps"), {}, TEXTS[0]).scores
    for found in asked_in_chromium["results"][10:12]:
        assert found["answers"] == [pytest.approx(right, abs=1e-4)]


@pytest.mark.browser
@browser[1]
@whole
def test_texts_are_decoded_in_a_worker_as_in_python(asked_in_chromium, bundles):
    assert asked_in_chromium["results"][12]["answers"] == decoded_in_python(bundles["side"], SETTINGS[::7])


@pytest.mark.browser
@browser[1]
@whole
def test_files_are_fetched_once_and_refusals_cross_from_the_worker(asked_in_chromium, right):
    fetched = [url for url in asked_in_chromium["asked"] if "?sha256=" in url]
    assert len(fetched) == len(set(fetched)) > 8
    (name, add) = asked_in_chromium["results"][4]["answers"]
    assert "has no adapter 'lamp'; did you mean 'lamps'? it has: lamps, echo" in name["error"]
    assert add["error"].startswith("QIA3Error: ")


@pytest.mark.browser
@browser[1]
@whole
def test_what_is_kept_opens_without_a_network(asked_in_chromium, right):
    kept, unknown = asked_in_chromium["results"][6:8]
    assert kept["answers"] == [right["side"][2]]
    assert "all/manifest.json cannot be fetched: no network" in unknown["error"]


@pytest.mark.browser
@browser[1]
@whole
def test_without_a_word_it_is_the_device_that_works(asked_in_chromium, right):
    """A graphics processor that cannot, and one that the processor plays: WebAssembly in both."""
    for found in asked_in_chromium["results"][8:10]:
        assert (found["facts"]["device"], found["answers"]) == ("wasm", [right["side"][2]])


@pytest.mark.browser
@browser[1]
@whole
def test_a_text_ends_where_it_is_left_or_stopped(asked_in_chromium, right):
    found = asked_in_chromium["results"][5]
    assert found["ended"] == found["left"] == right["side"][3 + 5 * ADAPTERS.index("echo") + 3][:2]
    assert found["label"] in ("lights", "lock")


def compiled(project: Path, *options: str) -> subprocess.CompletedProcess:
    command = ["node", Path(str(MODULES)) / "typescript" / "lib" / "tsc.js", "--project", project, *options]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=200)


@pytest.mark.browser
@browser[1]
def test_the_types_hold_and_are_what_the_package_declares(tmp_path):
    ran = compiled(HERE / "tsconfig.json", "--outDir", str(tmp_path))
    assert ran.returncode == 0, ran.stdout
    made = {file.name: file.read_text() for file in (tmp_path / "web").iterdir()}
    assert made == {file.name: file.read_text() for file in (WEB / "types").iterdir()}, "make types writes them anew"


USE = """import { open, openInWorker, QIA3Error, type Asked, type Remote, type Task } from "qia3";

const model = await open("bundle/", { device: "wasm", progress: ({ loaded, total }) => loaded / total });
const label: string = await model.label("x", "lamps", { choices: ["a", "b"] });
const asked: Asked = { beams: 4, earlyStopping: "never", maxNewTokens: 9 };
const remote: Remote = await openInWorker(new URL("bundle/", import.meta.url));
for await (const piece of remote.generate("x", "echo", asked)) piece.trim();
for await (const token of model.generateTokens("x", "echo", { temperature: 0.7, seed: 3n })) token.toFixed();
const tasks: Record<string, Task> = model.tasks;
// @ts-expect-error
await model.label(1);
// @ts-expect-error
const wrong: Asked = { earlyStopping: "always" };
// @ts-expect-error
await open("bundle/", { device: "cuda" });
export { label, tasks, wrong, QIA3Error };
"""


@pytest.mark.browser
@browser[1]
def test_a_program_in_typescript_finds_the_types(tmp_path):
    """In the package's folder as npm installs it, and with what is wrong told."""
    package = tmp_path / "node_modules" / "qia3"
    shutil.copytree(WEB, package, ignore=shutil.ignore_patterns("page", "*.py", "node_modules", "__pycache__"))
    (tmp_path / "use.mts").write_text(USE)
    rules = {
        "strict": True,
        "noEmit": True,
        "module": "nodenext",
        "target": "esnext",
        "lib": ["esnext", "dom"],
        "types": [],
    }
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": rules, "files": ["use.mts"]}))
    ran = compiled(tmp_path / "tsconfig.json")
    assert ran.returncode == 0, ran.stdout


@pytest.mark.browser
@browser[1]
def test_the_form_is_prettier_s():
    command = ["node", Path(str(MODULES)) / "prettier" / "bin" / "prettier.cjs", "--check", *WEB.rglob("*.*js*")]
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr


@node
def test_libraries_are_found_by_name(bundles, tmp_path):
    """As npm installs the package: nothing but the bundle's folder is said."""
    (tmp_path / "node_modules").symlink_to(Path(str(RUNTIME)).resolve())
    for file in WEB.glob("*.mjs"):
        shutil.copy(file, tmp_path)
    script = f"""import {{ open }} from "./qia3.mjs";
        const model = await open({json.dumps(str(bundles["side"]))});
        console.log(await model.label("the hall", "lamps"));"""
    (tmp_path / "use.mjs").write_text(script)
    ran = subprocess.run(["node", str(tmp_path / "use.mjs")], capture_output=True, text=True, timeout=100)
    engine = open_engine(Bundle.open(bundles["side"]), 1)
    right = classify(engine, task_of(engine, "lamps"), AdapterBank(engine.bundle).vectors("lamps"), "the hall").label
    assert (ran.stdout.strip(), ran.stderr) == (right, "")


def test_the_package_is_whole():
    """What npm would publish: every module, in this version."""
    import qia3

    package = json.loads((WEB / "package.json").read_text(encoding="utf-8"))
    assert package["version"] == qia3.__version__
    assert {*package["files"]} == {"types", *(path.name for path in WEB.glob("*.mjs"))}
    assert {path.stem for path in (WEB / "types").iterdir()} == {f"{path.stem}.d" for path in WEB.glob("*.mjs")}
