"""optimum-onnx itself opens a bundle without a file name: the tokens of our own runtime, one by one and in a batch.

optimum-onnx wants an older transformers than ours, so it lives in an environment of its own, which `make interop` makes:

    QIA3_OPTIMUM=PYTHON pytest -s tests/test_interop.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_build import write_build
from tiny_seq2seq import write_seq2seq

from qia3 import cli
from qia3.bundle.opened import Bundle
from qia3.runtime.generate import generate
from qia3.runtime.load import open_engine

PYTHON = os.environ.get("QIA3_OPTIMUM", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="QIA3_OPTIMUM names no Python that has optimum-onnx (make interop)")
NEW = 12
FAMILIES = ["llama", "t5 v1.1", "bart"]
FORMS = {"side": [], "merged": ["--mode", "merged", "--task", "topics"]}
CASES = [(family, form) for family in FAMILIES for form in FORMS if (family, form) != ("bart", "merged")]  # GELU
TEXTS = ["turn the lights off", "lock the door", "a louder song and more music, then dim the hall"]


@pytest.fixture(scope="module")
def table():
    """What came of each case, printed at the end."""
    rows: list[str] = []
    yield rows
    print("\n\n| loader | family | vectors | tokens beside ours |\n|---|---|---|---|\n" + "\n".join(rows))


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> dict[str, Path]:
    """A folder for each family, in which the second form finds what the first one trained."""
    return {family: tmp_path_factory.mktemp("family") for family in FAMILIES}


def built(folder: Path, family: str, form: str) -> Bundle:
    if not (folder / "qia3.toml").exists():
        write_build(folder, steps=4)
        if family != "llama":
            shutil.rmtree(folder / "base")
            write_seq2seq(folder / "base", family)
    place = folder / form
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(folder / "qia3.toml"), "--output", str(place), *FORMS[form]])
    assert not ended.value.code
    return Bundle.open(place)


def theirs(bundle: Bundle, prompts: list[list[int]]) -> dict:
    script = Path(__file__).with_name("optimum_loads.py")
    # one more than is compared: BART's settings force the token at the very end
    command = [PYTHON, str(script), str(bundle.path), str(NEW + 1), json.dumps(prompts), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("family", "form"), CASES)
def test_optimum_says_the_same_token_for_token(work, table, family, form):
    bundle = built(work[family], family, form)
    engine = open_engine(bundle, 1)
    pair = bundle.manifest.encoder is not None
    prompts = [engine.encode(text) for text in TEXTS]
    if not pair:  # it pads decoders' prompts on the left; these have one length
        prompts = [prompt[: min(map(len, prompts))] for prompt in prompts]
    forced = list(bundle.architecture.decoder_start[1:])
    expected = [[*forced, *generate(engine, prompt, {}, NEW - len(forced), bundle.stop_tokens)] for prompt in prompts]
    told = theirs(bundle, prompts)
    assert told["ids"] == [engine.tokens.tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    for kind in ("rows", "batch"):
        assert [_to_the_end(row, bundle.stop_tokens)[:NEW] for row in told[kind]] == expected, kind
    assert any(len(row) > 3 for row in expected)
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    table.append(f"| {told['class']} ({versions}) | {family} | {form} | the same, alone and in a batch |")


def _to_the_end(row: list[int], stop: tuple[int, ...]) -> list[int]:
    return row[: next((i for i, token in enumerate(row) if token in stop), len(row))]
