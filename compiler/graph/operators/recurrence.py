"""``llmc::Recurrence``: a layer that keeps a state, as one node: its one-token step, run over the tokens of a chunk.

    inputs   sequences [batch, …, seq, …]; states [batch, …]; valid [batch, seq] bool; the layer's weights
    for each token t, for each row:
        results[t], new = step(sequences[t], states)
        states          = new where valid[t], else states
    outputs  results [batch, …, seq, …]; states [batch, …]

State-space, linear-attention and short-convolution layers are all this operator; what differs is the step, which the
body holds as the model computes it when it decodes. Prefill, a chunk that continues, and decode are one definition,
and rows of padding leave the state as it was. Each kind of layer in a model is an *overload* of the function.

The body scans only what needs a state; what a step does to its token alone (projections, gates) runs before and after
the scan, over all tokens at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.graph.operators.domain import DOMAIN, Body
from llmc.compiler.graph.operators.token_wise import AXIS, Partition, partition

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


def function(overload: str, step: ir.Graph, signature: Signature) -> ir.Function:
    """The body of one kind of layer.

    Args:
        overload: Its name.
        step: Inputs: the sequences at one token (1 along the axis of tokens), the states, the weights; outputs: the
            results at one token, then the states. Initializers are constants. It is consumed.
        signature: Inputs and outputs of the call.
    """
    sequences = [f"sequence_{i}" for i in range(len(signature.sequences))]
    states = [f"state_{i}" for i in range(signature.states)]
    weights = [f"weight_{i}" for i in range(signature.weights)]
    body = Body([*sequences, *states, "valid", *weights])
    parts = _divide(step, signature)
    for value in list(step.initializers.values()):
        assert value.const_value is not None
        value.replace_all_uses_with(body.op("Constant", value=value.const_value))
    step.initializers.clear()
    nodes, outputs, count = list(step), list(step.outputs), len(signature.results)
    results, news = outputs[:count], outputs[count:]
    step.outputs.clear()
    for given, name in zip(step.inputs, [*sequences, *states, *weights], strict=True):
        if name in sequences:
            _replace_uses(given, body[name], {node for node, _ in given.uses()} - {*parts.core})
        elif name in weights:
            given.replace_all_uses_with(body[name])
    for node in nodes:
        step.remove(node)
    for node in (*parts.before, *parts.after):
        for output in node.outputs:
            # No longer one token along the axis, but all of a chunk.
            output.shape = None
    for node in (*parts.static, *parts.before):
        body.add(node)
    scan, stacked = _scan(body, step, signature, parts, results, news)
    for node in (scan, *parts.after):
        body.add(node)
    named = {f"result_{i}": stacked.get(value, value) for i, value in enumerate(results)}
    named |= {f"present_{i}": value for i, value in enumerate(scan.outputs[: signature.states])}
    return body.function(NAME, overload, named, [])


def _divide(step: ir.Graph, signature: Signature) -> Partition:
    """What of the step runs outside the scan; only along axis 1, where most layers have their tokens."""
    inputs, outputs = list(step.inputs), list(step.outputs)
    weights = inputs[len(signature.sequences) + signature.states :]
    sequences = [value for value, axis in zip(inputs, signature.sequences, strict=False) if axis == AXIS]
    results = [value for value, axis in zip(outputs, signature.results, strict=False) if axis == AXIS]
    return partition(list(step), sequences, weights, outputs[len(signature.results) :], results)


def _replace_uses(value: ir.Value, new: ir.Value, nodes: set[ir.Node]) -> None:
    """Let these nodes use ``new``."""
    for node, index in list(value.uses()):
        if node in nodes:
            node.replace_input_with(index, new)


def _scan(
    body: Body,
    step: ir.Graph,
    signature: Signature,
    parts: Partition,
    results: list[ir.Value],
    news: list[ir.Value],
) -> tuple[ir.Node, dict[ir.Value, ir.Value]]:
    """The core as the graph of a Scan over the tokens; and for each value of it that is used outside its sequence."""
    given = list(step.inputs)
    count = len(signature.sequences)
    sequences = [(given[i], body[f"sequence_{i}"], axis) for i, axis in enumerate(signature.sequences)]
    made_before = {output for node in parts.before for output in node.outputs}
    core = set(parts.core)
    # What is made before and used inside goes in as one more sequence.
    crossing = [v for v in made_before if any(node in core for node, _ in v.uses())]
    sequences += [(value, value, AXIS) for value in sorted(crossing, key=lambda v: str(v.name))]
    sequences = [item for item in sequences if any(node in core for node, _ in item[0].uses())]
    old = [f"state_in_{i}" for i in range(signature.states)]
    token = [f"token_{i}" for i in range(len(sequences))]
    inner = Body([*old, *token, "token_valid"])
    for (value, _, axis), name in zip(sequences, token, strict=True):
        one = inner.op("Unsqueeze", inner[name], inner.op("Constant", value_ints=[axis]))
        one.type, one.shape = value.type, value.shape
        _replace_uses(value, one, core)
    for value, name in zip(given[count : count + signature.states], old, strict=True):
        inner[name].type, inner[name].shape = value.type, value.shape
        value.replace_all_uses_with(inner[name])
    for node in parts.core:
        inner.add(node)
    outputs = {}
    for index, name in enumerate(old):
        rank = len(news[index].shape) if news[index].shape is not None else 0  # type: ignore[arg-type]
        shape = inner.op("Constant", value_ints=[-1] + [1] * (rank - 1))
        mask = inner.op("Reshape", inner["token_valid"], shape)
        outputs[f"state_out_{index}"] = inner.op("Where", mask, news[index], inner[name])
    axes = dict(zip(results, signature.results, strict=True))
    inside = {output for node in parts.core for output in node.outputs} | set(inner.inputs.values())
    used = [v for node in parts.after for v in node.inputs if v is not None and v in inside]
    leaving = list(dict.fromkeys([*(value for value in results if value in inside), *used]))
    for index, value in enumerate(leaving):
        where = inner.op("Constant", value_ints=[axes.get(value, AXIS)])
        outputs[f"token_result_{index}"] = inner.op("Squeeze", value, where)
    scan = ir.node(
        "Scan",
        [
            *(body[f"state_{i}"] for i in range(signature.states)),
            *(outer for _, outer, _ in sequences),
            body["valid"],
        ],
        {
            "body": inner.subgraph("token", outputs),
            "num_scan_inputs": len(sequences) + 1,
            "scan_input_axes": [*(axis for _, _, axis in sequences), 1],
            "scan_output_axes": [axes.get(value, AXIS) for value in leaving],
        },
        num_outputs=signature.states + len(leaving),
    )
    stacked = dict(zip(leaving, scan.outputs[signature.states :], strict=True))
    for value, sequence in stacked.items():
        _replace_uses(value, sequence, set(parts.after))
    return scan, stacked
