"""Where a bundle's graphs lie: names that stock loaders look for.

    onnx/model_q4.onnx                       transformers.js: the folder onnx/, the session "model", the suffix of dtype "q4"
    onnx/model_q4.onnx_data                  transformers.js: the graph's own name and "_data"

    onnx/encoder_model_q4.onnx               an encoder-decoder's two: transformers.js's session names, and what
    onnx/decoder_model_merged_q4.onnx        optimum-onnx's patterns find
    onnx/decoder_model_merged_q4.onnx_data   the one data file of both

    onnx/train_q4.onnx                       a decoder's graph that learns, over its data file; loaders do not look for it

transformers.js in Node reads data files beside the graph by itself, so one file for two graphs is no matter there. In a
browser it hands a session the files of the graph's own name alone, and a caller names this one for the encoder:

    session_options: { externalData: [{ path: "decoder_model_merged_q4.onnx_data",
                                        data: "onnx/decoder_model_merged_q4.onnx_data" }] }

optimum-onnx is given no file names, only subfolder="onnx": named ones make it look for a third graph.

onnxruntime-genai reads the graph's place from genai_config.json and takes any, so one layout serves both. A reader does
not know these names: it asks the manifest. tests/layout_rules.toml has the loaders' rules, each with the file it was
read in.
"""

from __future__ import annotations

from pathlib import PurePosixPath as Path
from typing import Any

DTYPE = "q4"  # transformers.js's word for 4-bit weights and float32 activations
GRAPH = f"onnx/model_{DTYPE}.onnx"
DATA = f"{GRAPH}_data"
ENCODER_GRAPH = f"onnx/encoder_model_{DTYPE}.onnx"
DECODER_GRAPH = f"onnx/decoder_model_merged_{DTYPE}.onnx"
TRAIN_GRAPH = f"onnx/train_{DTYPE}.onnx"
SHARED_DATA = f"{DECODER_GRAPH}_data"
FORMAT_1 = ("model.onnx", "model.onnx.data")
MANIFEST = "manifest.json"
WRITTEN_ANEW = (
    "report.md",
    "report.json",
    "report.html",
    MANIFEST,
)  # by whoever changes a bundle: they speak of all other files


def transformers_js_config(encoder_decoder: bool = False) -> dict[str, Any]:
    """The block of config.json that spares a caller of transformers.js the options dtype and use_external_data_format."""
    session = Path(DECODER_GRAPH).name.removesuffix(f"_{DTYPE}.onnx")
    return {"dtype": DTYPE, "use_external_data_format": {session: True} if encoder_decoder else True}
