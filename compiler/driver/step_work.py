"""What a token costs an engine, for the benchmark's roofline.

In: an artifact's directory. Out: :class:`~llmc.runtimes.bench.roofline.StepWork`, counted in its graph, whose weights
are not read.

Whether a product multiplies floats or integers is what the graph asks for: llmc's products of packed weights round
activations to 8 bits (to 16, which are two multiplications of 8), ONNX Runtime's ``MatMulNBits`` does so at accuracy
level 4, and products of integers are what their name says. Everything else counts as floats.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.base.contract import GRAPH
from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.graph.census import LOOK_UPS, head_product
from llmc.compiler.graph.operators import cpu, nbits
from llmc.compiler.graph.read_model import read_model
from llmc.compiler.insight.decode_cost import ATTENTION, attention_flops, attention_window, product_flops
from llmc.runtimes.bench.roofline import AttentionWork, StepWork

INTEGER_PRODUCTS = frozenset({"MatMulInteger", "DynamicQuantizeMatMul"})
INT8_ACCURACY = 4


def works_of(directories: Mapping[str, Path]) -> dict[str, StepWork]:
    """What tokens cost engines, by their labels; without those that cannot be read, which opening them will say."""
    works = {}
    for label, directory in directories.items():
        with contextlib.suppress(ArtifactError):
            works[label] = step_work(directory)
    return works


def step_work(directory: Path) -> StepWork:
    """Count an artifact's products and attention.

    Raises:
        ArtifactError: the directory is no artifact, or its graph cannot be read.
    """
    manifest = open_artifact(directory).manifest
    return count_work(read_model(directory / GRAPH), every_logit=manifest.contract.logits == "all")


def count_work(model: ir.Model, *, every_logit: bool) -> StepWork:
    """The same of a graph; ``every_logit``: all positions of a chunk get logits."""
    head, products = head_product(model.graph), Counter[tuple[bool, bool]]()
    attention: Counter[int] = Counter()
    unknown: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        if (node.domain, node.op_type) in ATTENTION:
            operations = attention_flops(node, 1)
            attention[attention_window(node)] += operations or 0
        else:
            operations = product_flops(node)
            times = integer_products(node)
            products[node is head, times > 0] += (operations or 0) * max(times, 1)
            if operations == 0 and node.op_identifier() in model.functions and node.op_type not in LOOK_UPS:
                operations = None
        if operations is None:
            unknown[node.op_type] += 1
    return StepWork(
        int8=products[False, True],
        floats=products[False, False],
        head_int8=products[True, True],
        head_floats=products[True, False],
        attention=tuple(AttentionWork(count, window) for window, count in sorted(attention.items()) if count),
        every_logit=every_logit,
        not_counted=tuple(f"{count} {name} whose sizes the graph does not state" for name, count in unknown.items()),
    )


def integer_products(node: ir.Node) -> int:
    """Multiplications of int8 that stand for one of a product; 0: it multiplies floats."""
    if node.op_type in INTEGER_PRODUCTS:
        return 1
    if node.op_type != nbits.MATMUL.name:
        return 0
    if node.domain in {nbits.MATMUL.domain, cpu.DOMAIN}:
        return node.attributes.get_int("activation_bits", 8) // 8
    return int(node.attributes.get_int("accuracy_level", 0) == INT8_ACCURACY)
