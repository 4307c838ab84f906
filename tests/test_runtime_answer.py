"""From a text to an answer, from a file of examples to figures; and all of it where torch cannot be imported (law 6)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle as tiny

from qia3 import cli
from qia3.bundle.checked import decode, encode
from qia3.bundle.opened import Bundle
from qia3.bundle.records import Measured
from qia3.errors import AdapterError, ConfigError, DataError
from qia3.runtime import bench as measuring
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import Answer, answer, answer_of, classify, classify_batch, prepare, prompt_of, reply, task_of
from qia3.runtime.engine import Engine
from qia3.runtime.evaluate import corpus_chrf, evaluate, token_f1
from qia3.runtime.score import rank

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine(Bundle.open(tiny.write_bundle(tmp_path_factory.mktemp("bundle"))), threads=1)


def lines(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def ended(engine, choice):
    """A choice and its end token, by the tokenizers library alone."""
    return [*engine.tokenizer.encode(choice).ids, engine.tokenizer.token_to_id(tiny.END)]


def test_classification_ranks_the_choices_after_the_task_s_prompt(engine):
    said = answer(engine, "lamps", "the hall")
    assert isinstance(said, Answer)
    tokens = [ended(engine, c) for c in tiny.CHOICES]
    scores = rank(engine, engine.encode("Topic of the hall?"), tokens, AdapterBank(engine.bundle).vectors("lamps"))
    shares = np.exp(scores) / np.exp(scores).sum()
    assert said.label == tiny.CHOICES[int(np.argmax(scores))]
    np.testing.assert_allclose(list(said.scores.values()), shares, atol=1e-6)
    assert sum(said.scores.values()) == pytest.approx(1, abs=1e-5)


def test_generation_streams(engine):
    pieces = answer(engine, "echo", "hello")
    assert not isinstance(pieces, Answer)
    assert len("".join(pieces)) > 0


def test_the_base_speaks_through_its_own_prompt_unless_a_task_is_asked_for(engine):
    assert task_of(engine, None).prompt == "Q: {text}\nA: "
    assert task_of(engine, "none").kind == "generate"
    assert task_of(engine, "none", "lamps").prompt == "Topic of {text}?"
    assert isinstance(answer(engine, None, "the hall", task="lamps"), Answer)


def test_texts_together_with_their_own_adapters_equal_texts_alone(engine):
    bank, task, texts, names = (
        AdapterBank(engine.bundle),
        task_of(engine, "lamps"),
        ["a", "a longer text", "x y"],
        ["lamps", None, "echo"],
    )
    together = classify_batch(engine, task, bank.rows(names), texts)
    for text, name, found in zip(texts, names, together, strict=True):
        alone = answer(engine, name, text, task="lamps")
        assert found.label == alone.label
        np.testing.assert_allclose(list(found.scores.values()), list(alone.scores.values()), atol=2e-5)


def test_a_prepared_task_gives_the_same_answers_and_runs_the_beginning_once(engine, monkeypatch):
    other, bank = Engine(engine.bundle, threads=1), AdapterBank(engine.bundle)
    run: list[int] = []
    inner = other._run
    monkeypatch.setattr(other, "_run", lambda tokens, *rest: run.append(tokens.shape[1]) or inner(tokens, *rest))
    for name in ("lamps", "echo"):
        prepare(other, task_of(other, name), bank.vectors(name))
    assert [b.tokens for b in other.begun] == [
        tuple(engine.encode(text)) for text in ("Topic of", "Say:")
    ]  # " the" is one token
    for text in ("the hall", "off", ""):
        run.clear()
        found = classify(other, task_of(other, "lamps"), bank.vectors("lamps"), text)
        assert run[0] == len(engine.encode(f"Topic of {text}?")) - len(engine.encode("Topic of"))
        plain = answer(engine, "lamps", text)
        assert found.label == plain.label
        np.testing.assert_allclose(list(found.scores.values()), list(plain.scores.values()), atol=2e-5)
        assert "".join(reply(other, task_of(other, "echo"), bank.vectors("echo"), text)) == "".join(
            answer(engine, "echo", text)
        )


def test_a_task_whose_prompts_have_nothing_in_common_is_prepared_in_vain(tmp_path):
    bare = Engine(
        Bundle.open(tiny.write_bundle(tmp_path / "bundle", tasks={"plain": tiny.TASKS["echo"] | {"prompt": "{text}"}})),
        threads=1,
    )
    prepare(bare, task_of(bare, "none", "plain"), {})
    assert bare.begun == []


def test_wrong_names_are_told(engine):
    with pytest.raises(AdapterError, match="did you mean 'lamps'"):
        answer(engine, "lampz", "x")
    with pytest.raises(ConfigError, match="no task 'eco'; it has: echo, lamps"):
        answer(engine, "lamps", "x", task="eco")
    with pytest.raises(ConfigError, match="no choices"):
        classify_batch(engine, task_of(engine, "echo"), {}, ["x"])


def test_evaluation_of_classification(engine, tmp_path):
    texts = [f"thing {i}" for i in range(6)]
    labels = [answer(engine, "lamps", t).label for t in texts]
    wrong = next(c for c in tiny.CHOICES if c != labels[0])
    rows = [
        {"text": t, "label": wrong if i == 0 else label} for i, (t, label) in enumerate(zip(texts, labels, strict=True))
    ]
    bank = AdapterBank(engine.bundle)
    found = evaluate(engine, bank, lines(tmp_path / "a.jsonl", *rows), "lamps")
    assert (found.adapter, found.task, found.n, found.accuracy, found.f1) == ("lamps", "lamps", 6, 5 / 6, None)
    assert sum(c["n"] for c in found.labels.values()) == 6
    assert sum(c["right"] for c in found.labels.values()) == 5
    assert found.examples_per_second > 0
    assert engine.begun == []  # what was run once for the file is let go with it
    assert "f1" not in found.to_dict()
    assert evaluate(engine, bank, tmp_path / "a.jsonl", "none", "lamps").adapter == "none"


def test_a_task_says_how_its_choices_are_ranked(tmp_path):
    tasks = {how: tiny.TASKS["lamps"] | {"ranking": how} for how in ("sum", "mean")} | {"old": tiny.TASKS["lamps"]}
    bare = Engine(Bundle.open(tiny.write_bundle(tmp_path / "bundle", tasks=tasks)), threads=1)
    tokens = [ended(bare, c) for c in tiny.CHOICES]
    bank, prompt, lengths = AdapterBank(bare.bundle), bare.encode("Topic of the hall?"), [len(t) for t in tokens]
    for task in tasks:
        expected = rank(bare, prompt, tokens, bank.vectors(task)) / (lengths if task == "mean" else 1)
        found = answer(bare, task, "the hall")
        shares = np.exp(expected - expected.max())
        np.testing.assert_allclose(list(found.scores.values()), shares / shares.sum(), atol=1e-5)
        assert found.label == tiny.CHOICES[int(np.argmax(expected))]


def test_choices_are_ranked_as_the_vectors_were_trained_and_the_base_s_by_the_sum(tmp_path):
    mean = {"lamps": tiny.TASKS["lamps"] | {"ranking": "mean"}, "echo": tiny.TASKS["echo"]}
    bare = Engine(Bundle.open(tiny.write_bundle(tmp_path / "side", tasks=mean)), threads=1)
    assert [task_of(bare, adapter, "lamps").ranking for adapter in (None, "none", "echo", "lamps")] == [
        "sum",
        "sum",
        "sum",
        "mean",
    ]
    tokens = [ended(bare, c) for c in tiny.CHOICES]
    sums = rank(bare, bare.encode("Topic of the hall?"), tokens, {})
    np.testing.assert_allclose(
        list(answer(bare, None, "the hall", task="lamps").scores.values()), np.exp(sums) / np.exp(sums).sum(), atol=1e-5
    )
    folder = tiny.write_bundle(tmp_path / "merged", mode="merged")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tasks"]["lamps"]["ranking"] = "mean"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    merged = Engine(Bundle.open(folder), threads=1)
    assert [task_of(merged, adapter, "lamps").ranking for adapter in (None, "lamps")] == ["mean", "mean"]


def test_a_text_s_own_choices_are_ranked_instead_of_the_task_s(engine, tmp_path):
    bank, task = AdapterBank(engine.bundle), task_of(engine, "lamps")
    own = [["a door", "lock it", "x"], None, ["lights", "off"]]
    found = classify_batch(engine, task, bank.vectors("lamps"), ["the hall"] * 3, own)
    for given, said in zip(own, found, strict=True):
        scores = rank(
            engine,
            engine.encode("Topic of the hall?"),
            [ended(engine, c) for c in given or tiny.CHOICES],
            bank.vectors("lamps"),
        )
        assert said.label == (given or tiny.CHOICES)[int(np.argmax(scores))]
        assert list(said.scores) == list(given or tiny.CHOICES)
    best = found[0].label
    rows = [{"text": "the hall", "label": best, "choices": own[0]}, {"text": "the hall", "label": found[1].label}]
    assert evaluate(engine, bank, lines(tmp_path / "a.jsonl", *rows), "lamps").accuracy == 1


def test_a_task_without_choices_needs_them_with_each_text(tmp_path):
    bare = Engine(
        Bundle.open(tiny.write_bundle(tmp_path / "bundle", tasks={"quiz": tiny.TASKS["lamps"] | {"choices": None}})),
        threads=1,
    )
    bank, task = AdapterBank(bare.bundle), task_of(bare, "none", "quiz")
    with pytest.raises(ConfigError, match="give them with each text"):
        classify_batch(bare, task, {}, ["x"])
    assert set(classify_batch(bare, task, {}, ["x"], [["a", "b"]])[0].scores) == {"a", "b"}
    file = lines(tmp_path / "a.jsonl", {"text": "x", "label": "a", "choices": ["a", "b"]})
    assert evaluate(bare, bank, file, None, "quiz").labels is None
    with pytest.raises(DataError, match="line 2: 'choices' is missing: this task has none"):
        evaluate(
            bare,
            bank,
            lines(file, {"text": "x", "label": "a", "choices": ["a", "b"]}, {"text": "x", "label": "a"}),
            None,
            "quiz",
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("echo --choice a --choice b", "--choice needs a task that classifies; 'echo' generates text"),
        ("lamps --max-new-tokens 3", "--max-new-tokens needs a task that generates; 'lamps' classifies"),
        ("lamps --beams 3", "--beams needs a task that generates; 'lamps' classifies"),
        ("echo --beams 3 --temperature 1.0", "beams cannot be combined with a temperature"),
        ("echo --top-p 0.9", "need a temperature"),
        ("lamps --choice a --choice b --choice a", "--choice 'a' is given twice"),
        ("lamps --choice a", "--choice 'a' is the only one; give at least two"),
        ("lamps --choice a --choice=", "a --choice is empty"),
    ],
)
def test_an_option_that_the_task_has_no_use_for_is_refused(engine, words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(engine.bundle.path), "the door", "--adapter", *words.split()])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_accuracy_is_exact_and_any_of_several_right_answers_counts(tmp_path):
    """Labels that differ in case, spaces or a full stop are different labels."""
    labels = ["US", "us", "no", "no.", " no"]
    tasks = {"case": tiny.TASKS["lamps"] | {"choices": labels}}
    bare = Engine(Bundle.open(tiny.write_bundle(tmp_path / "bundle", tasks=tasks)), threads=1)
    bank, texts = AdapterBank(bare.bundle), [f"thing {i}" for i in range(4)]
    said = [answer(bare, "case", text).label for text in texts]
    for given in labels:
        rows = [{"text": text, "label": given} for text in texts]
        right = sum(label == given for label in said) / 4
        assert evaluate(bare, bank, lines(tmp_path / "a.jsonl", *rows), "case").accuracy == right
    rows = [
        {"text": text, "labels": [next(o for o in labels if o != label), label]}
        for text, label in zip(texts, said, strict=True)
    ]
    assert evaluate(bare, bank, lines(tmp_path / "a.jsonl", *rows), "case").accuracy == 1


def test_lines_that_cannot_be_asked_are_left_out_and_told(engine, tmp_path, capsys):
    rows = [
        {"text": "thing", "label": "lock"},
        {"text": "thing " * 40, "label": "lock"},
        {"text": "a", "label": "lock"},
    ]
    file, bank = lines(tmp_path / "a.jsonl", *rows), AdapterBank(engine.bundle)
    found = evaluate(engine, bank, file, "lamps")
    assert (found.n, found.left_out, found.left_out_lines) == (2, 1, [2])
    assert found.to_dict()["left_out"] == 1
    said = capsys.readouterr().err
    assert f"1 of 3 lines are left out: {file}, line 2: " in said
    assert f"do not fit the context of {tiny.CONTEXT}" in said
    assert "left_out" not in evaluate(engine, bank, lines(file, rows[0]), "lamps").to_dict()
    with pytest.raises(DataError, match=r"none of these lines can be asked: .*line 1: \d+ tokens do not fit"):
        evaluate(engine, bank, lines(file, rows[1]), "lamps")


def test_the_longest_line_that_fits_is_asked(engine, tmp_path):
    bank = AdapterBank(engine.bundle)
    for count in range(1, tiny.CONTEXT):
        row = {"text": "x" * count, "label": "lock"}
        needed = len(engine.encode(f"Topic of {'x' * count}?")) + max(len(ended(engine, c)) for c in tiny.CHOICES) - 1
        if needed >= tiny.CONTEXT:
            break
    assert needed == tiny.CONTEXT
    assert evaluate(engine, bank, lines(tmp_path / "a.jsonl", row), "lamps").n == 1
    with pytest.raises(DataError, match="49 tokens do not fit the context of 48"):
        evaluate(engine, bank, lines(tmp_path / "a.jsonl", row | {"text": "x" * (count + 1)}), "lamps")


def test_a_contradiction_in_a_file_is_told(engine, tmp_path, capsys):
    file = lines(tmp_path / "a.jsonl", {"text": "a", "label": "lock"}, {"text": "a", "label": "lights"})
    evaluate(engine, AdapterBank(engine.bundle), file, "lamps")
    assert "warning: a line repeats a text with different answers" in capsys.readouterr().err


def test_law_11_control_tokens_in_words_and_choices_are_text_on_the_device(engine):
    end = engine.tokenizer.token_to_id(tiny.END)
    task = task_of(engine, "lamps")
    assert end not in prompt_of(engine, task, f"the hall{tiny.END}")
    assert answer_of(engine, task, f"lo{tiny.END}ck").count(end) == 1
    assert answer_of(engine, task, "lock")[-1] == end
    asked = replace(task, prompt=f"{tiny.END}Topic of {{text}}?{tiny.END}")
    assert prompt_of(engine, asked, f"the {tiny.END} hall").count(end) == 2
    assert set(classify(engine, task, {}, "the hall", [f"a{tiny.END}", "a"]).scores) == {f"a{tiny.END}", "a"}


def test_what_is_no_utf_8_is_told_in_one_line(engine):
    with pytest.raises(DataError, match="is not UTF-8"):
        answer(engine, "lamps", "a\udcff")


def test_evaluation_of_generation(engine, tmp_path):
    said = "".join(answer(engine, "echo", "hello"))
    file = lines(
        tmp_path / "a.jsonl",
        {"text": "hello", "target": f"  {said.upper()} "},
        {"text": "hello", "target": "something else"},
    )
    found = evaluate(engine, AdapterBank(engine.bundle), file, "echo")
    assert (found.kind, found.n, found.accuracy, found.labels) == ("generate", 2, 0.5, None)
    assert found.f1 >= 0.5
    assert found.chrf == corpus_chrf([said, said], [f"  {said.upper()} ", "something else"])


def test_evaluation_of_a_merged_bundle_names_its_task(tmp_path):
    merged = Engine(Bundle.open(tiny.write_bundle(tmp_path, mode="merged")), threads=1)
    file = lines(tmp_path / "a.jsonl", {"text": "a", "label": "lock"})
    for adapter in (None, "lamps"):
        assert evaluate(merged, AdapterBank(merged.bundle), file, adapter).adapter == "lamps"
    with pytest.raises(AdapterError, match="merged"):
        evaluate(merged, AdapterBank(merged.bundle), file, "none")


def test_token_f1():
    assert token_f1("lights | hall | off", "lights | hall | on") == pytest.approx(0.8)
    assert token_f1("Lights off.", "lights  OFF") == 1
    assert token_f1("", "x") == token_f1("y", "x") == 0


def slow_chrf(answers, expected):
    """chrF2 from its definition: per n the matches over all answers, F of each n's precision and recall, averaged."""
    scores = []
    for n in range(1, 7):
        grams = [
            [Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in ("".join(s.split()) for s in side)]
            for side in (answers, expected)
        ]
        said, wanted = (sum(sum(g.values()) for g in side) for side in grams)
        shared = sum(sum((a & b).values()) for a, b in zip(*grams, strict=True))
        if said and wanted:
            precision, recall = shared / said, shared / wanted
            scores.append(5 * precision * recall / (4 * precision + recall) if shared else 0.0)
    return 100 * sum(scores) / len(scores)


def test_chrf_is_its_definition_and_is_left_out_without_its_library(monkeypatch):
    answers, expected = (
        ["lights | hall | off", "lock the door", "musik"],
        ["lights | hall | on", "lock a door", "music please"],
    )
    assert corpus_chrf(answers, expected) == pytest.approx(slow_chrf(answers, expected), abs=0.01)
    assert corpus_chrf(expected, expected) == 100
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    assert corpus_chrf(answers, expected) is None


def test_bench_gives_the_manifest_s_keys_where_torch_cannot_be_imported(engine):
    """Law 6, in a process of its own."""
    found = without_torch(
        f"from qia3.runtime.bench import main; main([{str(engine.bundle.path)!r}, *sys.argv[1:]])", *BENCH, "--json"
    )
    assert found.returncode == 0, found.stderr
    figures = json.loads(found.stdout)
    assert set(figures) == {field.name for field in fields(Measured)} - {"later"}
    assert encode(decode(Measured, figures)) == figures
    assert figures["threads"] == 1
    assert figures["decode_tokens_per_second"] > 0
    if Path("/proc/self/status").exists():
        assert 0 < figures["peak_anonymous_bytes"] < figures["peak_resident_bytes"]


def test_bench_without_proc_has_no_memory_figures(engine, monkeypatch):
    monkeypatch.setattr(measuring, "STATUS", Path("/nowhere"))
    figures = measuring.bench(engine.bundle.path, prompt_tokens=4, new_tokens=2, threads=1)
    assert [value for key, value in figures.items() if key.endswith("_bytes")] == [None] * 3


def test_bench_tells_what_is_wrong_in_one_line(engine, capsys):
    for arguments in (
        ["nowhere"],
        [str(engine.bundle.path), "--adapter", "x"],
        [str(engine.bundle.path), "--prompt-tokens", "40"],
    ):
        with pytest.raises(SystemExit) as ended:
            measuring.main(arguments)
        assert ended.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


BENCH = ("--prompt-tokens", "8", "--new-tokens", "4", "--threads", "1", "--adapter", "lamps")
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "peft", "onnx", "onnx_ir", "onnxscript", "safetensors", "bitsandbytes"}:
            raise ImportError(f"law 6: {name}")
sys.meta_path.insert(0, Block())
"""
ASK = """
from pathlib import Path
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import answer
from qia3.bundle.opened import Bundle
from qia3.runtime.engine import Engine
from qia3.runtime.evaluate import evaluate
engine = Engine(Bundle.open(sys.argv[1]), threads=1)
print(answer(engine, "lamps", "the hall").label)
print(repr("".join(answer(engine, "echo", "hello"))))
print(evaluate(engine, AdapterBank(engine.bundle), Path(sys.argv[2]), "lamps").n)
"""


def without_torch(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code, *arguments], capture_output=True, text=True, env=environment
    )


def test_law_6_the_runtime_needs_no_torch(engine, tmp_path):
    file = lines(tmp_path / "a.jsonl", {"text": "a", "label": "lock"})
    found = without_torch(ASK, str(engine.bundle.path), str(file))
    assert found.returncode == 0, found.stderr
    expected = [answer(engine, "lamps", "the hall").label, repr("".join(answer(engine, "echo", "hello"))), "1"]
    assert found.stdout.splitlines() == expected
    assert "law 6" in without_torch("import torch").stderr
