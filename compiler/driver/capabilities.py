"""What the operators of a runtime take that not every release of it does.

In: whether the release is meant for which llmc is made, or the one that is installed. Out:
:class:`Capabilities`, by which passes choose.

A recorded release is the default, so that the same input gives the same graph on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llmc.compiler.base.targets import ORT_RELEASE
from llmc.compiler.graph.operators.microsoft import DOMAIN, GROUP_QUERY_ATTENTION, QMOE
from llmc.runtimes.lint.tables.kernel_table import load_kernels
from llmc.runtimes.lint.tables.table import load_table
from llmc.runtimes.onnxruntime.operator_support import has_attribute, has_input

ATTENTION, EXPERTS = GROUP_QUERY_ATTENTION.name, QMOE.name
ROW_LENGTHS, AS_MEASURED = "query_seqlens", "accuracy_level"


@dataclass(frozen=True)
class Capabilities:
    """What a graph may use of ONNX Runtime.

    Attributes:
        query_seqlens: GroupQueryAttention takes chunks whose rows differ in length.
        expert_kernels: The CPU provider has the operators for experts as they were measured.
        cuda_kernels: Operators of which the CUDA provider has kernels, and for which element types.
        cuda_unknown: Operators about which it could not be asked.
    """

    query_seqlens: bool
    expert_kernels: bool
    cuda_kernels: Mapping[str, frozenset[str]] = field(default_factory=dict)
    cuda_unknown: frozenset[str] = frozenset()

    def here(self) -> Capabilities:
        """Those that the installed runtime has, too: for a graph that runs where it is made."""
        return replace(self, query_seqlens=self.query_seqlens and has_input(DOMAIN, ATTENTION, ROW_LENGTHS))


def find_capabilities(*, installed: bool = False) -> Capabilities:
    """Of the recorded release, or of the installed runtime; kernels for CUDA, which only a GPU tells, as recorded.

    Raises:
        MissingDependencyError: the installed runtime is asked for, and there is none.
    """
    if installed:
        lengths, measured = has_input(DOMAIN, ATTENTION, ROW_LENGTHS), has_attribute(DOMAIN, EXPERTS, AS_MEASURED)
        return Capabilities(lengths, measured, *load_kernels())
    operators = load_table(f"ort-{ORT_RELEASE}").operators
    attention, experts = (operators[f"{DOMAIN}::{name}"].signature for name in (ATTENTION, EXPERTS))
    assert attention is not None
    assert experts is not None
    # Inputs have no names there: a release has one if it takes as many as come up to it.
    lengths = ROW_LENGTHS in GROUP_QUERY_ATTENTION.inputs[: attention.inputs]
    return Capabilities(lengths, AS_MEASURED in experts.attributes, *load_kernels())
