"""Labels from an encoder: IA³ and a head on all-MiniLM-L6-v2 in 4 bits, beside a logistic regression on its frozen
float32 embeddings, which is what SetFit fits at its end. Tasks, splits and seeds are those of benchmarks/quality.py.

    python benchmarks/encoders.py --seeds 0 1 2      # a bundle of four tasks for each seed, in dist/encoders; some minutes
    python benchmarks/encoders.py --time             # milliseconds a text, one at a time, in turns
    python benchmarks/encoders.py --time --beside dist/home-intents      # a decoder's bundle among them
    python benchmarks/encoders.py --table
    python benchmarks/encoders.py --regression examples/encoder-intents/qia3.toml     # of a build file's own tasks

Each line of benchmarks/results/encoders.jsonl is one method on one seed. What the bundle answers comes from ONNX Runtime
with int8 activations (`qia3 build` measures it itself); the regression's embeddings are transformers' own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality_tasks import CORE, load
from transformers import AutoModel, AutoTokenizer

from qia3.base.sources import resolve
from qia3.build import build
from qia3.bundle.opened import Bundle
from qia3.config import read_build
from qia3.examples import Example, read_examples
from qia3.runtime.adapters import AdapterBank
from qia3.runtime.answer import classify, prepare
from qia3.runtime.bench import machine
from qia3.runtime.load import open_engine
from qia3.runtime.texts import classify_texts, embed_texts

RESULTS = Path(__file__).parent / "results" / "encoders.jsonl"
PLACE = Path("dist/encoders")
SHOTS, STEPS, LONGEST = 64, 64, 256  # examples and steps of a task; tokens of a text, as the model's own folder has it
TASK = """
[[task]]
name = "{name}"
kind = "classify"
train = "{name}.jsonl"
test = "{name}-test.jsonl"
overlong = "cut"
"""


def weights() -> Path:
    """The folder of the model, fetched once and checked."""
    return Path(resolve("all-minilm-l6-v2").name)


def made(seed: int) -> Path:
    """A bundle of the four tasks, each trained on its draw of this seed."""
    folder, out = PLACE / f"seed-{seed}", PLACE / f"bundle-{seed}"
    if not (out / "manifest.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for name in CORE:
            split = load(name)
            _write(folder / f"{name}.jsonl", split.draw(SHOTS, seed))
            _write(folder / f"{name}-test.jsonl", split.test)
        text = f'name = "encoders"\nseed = {seed}\n[base]\nmodel = "{weights()}"\n[train]\nsteps = {STEPS}\n[export]\ncontext_length = {LONGEST}\n'
        (folder / "qia3.toml").write_text(text + "".join(TASK.format(name=name) for name in CORE), encoding="utf-8")
        build(read_build(folder / "qia3.toml", output=str(out)))
    return out


def _write(path: Path, examples: tuple[Example, ...]) -> None:
    path.write_text("".join(json.dumps({"text": e.text, "label": e.answer}) + "\n" for e in examples), encoding="utf-8")


class Float:
    """transformers' own embeddings in float32: the mean over the tokens, of length one."""

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(weights())
        self.model = AutoModel.from_pretrained(weights(), dtype=torch.float32).eval()

    @torch.no_grad()
    def embed(self, texts: list[str]) -> np.ndarray:
        found = []
        for text in texts:
            given = self.tokenizer(text, truncation=True, max_length=LONGEST, return_tensors="pt")
            mean = self.model(**given)[0].mean(1)
            found.append(torch.nn.functional.normalize(mean, dim=-1)[0].numpy())
        return np.stack(found)


def regression(x: np.ndarray, y: np.ndarray, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and biases of the softmax regression with 1/2 |W|² beside the summed loss: scikit-learn's default."""
    given, right = torch.from_numpy(x).double(), torch.from_numpy(y)
    weight = torch.zeros(labels, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(labels, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-8)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(given @ weight.T + bias, right, reduction="sum")
        loss = loss + weight.pow(2).sum() / 2
        loss.backward()
        return loss

    optimiser.step(closure)
    return weight.detach().numpy(), bias.detach().numpy()


def regressed(embed: Any, seed: int) -> dict[str, float]:
    """Accuracy on each task's test set, in per cent."""
    found = {}
    for name in CORE:
        split = load(name)
        choices = list(split.choices or ())
        train = split.draw(SHOTS, seed)
        found[name] = fitted(embed, train, split.test, choices)
    return found


def fitted(embed: Any, train: Sequence[Example], test: Sequence[Example], choices: list[str]) -> float:
    """Per cent of `test` that a regression on the embeddings of `train` has right."""
    y = np.array([choices.index(e.answer) for e in train])
    weight, bias = regression(embed([e.text for e in train]), y, len(choices))
    chosen = (embed([e.text for e in test]) @ weight.T + bias).argmax(1)
    return 100 * float(np.mean([choices[c] == e.answer for c, e in zip(chosen, test, strict=True)]))


def of_file(file: Path) -> None:
    """The regression on float32 embeddings, on the tasks of a build file."""
    for task in read_build(file).task:
        train = [e for part in task.train_files for e in read_examples(part, task.kind)]
        test = read_examples(task.test, task.kind)
        score = fitted(Float().embed, train, test, sorted({e.answer for e in train}))
        print(f"{task.name}: {score:.1f} % of {len(test)}, after {len(train)}")


def run(seeds: list[int]) -> None:
    rival = Float()
    for seed in seeds:
        out = made(seed)
        bundle = Bundle.open(out)
        engine = open_engine(bundle)
        scores = {name: 100 * held.after.accuracy for name, held in (bundle.manifest.evaluation or {}).items()}
        adapter = max(f.stat().st_size for f in (out / "adapters").glob("*.onnx_adapter"))
        _keep("IA³ and a head, int4, vectors at the side", seed, scores, adapter, _bytes(out))
        float_bytes = (weights() / "model.safetensors").stat().st_size
        per_task = 4 * 385 * max(len(load(n).choices or ()) for n in CORE)
        _keep("logistic regression, float32 embeddings", seed, regressed(rival.embed, seed), per_task, float_bytes)
        ours = regressed(lambda texts, engine=engine: np.concatenate([embed_texts(engine, [t]) for t in texts]), seed)
        _keep("logistic regression, int4 embeddings", seed, ours, per_task, _bytes(out))


def _bytes(out: Path) -> int:
    """Graph and weights."""
    return sum(f.stat().st_size for f in (out / "onnx").iterdir())


def _keep(method: str, seed: int, scores: dict[str, float], per_task: int, model: int) -> None:
    line = {"method": method, "seed": seed, "accuracy": scores, "bytes_a_task": per_task}
    line |= {"bytes_of_the_model": model, "machine": machine()}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(method, seed, {name: round(score, 1) for name, score in scores.items()}, flush=True)


def timed(beside: Path | None, threads: int) -> None:
    """One text at a time, the contenders in turns; medians."""
    texts = [e.text for e in load("intent").test[:100]]
    engine, rival = open_engine(Bundle.open(made(0)), threads), Float()
    torch.set_num_threads(engine.threads)
    contenders = {
        "IA³ and a head, int4": lambda text: classify_texts(engine, [text], "intent"),
        "float32 embeddings, transformers": lambda text: rival.embed([text]),
    }
    if beside is not None:
        other = open_engine(Bundle.open(beside), threads)
        name = next(n for n, task in other.bundle.tasks.items() if task.kind == "classify")
        task, vectors = other.bundle.tasks[name], AdapterBank(other.bundle).vectors(name)
        prepare(other, task, vectors)
        contenders[f"{name}, {len(task.choices or ())} answers"] = lambda text: classify(other, task, vectors, text)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i, text in enumerate(texts):
        for name in sorted(contenders, reverse=bool(i % 2)):
            started = time.perf_counter()
            contenders[name](text)
            seconds[name].append(time.perf_counter() - started)
            time.sleep(0.005)  # threads of a session spin on after a run
    words = statistics.mean(len(engine.encode(text)) for text in texts)
    print(f"{len(texts)} texts of {words:.0f} tokens on average, {engine.threads} threads, {machine()}")
    for name, found in seconds.items():
        print(f"{name:36} {1e3 * statistics.median(found):.2f} ms a text")


def table() -> None:
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    print(
        "| | " + " | ".join(CORE) + " | mean | bytes a task | bytes of the model |\n|---|" + "---:|" * (len(CORE) + 3)
    )
    for method in dict.fromkeys(line["method"] for line in lines):
        own = [line for line in lines if line["method"] == method]
        cells = [statistics.median(line["accuracy"][name] for line in own) for name in CORE]
        told = [*(f"{cell:.1f}" for cell in cells), f"{statistics.mean(cells):.1f}"]
        print(f"| {method} | {' | '.join(told)} | {own[-1]['bytes_a_task']:,} | {own[-1]['bytes_of_the_model']:,} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beside", type=Path, metavar="BUNDLE")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--regression", type=Path, metavar="FILE")
    asked = parser.parse_args()
    if asked.regression:
        return of_file(asked.regression)
    if not (asked.time or asked.table):
        run(asked.seeds)
    if asked.time:
        timed(asked.beside, asked.threads)
    else:
        table()


if __name__ == "__main__":
    main()
