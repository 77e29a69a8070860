"""``llmc::Recurrence``: a layer that keeps a state, as one node: its one-token step, run over the tokens of a chunk.

    inputs   sequences [batch, seq, …]; states [batch, …]; valid [batch, seq] bool; the layer's weights
    for each token t, for each row:
        y[t], new = step(sequences[t], states)
        states    = new where valid[t], else states
    outputs  y [batch, seq, …]; states [batch, …]

State-space, linear-attention and short-convolution layers are all this operator; what differs is the step, which the
body holds as the model computes it when it decodes. Prefill, a chunk that continues, and decode are one definition,
and rows of padding leave the state as it was. Each kind of layer in a model is an *overload* of the function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.operators.domain import DOMAIN, Body

NAME = "Recurrence"


@dataclass(frozen=True)
class Signature:
    """How many inputs of each kind a call has, in this order, the mask ``valid`` standing before the weights."""

    sequences: int
    states: int
    weights: int


def is_recurrence(node: ir.Node) -> bool:
    """Whether ``node`` is a call of this operator."""
    return node.domain == DOMAIN and node.op_type == NAME


def function(overload: str, step: ir.Graph, signature: Signature, weights: Mapping[str, int]) -> ir.Function:
    """The body of one kind of layer.

    Args:
        overload: Its name.
        step: Inputs: the sequences at one token, [batch, 1, …], then the states; outputs: y [batch, 1, …], states.
            It is consumed.
        signature: Inputs of the call.
        weights: Initializer of ``step`` -> which weight of the call it is; the others are constants of the body.
    """
    names = [f"sequence_{i}" for i in range(signature.sequences)]
    names += [f"state_{i}" for i in range(signature.states)]
    body = Body([*names, "valid", *(f"weight_{i}" for i in range(signature.weights))])
    for name, value in list(step.initializers.items()):
        if name in weights:
            value.replace_all_uses_with(body[f"weight_{weights[name]}"])
        else:
            assert value.const_value is not None
            constant = body.op("Constant", value=value.const_value)
            value.replace_all_uses_with(constant)
        del step.initializers[name]
    sequences = [body[name] for name in names[: signature.sequences]]
    states = [body[name] for name in names[signature.sequences :]]
    scan = ir.node(
        "Scan",
        [*states, *sequences, body["valid"]],
        {
            "body": _token(step, signature, states),
            "num_scan_inputs": signature.sequences + 1,
            "scan_input_axes": [1] * (signature.sequences + 1),
            "scan_output_axes": [1],
        },
        num_outputs=signature.states + 1,
    )
    body.add(scan)
    outputs = {"y": scan.outputs[-1]}
    outputs.update({f"present_{i}": value for i, value in enumerate(scan.outputs[:-1])})
    return body.function(NAME, overload, outputs, [])


def _token(step: ir.Graph, signature: Signature, states: Sequence[ir.Value]) -> ir.Graph:
    """The graph that Scan runs: one token of every row."""
    old = [f"state_in_{i}" for i in range(signature.states)]
    token = [f"token_{i}" for i in range(signature.sequences)]
    body = Body([*old, *token, "token_valid"])
    axis = body.op("Constant", value_ints=[1])
    for given, name in zip(step.inputs, [*token, *old], strict=True):
        value = body.op("Unsqueeze", body[name], axis) if name in token else body[name]
        value.type, value.shape = given.type, given.shape
        given.replace_all_uses_with(value)
    results = list(step.outputs)
    for node in list(step):
        step.remove(node)
        body.add(node)
    outputs = {}
    for index, name in enumerate(old):
        new = results[1 + index]
        rank = len(new.shape) if new.shape is not None else 0
        shape = body.op("Constant", value_ints=[-1] + [1] * (rank - 1))
        mask = body.op("Reshape", body["token_valid"], shape)
        outputs[f"state_out_{index}"] = body.op("Where", mask, new, body[name])
    outputs["token_y"] = body.op("Squeeze", results[0], axis)
    return body.subgraph("token", outputs)
