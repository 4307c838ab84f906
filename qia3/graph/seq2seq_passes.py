"""Edits of an encoder-decoder's graphs after the export, for what torch's shapes cannot express.

    OneBatch     the number of rows is taken from input_ids
    StatesRows   keys and values of the states have as many rows as the states
    NewStates    encoder_hidden_states -> encoder_hidden_states[:, past_encoder_sequence_length:]
    AnyHeads     past_key_values.* [.., size] -> Reshape to the real size
    Length       past_length gets the default -1
    OwnShapes    the traced shapes of intermediate values are dropped: ONNX Runtime infers its own

The model was traced with the new states as an input with its own length, since torch.export adds assertions about a
length that is a difference.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience
from onnx_ir.passes import InPlacePass, PassResult

from qia3.bundle.ports import CROSS, ENCODER_STATES, INPUT_IDS, PAST, PAST_LENGTH, PRESENT
from qia3.graph.fusions import producer
from qia3.graph.packing import constant, heads_apart

SIZE_AXIS = "any_head_size"


class NewStates(InPlacePass):  # type: ignore[misc]
    """Cuts off the states whose keys and values are already in the past, before the rest are computed."""

    def call(self, model: ir.Model) -> PassResult:
        states = next(v for v in model.graph.inputs if v.name == ENCODER_STATES)
        past = next(v for v in model.graph.inputs if str(v.name).startswith(PAST) and f".{CROSS}." in str(v.name))
        known = ir.node("Shape", [past], {"start": 2, "end": 3})
        cut = ir.node("Slice", [states, known.outputs[0], *(constant(model, *c) for c in (LAST, ROWS))])
        cut.outputs[0].name, cut.outputs[0].type = "new_encoder_states", states.type
        convenience.replace_all_uses_with(states, cut.outputs[0])
        cut.replace_input_with(0, states)
        model.graph.insert_before(next(iter(model.graph)), [known, cut])
        return PassResult(model, modified=True)


class OneBatch(InPlacePass):  # type: ignore[misc]
    """Takes the number of rows from the token ids only.

    torch takes it from any input that has as many rows. A runtime whose rows have the same prompt passes the keys and
    values of its states once, and products of one row with many broadcast.
    """

    def call(self, model: ir.Model) -> PassResult:
        ids = next(v for v in model.graph.inputs if v.name == INPUT_IDS)
        asked = [node for node in model.graph if node.op_type == "Shape" and _of_rows(node, ids)]
        for node in asked:
            node.replace_input_with(0, ids)
        return PassResult(model, modified=bool(asked))


class StatesRows(InPlacePass):  # type: ignore[misc]
    """Gives keys and values of the states as many rows as the states have.

    Some models take the number from the decoder's tokens (UMT5, T5Gemma), which may have more rows, and so do all of
    them after OneBatch if the trace could not distinguish the two.
    """

    def call(self, model: ir.Model) -> PassResult:
        made = [v for v in model.graph.outputs if str(v.name).startswith(PRESENT) and f".{CROSS}." in str(v.name)]
        for value in made:
            turned = producer(value, "Transpose")
            reshaped = None if turned is None else producer(turned.inputs[0], "Reshape")
            assert reshaped is not None
            assert value.shape is not None
            reshaped.replace_input_with(1, heads_apart(model, int(value.shape[1]), int(value.shape[3])))
            reshaped.attributes.pop("allowzero", None)  # a 0 then keeps the dimension
        return PassResult(model, modified=bool(made))


def _of_rows(node: ir.Node, ids: ir.Value) -> bool:
    """Whether a Shape node gives the number of rows of something other than the token ids."""
    value, span = node.inputs[0], {name: attribute.value for name, attribute in node.attributes.items()}
    if value is None or value is ids or value.shape is None or span != {"start": 0, "end": 1}:
        return False
    return ids.shape is not None and bool(value.shape[0] == ids.shape[0])


LAST = ("end_of_states", np.array([2**62], np.int64))
ROWS = ("axis_of_states", np.array([1], np.int64))


class AnyHeads(InPlacePass):  # type: ignore[misc]
    """Accepts an empty past with any head size.

    optimum-onnx passes one of hidden_size // num_attention_heads at the first step, which in small T5s is not the head
    size (512 // 6 and 64). The reshaped past uses the same memory, so the cache is still written in place (measured on
    ONNX Runtime 1.32).
    """

    def call(self, model: ir.Model) -> PassResult:
        for value in [v for v in model.graph.inputs if str(v.name).startswith(PAST)]:
            assert value.shape is not None
            size = int(value.shape[3])
            node = ir.node(
                "Reshape", [value, constant(model, f"heads_of_{size}", np.array([0, 0, -1, size], np.int64))]
            )
            node.outputs[0].name, node.outputs[0].type = f"{value.name}_whole", value.type
            node.outputs[0].shape = ir.Shape(list(value.shape))
            convenience.replace_all_uses_with(value, node.outputs[0])
            node.replace_input_with(0, value)
            value.shape = ir.Shape([*list(value.shape)[:3], SIZE_AXIS])
            model.graph.insert_before(next(iter(model.graph)), node)
        return PassResult(model, modified=True)


class Length(InPlacePass):  # type: ignore[misc]
    """Gives past_length its default: a loader that does not feed it has as many positions as its past."""

    def call(self, model: ir.Model) -> PassResult:
        value = next(v for v in model.graph.inputs if v.name == PAST_LENGTH)
        value.const_value = ir.tensor(np.array(-1, np.int64), name=PAST_LENGTH)
        model.graph.initializers.add(value)
        return PassResult(model, modified=True)


class OwnShapes(InPlacePass):  # type: ignore[misc]
    """Traced shapes say that token rows and key rows are the same, and that a buffer is full; but a caller may have one
    row of keys for several token rows, and spare room in the buffer.
    """

    def call(self, model: ir.Model) -> PassResult:
        for value in (v for node in model.graph for v in node.outputs if not v.is_graph_output()):
            value.shape = None
        return PassResult(model, modified=True)
