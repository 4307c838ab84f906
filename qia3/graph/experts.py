"""A mixture of experts (base/experts.py) as ONNX Runtime's QMoE, which has a kernel for CPUs: exact at accuracy_level 0.

The model's own router chooses and weighs the experts. The operator selects the best k from one table [T, E] and takes
their weights from another, so the router's choice is passed as a table of zeros and ones: whatever a router does
(softmax before or after, groups, biases for the choice only), its result is used.

    com.microsoft::QMoE(x, chosen, codes, scales, , codes, scales, , , , , zero points, zero points, , weights)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from qia3.base.experts import GridExperts
from qia3.base.weights import Int4Weight
from qia3.graph.leaves import Attributes


class Codes(nn.Module):
    """One weight's tensors, with a leading dimension for the experts: codes uint8 [E, N, K/2], scales float32 [E, N,
    B].
    """

    def __init__(self, store: Int4Weight, experts: int) -> None:
        super().__init__()
        self.codes = nn.Buffer(store.codes.view(experts, store.outputs // experts, -1))
        self.scales = nn.Buffer(store.scales.view(experts, store.outputs // experts, -1))
        zeros = store.zero_points
        self.zero_points = None if zeros is None else nn.Buffer(zeros.view(experts, store.outputs // experts, -1))


class QMoE(nn.Module):
    """forward(hidden [T, H], top_k_index [T, k], top_k_weights [T, k]) -> [T, H]."""

    def __init__(self, experts: GridExperts, accuracy_level: int) -> None:
        super().__init__()
        up, down = experts.gate_up_proj.store, experts.down_proj.store
        assert isinstance(up, Int4Weight)
        assert isinstance(down, Int4Weight)
        self.gate_up_proj, self.down_proj = Codes(up, experts.count), Codes(down, experts.count)
        self.count = experts.count
        self.attributes: Attributes = {
            "activation_type": "swiglu",
            "swiglu_fusion": 1,
            "activation_alpha": 1.0,
            "activation_beta": 0.0,
            "block_size": up.block_size,
            "expert_weight_bits": up.bits,
            "weights_prepacked": 0,
            "normalize_routing_weights": 0,
            "accuracy_level": accuracy_level,
        }

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        table = torch.zeros(hidden_states.shape[0], self.count)
        chosen = table.scatter(1, top_k_index, torch.ones_like(top_k_weights))
        weights = table.scatter(1, top_k_index, top_k_weights.to(table.dtype))
        up, down = self.gate_up_proj, self.down_proj
        out: Tensor = symbolic(
            "com.microsoft::QMoE",
            [
                *(hidden_states, chosen, up.codes, up.scales, None, down.codes, down.scales),
                *(None, None, None, None, up.zero_points, down.zero_points, None, weights),
            ],
            self.attributes | {"k": top_k_index.shape[1]},
            dtype=hidden_states.dtype,
            shape=hidden_states.shape,
            version=1,
        )
        return out
