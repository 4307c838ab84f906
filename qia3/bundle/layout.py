"""Where a bundle's graphs are stored: under the names that stock loaders look for.

    onnx/model_q4.onnx                       transformers.js: the folder onnx/, the session "model", the suffix of dtype "q4"
    onnx/model_q4.onnx_data                  transformers.js: the graph's own name and "_data"

    onnx/encoder_model_q4.onnx               the two of an encoder-decoder: transformers.js's session names, and what
    onnx/decoder_model_merged_q4.onnx        optimum-onnx's patterns find
    onnx/decoder_model_merged_q4.onnx_data   the one data file of both

    onnx/model_int8.onnx                     in place of them where the target has int8 products throughout: dtype "int8"

    onnx/train_q4.onnx                       a decoder's training graph, over the same data file; loaders ignore it
    onnx/prompt_q8.onnx                      a decoder for prompts, with int8 products; loaders ignore it
    onnx/prompt_q8.onnx_data                 its int8 weights; all other weights are those of the decoder's data file

transformers.js in Node reads data files beside the graph by itself, so one data file for two graphs works. In a browser
it hands a session only the data file with the graph's own name, so a caller must name this one for the encoder:

    session_options: { externalData: [{ path: "decoder_model_merged_q4.onnx_data",
                                        data: "onnx/decoder_model_merged_q4.onnx_data" }] }

optimum-onnx is given only subfolder="onnx", no file names: with file names it looks for a third graph.

onnxruntime-genai reads the graph's path from genai_config.json and takes any, so one layout serves both. A reader of
bundles does not rely on these names: it asks the manifest. tests/layout_rules.toml lists the loaders' rules, each with
the file that it was read in.
"""

from __future__ import annotations

from pathlib import PurePosixPath as Path
from typing import Any

DTYPE, INT8_DTYPE = "q4", "int8"  # transformers.js's names for 4-bit weights with float32 activations, and for int8
GRAPH = f"onnx/model_{DTYPE}.onnx"
DATA = f"{GRAPH}_data"
ENCODER_GRAPH = f"onnx/encoder_model_{DTYPE}.onnx"
DECODER_GRAPH = f"onnx/decoder_model_merged_{DTYPE}.onnx"
TRAIN_GRAPH = f"onnx/train_{DTYPE}.onnx"
PROMPT_GRAPH = "onnx/prompt_q8.onnx"
PROMPT_DATA = f"{PROMPT_GRAPH}_data"
SHARED_DATA = f"{DECODER_GRAPH}_data"
FORMAT_1 = ("model.onnx", "model.onnx.data")
MANIFEST = "manifest.json"
WRITTEN_ANEW = (
    "report.md",
    "report.json",
    "report.html",
    MANIFEST,
)  # by every change of a bundle, since they describe all other files


def int8_name(file: str) -> str:
    """The name that a graph or a data file has with int8 products throughout."""
    return file.replace(f"_{DTYPE}.onnx", f"_{INT8_DTYPE}.onnx")


def transformers_js_config(encoder_decoder: bool = False, dtype: str = DTYPE) -> dict[str, Any]:
    """The block of config.json that sets dtype and use_external_data_format for callers of transformers.js."""
    session = Path(DECODER_GRAPH).name.removesuffix(f"_{DTYPE}.onnx")
    return {"dtype": dtype, "use_external_data_format": {session: True} if encoder_decoder else True}
