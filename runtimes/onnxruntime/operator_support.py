"""What the installed ONNX Runtime's operators take.

In: a domain, an operator, an input or an attribute. Out: yes or no, asked of the installed build itself: releases for
CPU and GPU differ, so a list kept here would be wrong for one of them.
"""

from __future__ import annotations

from functools import cache

from llmc.compiler.base.errors import MissingDependencyError


def has_input(domain: str, op_type: str, name: str) -> bool:
    """Whether the operator's newest schema has an input of that name."""
    return name in _names(domain, op_type)[0]


def has_attribute(domain: str, op_type: str, name: str) -> bool:
    """Whether the operator's newest schema has an attribute of that name."""
    return name in _names(domain, op_type)[1]


@cache
def _names(domain: str, op_type: str) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the inputs and of the attributes."""
    try:
        from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema
    except ImportError as error:
        hint = "onnxruntime is not installed; pip install 'llmc-toolchain[cpu]'"
        raise MissingDependencyError(hint) from error
    schemas = [s for s in get_all_operator_schema() if s.domain == domain and s.name == op_type]
    newest = max(schemas, key=lambda schema: schema.since_version, default=None)
    if newest is None:
        return frozenset(), frozenset()
    return frozenset(item.name for item in newest.inputs), frozenset(newest.attributes)
