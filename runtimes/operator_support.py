"""What the installed ONNX Runtime's operators take.

In: a domain, an operator, an input. Out: yes or no, asked of the installed build itself: releases for CPU and GPU
differ, so a list kept here would be wrong for one of them.
"""

from __future__ import annotations

from functools import cache

from llmc.compiler.errors import MissingDependencyError


def has_input(domain: str, op_type: str, name: str) -> bool:
    """Whether the operator's newest schema has an input of that name."""
    return name in _inputs(domain, op_type)


@cache
def _inputs(domain: str, op_type: str) -> frozenset[str]:
    try:
        from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema
    except ImportError as error:
        hint = "onnxruntime is not installed; pip install 'llmc-toolchain[cpu]'"
        raise MissingDependencyError(hint) from error
    schemas = [s for s in get_all_operator_schema() if s.domain == domain and s.name == op_type]
    newest = max(schemas, key=lambda schema: schema.since_version, default=None)
    return frozenset(item.name for item in newest.inputs) if newest is not None else frozenset()
