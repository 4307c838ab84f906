#!/usr/bin/env bash
# transformers 5.23.0 and 4.57.6: a fast tokenizer that transformers 5 saves cannot be opened by AutoTokenizer of transformers 4. The
# plain PreTrainedTokenizerFast is written down as tokenizer_class "TokenizersBackend", a name that 4.57 does not know, and it raises
# though tokenizer.json beside it has all that it needs: PreTrainedTokenizerFast.from_pretrained of the same folder gives the same ids.
#
# Who meets it: whoever trains with transformers 5 and ships to what is capped below it (optimum-onnx 0.1.0 wants below 4.58, CTranslate2's
# converter 4.57). The way out is to write "PreTrainedTokenizerFast" into tokenizer_config.json.
#
# Output seen on 2026-11-28:
#   5.23.0 writes tokenizer_class TokenizersBackend
#   4.57.6 AutoTokenizer: ValueError
#   4.57.6 PreTrainedTokenizerFast: [1, 2, 0]
#   4.57.6 AutoTokenizer with the name changed: [1, 2, 0]
# Exits 0 where it still is so, 1 where it has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
for version in 5.23.0 4.57.6; do
  python3 -m venv "$place/$version"
  "$place/$version/bin/pip" install --quiet "transformers==$version"
done
cd "$place"
"$place/5.23.0/bin/python" - 2>/dev/null <<'PY'
import json
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

made = Tokenizer(models.WordLevel({"[UNK]": 0, "dim": 1, "the": 2}, unk_token="[UNK]"))
made.pre_tokenizer = pre_tokenizers.Whitespace()
transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained("folder")
config = json.loads(Path("folder/tokenizer_config.json").read_text())
print(f"{transformers.__version__} writes tokenizer_class {config['tokenizer_class']}")
PY
"$place/4.57.6/bin/python" - 2>/dev/null <<'PY'
import json
import sys
from pathlib import Path

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast


def ids(kind):
    try:
        return str(kind.from_pretrained("folder")("dim the hall")["input_ids"])
    except ValueError as error:
        return type(error).__name__


seen = [ids(AutoTokenizer), ids(PreTrainedTokenizerFast)]
file = Path("folder/tokenizer_config.json")
config = json.loads(file.read_text())
named = config["tokenizer_class"]
file.write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}))
seen.append(ids(AutoTokenizer))
ways = ("AutoTokenizer", "PreTrainedTokenizerFast", "AutoTokenizer with the name changed")
for way, found in zip(ways, seen):
    print(f"{transformers.__version__} {way}: {found}")
sys.exit(named != "TokenizersBackend" or seen != ["ValueError", "[1, 2, 0]", "[1, 2, 0]"])
PY
