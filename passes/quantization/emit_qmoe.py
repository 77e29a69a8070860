"""Experts' weights in blocks of integers.

com.microsoft::MoE(x, probs, fc1, fc2)   →   QMoE(x, probs, packed, scales, packed, scales, zero points)
"""

from __future__ import annotations

from llmc.compiler.graph.operators.microsoft import MOE, QMOE
from llmc.compiler.quantization.scheme import Scheme
from llmc.passes.graph.graph_query import replace_node
from llmc.passes.graph_pass import NearMiss
from llmc.passes.quantization.emission import Emission
from llmc.passes.quantization.emit_matmul_nbits import packed_parts
from llmc.passes.quantization.sites import Site, require_blocks


def emit_qmoe(emission: Emission, site: Site, scheme: Scheme) -> None:
    """A layer's experts in ONNX Runtime's operator."""
    node, inputs = site.node, MOE.arguments(site.node)
    if not site.weights:
        raise NearMiss("they run as the operator's body, which computes with floats")
    for _, weight in site.weights:
        require_blocks(weight.stored_shape[2], scheme.block, "{} input features are")
    for matrix, (name, weight) in zip(("fc1", "fc2"), site.weights, strict=True):
        *heights, features = weight.stored_shape
        parts = packed_parts(emission, name, weight, scheme, (*heights, features * scheme.bits // 8))
        inputs[f"{matrix}_experts_weights"] = parts["packed"]
        inputs |= {f"{matrix}_{part}": parts.get(part) for part in ("scales", "zero_points")}
    numbers = {"expert_weight_bits": scheme.bits, "block_size": scheme.block}
    numbers |= {"accuracy_level": emission.accuracy_level, "weights_prepacked": 0}
    new = QMOE.make(inputs, {**node.attributes, **numbers}, name=node.name)
    replace_node(node, [new], new.outputs)
