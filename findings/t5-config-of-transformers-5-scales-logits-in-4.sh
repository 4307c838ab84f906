#!/usr/bin/env bash
# transformers 5.23.0: a T5 with a head of its own (T5 v1.1, flan-t5: "tie_word_embeddings": false), loaded and saved again, says
# "tie_word_embeddings": true in its config.json, and keeps the truth in a new key, scale_decoder_outputs. transformers 4.57
# reads the old key: it ties the head to the embedding and scales by d_model ** -0.5. Logits are others, without a warning.
#
# Who meets it: anybody who saves a T5 with transformers 5 for a tool on transformers 4 (optimum-onnx needs < 4.58), and
# anybody who writes config.to_dict() beside an exported graph.
#
# Output seen on 2026-11-28: 4.2e-06 between transformers 5 and 4.57 on the file that 4.57 wrote, 14.07 between 4.57
# on the two files.
# Exits 0 where it still is so, 1 where it has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0
"$place/venv/bin/pip" install --quiet transformers==5.23.0 numpy==2.4.6
"$place/venv/bin/pip" install --quiet --no-deps --target "$place/four" transformers==4.57.3 huggingface_hub==0.36.0 tokenizers==0.22.1
"$place/venv/bin/pip" install --quiet --target "$place/more" requests
cat > "$place/make.py" <<'PYTHON'
import sys
import torch
from transformers import T5Config, T5ForConditionalGeneration

torch.manual_seed(0)
shape = dict(vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=2)
model = T5ForConditionalGeneration(T5Config(**shape, feed_forward_proj="gated-gelu", tie_word_embeddings=False))
model.lm_head.weight.data = torch.randn(50, 32)
model.save_pretrained(sys.argv[1])
PYTHON
cat > "$place/again.py" <<'PYTHON'
import sys
from transformers import T5ForConditionalGeneration

T5ForConditionalGeneration.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
PYTHON
cat > "$place/logits.py" <<'PYTHON'
import sys
import torch, transformers
from transformers import T5ForConditionalGeneration

model = T5ForConditionalGeneration.from_pretrained(sys.argv[1]).eval()
ids = torch.tensor([[3, 4, 5, 6]])
with torch.no_grad():
    logits = model(input_ids=ids, decoder_input_ids=ids).logits
torch.save(logits, sys.argv[2])
print(transformers.__version__, sys.argv[1].rsplit("/", 1)[1], [round(v, 3) for v in logits[0, -1, :3].tolist()])
PYTHON
five() { "$place/venv/bin/python" "$@"; }
four() { PYTHONPATH="$place/four:$place/more" "$place/venv/bin/python" "$@"; }
four "$place/make.py" "$place/first"
five "$place/again.py" "$place/first" "$place/again"
grep -o '"\(tie_word_embeddings\|scale_decoder_outputs\)": [a-z]*' "$place/first/config.json" "$place/again/config.json" | sed "s|$place/||"
four "$place/logits.py" "$place/first" "$place/four-first.pt"
five "$place/logits.py" "$place/first" "$place/five-first.pt"
five "$place/logits.py" "$place/again" "$place/five-again.pt"
four "$place/logits.py" "$place/again" "$place/four-again.pt"
five - "$place" <<'PYTHON'
import sys
import torch

truth, five_first, five_again, four_again = (torch.load(f"{sys.argv[1]}/{n}.pt") for n in ("four-first", "five-first", "five-again", "four-again"))
apart = [float((t - truth).abs().max()) for t in (five_first, five_again, four_again)]
print("apart from 4.57 on its own file: {:.1e} (5), {:.1e} (5, saved by 5), {:.2f} (4.57, saved by 5)".format(*apart))
sys.exit(0 if apart[0] < 1e-4 and apart[1] < 1e-4 and apart[2] > 0.5 else 1)
PYTHON
