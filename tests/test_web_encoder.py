"""An encoder in qia3.mjs: labels of texts and words by an adapter's head, and embeddings, as the Python runtime gives them
(make browser).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from places import whole
from test_build_encoder import TEXTS, write_encoder_build
from test_web import browser, in_chromium, in_node, in_python, node

from qia3 import cli
from qia3.bundle.opened import Bundle
from qia3.runtime.load import open_engine
from qia3.runtime.tags import tag_texts
from qia3.runtime.texts import classify_texts, embed_texts

TAGGED = [*TEXTS, "lock [SEP] it", ["turn", "the", "music", "off"]]
ASKED = [
    [call, text, name] for text in TEXTS for call, name in (("scores", "topics"), ("label", "door"), ("embed", "none"))
]
REFUSED = [
    ["generate", "x", "topics"],
    ["label", "x", "none"],
    ["label", "x", "things"],
    ["tags", "x", "door"],
    ["tags", " ", "things"],
    ["label", "x", "door", {"choices": ["a"]}],
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    place = write_encoder_build(tmp_path_factory.mktemp("encoder"))
    file = place / "qia3.toml"
    file.write_text(file.read_text().replace("ort-exact", "browser") + "min_top1 = 0\nmax_kl = 9\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(file), "--output", str(place / "out")])
    assert not ended.value.code
    return place / "out"


@node
@whole
@pytest.mark.parametrize("place", ["node", pytest.param("chromium", marks=browser)])
def test_labels_and_embeddings_are_the_runtime_s(bundle, place):
    tags = [["tags", text, "things"] for text in TAGGED]
    options = {"device": "wasm", "worker": True}
    if place == "node":
        (found,) = in_node([["ask", str(bundle), {}, [*ASKED, *tags, *REFUSED]]])
    else:
        (found,) = in_chromium({"encoder": bundle}, [["ask", "encoder", options, [*ASKED, *tags, *REFUSED]]])["results"]
    engine = open_engine(Bundle.open(bundle), 1)
    answers = iter(found["answers"])
    for text in TEXTS:
        topics, door, vector = next(answers), next(answers), next(answers)
        (right,), (is_door,) = (classify_texts(engine, [text], name) for name in ("topics", "door"))
        # native products round activations at this target's level, a page's do not
        assert topics == pytest.approx(right.scores, abs=0.02)
        assert (max(topics, key=topics.get), door) == (right.label, is_door.label)
        (embedding,) = embed_texts(engine, [text])
        assert np.dot(vector, embedding) / np.linalg.norm(vector) / np.linalg.norm(embedding) > 0.999
    for text, right in zip(TAGGED, tag_texts(engine, TAGGED, "things"), strict=True):
        assert next(answers) == [list(pair) for pair in zip(right.words, right.labels, strict=True)], text
    for answer, question in zip(answers, REFUSED, strict=True):
        said = in_python(bundle, question).replace("qia3.runtime.tags", "tags").replace("--embed", "embed")
        theirs, ours = (re.sub(r"(file|http)://\S+", "PLACE", line) for line in (answer["error"], said))
        assert theirs == ours.replace("run: --choice A --choice B", "choices"), question
