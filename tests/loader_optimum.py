"""Greedy tokens of one folder after another in optimum-onnx, opened with no file name (tests/loaders.py).

`python loader_optimum.py NEW`, a folder's path on each line. Its prompts.json has ids of one length; the answer is a line
{"rows": [[ids], ...], "batch": [[ids], ...]}, of the new tokens, or {"error": "..."}.
"""

import json
import sys
from pathlib import Path

import torch
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM  # noqa: TID251 (in an environment of its own)


def told(folder: Path, new: int) -> dict:
    pair = json.loads((folder / "config.json").read_text())["is_encoder_decoder"]
    model = (ORTModelForSeq2SeqLM if pair else ORTModelForCausalLM).from_pretrained(folder, subfolder="onnx")
    prompts = json.loads((folder / "prompts.json").read_text())
    skip = 1 if pair else len(prompts[0])

    def answers(rows: list[list[int]]) -> list[list[int]]:
        given = torch.tensor(rows)
        settings = {"max_new_tokens": new, "do_sample": False, "num_beams": 1}
        found = model.generate(input_ids=given, attention_mask=torch.ones_like(given), **settings)
        return [row[skip:] for row in found.tolist()]

    return {"rows": [answers([prompt])[0] for prompt in prompts], "batch": answers(prompts)}


def main() -> None:
    for line in sys.stdin:
        try:
            answer = told(Path(line.strip()), int(sys.argv[1]))
        except Exception as error:  # whatever a loader raises is what is asked for
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


main()
