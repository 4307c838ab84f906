#!/usr/bin/env bash
# @huggingface/tokenizers 0.2.0 (what transformers.js 4.3 takes): the pre-tokenizer "Digits" parts 0 to 9 from other characters and no
# other number. The library of the same name in Rust, which trains tokenizers, parts every number of Unicode: "½", "Ⅻ", "٣".
#
# Who meets it: everybody who runs a model in JavaScript whose tokenizer has that step (SmolLM2, StarCoder2): a text with such a
# character has other tokens than the model was trained with, without an error. As a Split at \p{N} the step is right in both.
#
# Output seen on 2026-11-29 (node 20.20.2, Python 3.11.7, tokenizers 0.23.2):
#   python: a | ½ | b | 1 | 2
#   javascript: a½b | 1 | 2
# Exits 0 where it still is so, 1 where it has changed. Needs node and npm.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet tokenizers==0.23.2
npm install --ignore-scripts --no-audit --no-fund --silent --prefix "$place" @huggingface/tokenizers@0.2.0
cd "$place"
python=$(venv/bin/python - <<'PY'
from tokenizers.pre_tokenizers import Digits

print("python:", " | ".join(part for part, _ in Digits(individual_digits=True).pre_tokenize_str("a½b12")))
PY
)
cat > look.mjs <<'JS'
import { DigitsPreTokenizer } from "@huggingface/tokenizers";

console.log("javascript:", new DigitsPreTokenizer({ individual_digits: true }).pre_tokenize_text("a½b12").join(" | "));
JS
javascript=$(node look.mjs)
echo "$python"; echo "$javascript"
[ "$python" = "python: a | ½ | b | 1 | 2" ] && [ "$javascript" = "javascript: a½b | 1 | 2" ]
