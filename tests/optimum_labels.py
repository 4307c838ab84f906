"""Run by a Python that has optimum-onnx (tests/test_interop.py): opens an encoder's bundle as its users would, with no file
names, by the class that config.json names, and reads texts alone and as one batch.

    python optimum_labels.py FOLDER TEXT...
"""

import json
import sys
from importlib.metadata import version

from optimum import onnxruntime  # noqa: TID251 (in an environment of its own)
from transformers import AutoConfig, PreTrainedTokenizerFast

CLASSES = {"SequenceClassification": "logits", "TokenClassification": "logits", "Model": "last_hidden_state"}


def main() -> None:
    folder, texts = sys.argv[1], sys.argv[2:]
    named = AutoConfig.from_pretrained(folder).architectures[0]
    kind, output = next((k, o) for k, o in CLASSES.items() if named.endswith(k))
    made = getattr(onnxruntime, "ORTModelFor" + {"Model": "FeatureExtraction"}.get(kind, kind))
    model, tokenizer = made.from_pretrained(folder, subfolder="onnx"), PreTrainedTokenizerFast.from_pretrained(folder)

    def read(given: list[str]) -> list:
        return getattr(model(**tokenizer(given, padding=True, return_tensors="pt")), output).tolist()

    told = {
        "class": type(model).__name__,
        "versions": {n: version(n) for n in ("optimum-onnx", "transformers", "onnxruntime")},
        "labels": model.config.id2label,
        "ids": [tokenizer(text)["input_ids"] for text in texts],
        "rows": [read([text])[0] for text in texts],
        "batch": read(texts),
    }
    print(json.dumps(told))


main()
