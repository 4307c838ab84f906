"""QIA³: 4-bit language models adapted to many tasks with IA³ vectors, shipped to small devices on ONNX Runtime."""

import os

__version__ = "0.1.0"

# ONNX Runtime 1.29 and later report every session to their makers and keep an identifier of the device. What ships to
# devices stays quiet unless somebody asks for it (ORT_DISABLE_TELEMETRY=0); only before its import can it be told.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
