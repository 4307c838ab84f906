"""QIA³: 4-bit language models adapted to many tasks with IA³ vectors, shipped to small devices on ONNX Runtime."""

__version__ = "0.1.0"
