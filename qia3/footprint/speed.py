"""What a token and a prompt take, from what a graph asks and what a device was measured or published to do.

    a token    4-bit bytes / bandwidth + float32 bytes / their bandwidth + nodes x seconds a node
    a prompt   operations / operations a second + outputs x seconds an output + nodes x seconds a node

Bytes are those that the kernels read (kernels.py), a node is an operator that runs, an output is one number that a product
writes: what surrounds products (norms, activations, vectors, attention over a short text) is work on those. A small model
has many nodes and outputs for its bytes and operations, a large one few. A term that a device has no figure for is left
out, but for floats, which then are read as 4-bit weights are.
"""

from __future__ import annotations

from qia3.footprint.device import Device
from qia3.footprint.kernels import KernelBytes


def token_seconds(kernel: KernelBytes, nodes: int, bandwidth: float, node_seconds: float, device: Device) -> float:
    """`bandwidth` of 4-bit weights."""
    floats = device.float_bandwidth_bytes_per_second
    packed = (kernel.streamed_bytes - kernel.float_bytes) / bandwidth
    return packed + kernel.float_bytes / (floats.value if floats else bandwidth) + nodes * node_seconds


def prompt_seconds(operations: int, outputs: int, nodes: int, device: Device) -> float | None:
    """None where the device was not calibrated."""
    rate, node, output = device.product_operations_per_second, device.node_seconds, device.output_seconds
    if rate is None or node is None:
        return None
    return operations / rate.value + outputs * (output.value if output else 0) + nodes * node.value
