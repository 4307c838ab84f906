"""torch modules -> ONNX graph: export leaves, the decoder wrapper, graph passes, files on disk, parity."""
