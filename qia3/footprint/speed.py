"""How long a token and a prompt take, from what a graph needs and what a device was measured or published to do.

    a token    4-bit bytes / bandwidth + float32 bytes / their bandwidth + nodes x seconds per node
    a prompt   operations / operations per second + outputs x seconds per output + nodes x seconds per node

Bytes are those that the kernels read (kernels.py), a node is an operator that runs, an output is one number that a
product computes: everything around products (norms, activations, vectors, attention over a short text) works on those.
A small model has many nodes and outputs for its bytes and operations, a large one few. A term without a figure for the
device is left out, except for floats, which are then assumed to be read like 4-bit weights.
"""

from __future__ import annotations

from qia3.footprint.device import Device
from qia3.footprint.kernels import KernelBytes


def token_seconds(kernel: KernelBytes, nodes: int, bandwidth: float, node_seconds: float, device: Device) -> float:
    """Seconds per token; `bandwidth` is that of 4-bit weights."""
    floats = device.float_bandwidth_bytes_per_second
    packed = (kernel.streamed_bytes - kernel.float_bytes) / bandwidth
    return packed + kernel.float_bytes / (floats.value if floats else bandwidth) + nodes * node_seconds


def prompt_seconds(operations: int, outputs: int, nodes: int, device: Device) -> float | None:
    """Seconds for a prompt; None if the device was not calibrated."""
    rate, node, output = device.product_operations_per_second, device.node_seconds, device.output_seconds
    if rate is None or node is None:
        return None
    return operations / rate.value + outputs * (output.value if output else 0) + nodes * node.value
