"""Loads a bundle, generates, ranks choices, switches adapters. Needs numpy, onnxruntime and tokenizers; no torch."""
