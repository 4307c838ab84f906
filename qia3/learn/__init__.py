"""Training on a device: an adapter from a bundle and some examples, with ONNX Runtime and numpy alone."""
