"""Look-ups in packed tables to llmc's own operator for the CPU.

llmc::GatherNBits(ids)   →   llmc.cpu::GatherNBits(ids)

The operator reads the table as it is stored, a row at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llmc.compiler.graph.operators import cpu, nbits
from llmc.passes.engine.packed_call import require_constants
from llmc.passes.graph.graph_query import replace_node
from llmc.passes.graph_pass import FusionPass, NearMiss


@dataclass(frozen=True)
class UseCpuGather(FusionPass):
    """Replace GatherNBits."""

    what: ClassVar[str] = "gather"

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every GatherNBits."""
        return nbits.GATHER.calls(model.graph)

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Replace one look-up."""
        sizes = {name: node.attributes.get_int(name, 0) for name in nbits.SIZES}
        if (reason := cpu.refused_format(sizes["bits"], sizes["block_size"], coded=True)) is not None:
            raise NearMiss(reason)
        inputs = nbits.GATHER.arguments(node)
        require_constants({name: inputs[name] for name in nbits.WEIGHT_INPUTS})
        new = cpu.GATHER.make(inputs, sizes, name=node.name)
        replace_node(node, [new], new.outputs)

    def finish(self, model: ir.Model) -> None:
        """Declare the domain."""
        model.graph.opset_imports.setdefault(cpu.DOMAIN, cpu.VERSION)
