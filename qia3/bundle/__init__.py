"""What a device gets: the bundle and everything in it. Needs numpy and ONNX Runtime, no torch."""
