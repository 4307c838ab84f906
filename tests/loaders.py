"""What stock loaders make of every family: the last columns of docs/families.md and docs/encoder-decoders.md.

    export QIA3_OPTIMUM=PYTHON QIA3_TRANSFORMERS_JS=PACKAGES      as tests/test_interop.py and test_transformers_js.py have them
    python tests/loaders.py                 writes the columns of both
    python tests/loaders.py llama t5        prints those of some families, and writes them with --write

Each family's tiny model goes on the grid with random vectors in its scales (unmerged, and left at one, where they have
nowhere to fold), its graphs at accuracy level 0 and its configurations into a folder as a bundle has it, and a loader gets
the folder's name and nothing else. "yes": it says the tokens that transformers says on the dequantised weights, for two
prompts one by one and for both in one batch. PEFT opens our checkpoint of the vectors on a plain model with the
dequantised weights, and gives the logits that ours gives. A loader lives in one process for all families, and in another
one if that ends.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from families import FAMILIES, POSITIONS, Family, as_quantised, label, merged, random_model
from families import TABLE as DECODERS
from families_pairs import TABLE as PAIRS
from peft import PeftModel
from seq2seq_pair import Oracle, batch, quantised
from tiny import ids, random_vectors
from tiny_seq2seq import SEQ2SEQ, pair

from qia3.base.family import is_encoder
from qia3.base.quantise import Grid, quantise_model
from qia3.bundle.adapter import Adapter
from qia3.bundle.layout import DECODER_GRAPH, ENCODER_GRAPH, SHARED_DATA
from qia3.bundle.peft import write_peft
from qia3.bundle.ports import Cache
from qia3.graph.export import cache_of, export_decoder
from qia3.graph.export_seq2seq import export_seq2seq
from qia3.graph.external import write_graph, write_graphs
from qia3.graph.forced import torch_choices
from qia3.graph.loader_configs import write_configs
from qia3.ia3.roles import find_roles
from qia3.ia3.vectors import Scaled, attach, set_vectors

HERE = Path(__file__).parent
NEW, STOP = 8, 1
COMMANDS = {
    "transformers.js": ["node", str(HERE / "loader.mjs"), os.environ.get("QIA3_TRANSFORMERS_JS", "")],
    "optimum": [os.environ.get("QIA3_OPTIMUM", ""), str(HERE / "loader_optimum.py")],
}
HAVE = {name: bool(command[-1] and command[0]) for name, command in COMMANDS.items()}
COLUMNS = ["PEFT", *COMMANDS]
LABELS = {DECODERS: [label(f) for f in FAMILIES], PAIRS: list(SEQ2SEQ)}
# what a loader's own message is short for
SHORT = (
    (r"model type `\S+` but Transformers does not recognize", "transformers 4.57 does not know it"),
    (r"Unsupported model type", "it does not know it"),
    (r"QMoE", "its ONNX Runtime has another QMoE"),
    (r"invalid dimensions for input: past_key_values", "it begins with a cache of other sizes"),
)


class Loader:
    """A process that answers a folder's name with what it read there, a line each."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: subprocess.Popen[str] | None = None

    def says(self, folder: Path) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None:
            streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            # one more than is compared: BART's and Marian's settings force the token at the very end
            self.process = subprocess.Popen([*COMMANDS[self.name], str(NEW + 1)], text=True, **streams)
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        answer = next((line for line in self.process.stdout if line.startswith("{")), None)
        return json.loads(answer) if answer else {"error": f"the process ended with {self.process.wait()}"}

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def cell(told: dict[str, Any], expected: list[list[int]]) -> str:
    """What the table says of an answer."""
    if "error" in told:
        line = told["error"].strip().splitlines()[0].replace("|", "/")
        return "no: " + next((short for pattern, short in SHORT if re.search(pattern, line)), line[:160])
    for kind in ("rows", "batch"):
        if [to_the_end(row[:NEW]) for row in told[kind]] != [to_the_end(row) for row in expected]:
            return f"WRONG in {kind}"
    return "yes"


def to_the_end(row: list[int]) -> list[int]:
    """What is said after an end in a batch is padding."""
    return row[: row.index(STOP)] if STOP in row else row


def cells(name: str, loaders: Iterable[Loader]) -> list[str]:
    """The columns of a family by its label, "-" where it is refused or is an encoder, which these do not open."""
    family = next((f for f in FAMILIES if label(f) == name), None)
    if family is not None and family.refused is not None:
        return ["-"] * len(COLUMNS)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "bundle"
        place.mkdir()
        if family is None:
            model, checkpoint = _pair(name, place)
        else:
            model, checkpoint = _family(family, place)
        if family is not None and is_encoder(model.config):
            return [checkpoint, "-", "-"]
        prompts = batch([11, 11])[0].tolist()
        (place / "prompts.json").write_text(json.dumps(prompts))
        expected = [torch_choices(model, prompt, NEW) for prompt in prompts]
        return [checkpoint, *(cell(loader.says(place), expected) for loader in loaders)]


def _family(family: Family, folder: Path) -> tuple[Any, str]:
    oracle = random_model(family)
    model = copy.deepcopy(oracle)
    quantise_model(model, Grid(32, False))
    scaled = attach(model, find_roles(model).sites)
    vectors = random_vectors(scaled)
    as_quantised(oracle, model)
    checkpoint = _in_peft(oracle, model, scaled, vectors, {"input_ids": ids(2, 11)})
    if is_encoder(model.config):
        return model, checkpoint
    if not merged(model, scaled, vectors):
        set_vectors(scaled, None)
    graph = export_decoder(model, 0, POSITIONS, "last")
    cache = cache_of(graph)
    assert cache is not None
    write_graph(graph, folder, [])
    write_configs(model, folder, POSITIONS, (STOP,), cache)
    return model, checkpoint


def _pair(name: str, folder: Path) -> tuple[Any, str]:
    model, scaled = quantised(name)
    vectors = random_vectors(scaled)
    checkpoint = _in_peft(Oracle(name, model, {}).model, model, scaled, vectors, pair())
    if not merged(model, scaled, vectors):
        set_vectors(scaled, None)
    graphs = export_seq2seq(model, 0, POSITIONS, "last")
    write_graphs({ENCODER_GRAPH: graphs["encoder"], DECODER_GRAPH: graphs["decoder"]}, SHARED_DATA, folder, [])
    write_configs(model, folder, POSITIONS, (STOP,), Cache(6, 16))
    return model, checkpoint


@torch.no_grad()
def _in_peft(
    oracle: Any, model: Any, scaled: dict[str, Scaled], vectors: dict[str, np.ndarray], given: dict[str, torch.Tensor]
) -> str:
    set_vectors(scaled, vectors)
    with tempfile.TemporaryDirectory() as folder:
        sites = [layer.site for layer in scaled.values()]
        write_peft(Path(folder), Adapter(vectors, "f" * 64), sites, "tiny", is_encoder(model.config))
        theirs = PeftModel.from_pretrained(copy.deepcopy(oracle), folder).eval()
    found, expected = theirs(**given)[0], model(**given)[0]
    close = torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * max(1.0, float(expected.abs().max())))
    return "yes" if close else f"WRONG by {float((found - expected).abs().max()):.2g}"


def rewritten(table: Path, columns: dict[str, list[str]]) -> str:
    """The table with these families' last columns."""
    lines = table.read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines):
        name = named(line)
        if name in columns:
            lines[i] = "|".join([*line.split("|")[: -1 - len(COLUMNS)], *(f" {c} " for c in columns[name]), ""])
    return "\n".join(lines) + "\n"


def named(row: str) -> str:
    """The label of a row's family."""
    parts = [part.strip() for part in row.split("|")[1:3]]
    whole = ", ".join(filter(None, parts))
    return whole if whole in LABELS[DECODERS] else "".join(parts[:1])


def main() -> None:
    missing = [f"QIA3_{name.upper().replace('.', '_')}" for name, here in HAVE.items() if not here]
    if missing:
        raise SystemExit(f"{' and '.join(missing)} must name where the loaders are")
    asked, loaders = sys.argv[1:], [Loader(name) for name in COMMANDS]
    for table, names in LABELS.items():
        for name in names:
            if not set(asked) - {"--write"} or name in asked or name.split(",")[0] in asked:
                found = cells(name, loaders)
                print(f"| {name} | {' | '.join(found)} |", flush=True)
                if not asked or "--write" in asked:
                    table.write_text(rewritten(table, {name: found}), encoding="utf-8")
    for loader in loaders:
        loader.close()


if __name__ == "__main__":
    main()
