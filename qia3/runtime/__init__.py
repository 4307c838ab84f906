"""Load a bundle, generate, rank choices, switch adapters. numpy, onnxruntime and tokenizers only: no torch."""
