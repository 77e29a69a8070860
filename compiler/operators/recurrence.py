"""``llmc::Recurrence``: a layer that keeps a state, as one node: its one-token step, run over the tokens of a chunk.

    inputs   sequences [batch, …, seq, …]; states [batch, …]; valid [batch, seq] bool; the layer's weights
    for each token t, for each row:
        results[t], new = step(sequences[t], states)
        states          = new where valid[t], else states
    outputs  results [batch, …, seq, …]; states [batch, …]

State-space, linear-attention and short-convolution layers are all this operator; what differs is the step, which the
body holds as the model computes it when it decodes. Prefill, a chunk that continues, and decode are one definition,
and rows of padding leave the state as it was. Each kind of layer in a model is an *overload* of the function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.operators.domain import DOMAIN, Body

NAME = "Recurrence"


@dataclass(frozen=True)
class Signature:
    """What a call takes and gives, in this order; the mask ``valid`` stands before the weights.

    Attributes:
        sequences: For each sequence that goes in, its axis of tokens.
        states: Number of states.
        weights: Number of weights.
        results: For each sequence that comes out, its axis of tokens.
    """

    sequences: tuple[int, ...]
    states: int
    weights: int
    results: tuple[int, ...]


def is_recurrence(node: ir.Node) -> bool:
    """Whether ``node`` is a call of this operator."""
    return node.domain == DOMAIN and node.op_type == NAME


def function(overload: str, step: ir.Graph, signature: Signature, weights: Mapping[str, int]) -> ir.Function:
    """The body of one kind of layer.

    Args:
        overload: Its name.
        step: Inputs: the sequences at one token (1 along the axis of tokens), then the states; outputs: the results at
            one token, then the states. It is consumed.
        signature: Inputs and outputs of the call.
        weights: Initializer of ``step`` -> which weight of the call it is; the others are constants of the body.
    """
    sequences = [f"sequence_{i}" for i in range(len(signature.sequences))]
    states = [f"state_{i}" for i in range(signature.states)]
    body = Body([*sequences, *states, "valid", *(f"weight_{i}" for i in range(signature.weights))])
    for name, value in list(step.initializers.items()):
        if name in weights:
            value.replace_all_uses_with(body[f"weight_{weights[name]}"])
        else:
            assert value.const_value is not None
            constant = body.op("Constant", value=value.const_value)
            value.replace_all_uses_with(constant)
        del step.initializers[name]
    scan = ir.node(
        "Scan",
        [*(body[name] for name in (*states, *sequences)), body["valid"]],
        {
            "body": _token(step, signature),
            "num_scan_inputs": len(sequences) + 1,
            "scan_input_axes": [*signature.sequences, 1],
            "scan_output_axes": list(signature.results),
        },
        num_outputs=signature.states + len(signature.results),
    )
    body.add(scan)
    outputs = {f"result_{i}": value for i, value in enumerate(scan.outputs[signature.states :])}
    outputs.update({f"present_{i}": value for i, value in enumerate(scan.outputs[: signature.states])})
    return body.function(NAME, overload, outputs, [])


def _token(step: ir.Graph, signature: Signature) -> ir.Graph:
    """The graph that Scan runs: one token of every row."""
    old = [f"state_in_{i}" for i in range(signature.states)]
    token = [f"token_{i}" for i in range(len(signature.sequences))]
    body = Body([*old, *token, "token_valid"])
    given = list(step.inputs)
    for index, name in enumerate([*token, *old]):
        value = body[name]
        if name in token:
            value = body.op("Unsqueeze", value, body.op("Constant", value_ints=[signature.sequences[index]]))
        value.type, value.shape = given[index].type, given[index].shape
        given[index].replace_all_uses_with(value)
    results = list(step.outputs)
    for node in list(step):
        step.remove(node)
        body.add(node)
    outputs = {}
    for index, name in enumerate(old):
        new = results[len(signature.results) + index]
        rank = len(new.shape) if new.shape is not None else 0
        shape = body.op("Constant", value_ints=[-1] + [1] * (rank - 1))
        mask = body.op("Reshape", body["token_valid"], shape)
        outputs[f"state_out_{index}"] = body.op("Where", mask, new, body[name])
    for index, axis in enumerate(signature.results):
        axes = body.op("Constant", value_ints=[axis])
        outputs[f"token_result_{index}"] = body.op("Squeeze", results[index], axes)
    return body.subgraph("token", outputs)
