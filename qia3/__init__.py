"""QIA³: 4-bit language models adapted to many tasks with IA³ vectors, shipped to small devices on ONNX Runtime.

    model = qia3.open("dist/home-intents")          # qia3.Model: label, labels, scores, generate, tags, embed

This is the public surface, together with the errors in qia3.errors (all of them a QIA3Error) and the commands. Anything
else that can be imported may change in any version. Everything is loaded on first use.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qia3.errors import QIA3Error
    from qia3.runtime.model import Model
    from qia3.runtime.model import Model as open

__version__ = "0.1.0"
__all__ = ["Model", "QIA3Error", "__version__", "open"]

# ONNX Runtime 1.29 and later reports every session to its makers and stores an identifier of the device. What ships to
# devices stays quiet unless the user asks for it (ORT_DISABLE_TELEMETRY=0). This can only be set before ONNX Runtime is
# imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> object:
    if name in ("Model", "open"):
        from qia3.runtime.model import Model

        return Model
    if name == "QIA3Error":
        from qia3.errors import QIA3Error

        return QIA3Error
    raise AttributeError(f"module 'qia3' has no attribute {name!r}")
