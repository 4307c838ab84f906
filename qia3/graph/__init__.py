"""torch modules -> ONNX graph: export leaves, the decoder wrapper, passes, the bundle on disk, parity."""
