"""Run by a Python that has optimum-onnx (tests/test_interop.py): opens a bundle as its users would, with no file names, and
generates greedily. Prints the new tokens of each prompt alone, and of all of them as one batch padded on the right.

    python optimum_loads.py FOLDER NEW PROMPTS-AS-JSON TEXTS-AS-JSON

and the ids that its own AutoTokenizer gives texts.
"""

import json
import sys
from importlib.metadata import version

import torch
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM  # noqa: TID251 (in an environment of its own)
from transformers import AutoConfig, AutoTokenizer


def main() -> None:
    folder, new, prompts = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    pair = AutoConfig.from_pretrained(folder).is_encoder_decoder
    model = (ORTModelForSeq2SeqLM if pair else ORTModelForCausalLM).from_pretrained(folder, subfolder="onnx")

    def answers(rows: list[list[int]]) -> list[list[int]]:
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        settings = {"max_new_tokens": new, "do_sample": False, "num_beams": 1}
        found = model.generate(input_ids=ids, attention_mask=mask, **settings).tolist()
        return [row[1 if pair else longest :] for row in found]

    told = {
        "class": type(model).__name__,
        "versions": {n: version(n) for n in ("optimum-onnx", "transformers", "onnxruntime")},
    }
    told["rows"] = [answers([prompt])[0] for prompt in prompts]
    told["batch"] = answers(prompts)
    told["ids"] = AutoTokenizer.from_pretrained(folder)(json.loads(sys.argv[4]), add_special_tokens=False)["input_ids"]
    print(json.dumps(told))


main()
