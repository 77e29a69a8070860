"""Small models with the arrays to run them on, for the traps that single operator tests do not show.

In: inputs, nodes, outputs. Out: :class:`Probe`. A :class:`Trap` is two of them: a graph that has the trap, and a near
miss that lacks nothing but the trap. The recorder shows both to a runtime, and the tests show both to ``llmc lint``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

OPSET, IR_VERSION, MICROSOFT = 24, 10, "com.microsoft"
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Probe:
    """A model and what to run it on.

    Attributes:
        model: One graph, weights inside.
        inputs: By name, in order.
        valid: Output name -> slots along axis 2 whose content is defined; the rest of a cache buffer is not.
    """

    model: onnx.ModelProto
    inputs: Mapping[str, Array]
    valid: Mapping[str, int]


@dataclass(frozen=True)
class Trap:
    """A pair of models.

    Attributes:
        name: As in the tables.
        probe: Has the trap.
        near_miss: Has it not.
        runtimes: Runtimes that are asked about it.
        unfused: An operator that a fast runtime replaces; where it is left, the graph runs slowly.
        optimized: It shows only where ONNX Runtime optimizes, as it does by default.
        cost: Why it is slow wherever it runs; empty where that is not known.
    """

    name: str
    probe: Probe
    near_miss: Probe
    runtimes: tuple[str, ...]
    unfused: str = ""
    optimized: bool = False
    cost: str = ""


def make_probe(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Array],
    outputs: Mapping[str, tuple[int, Sequence[int | str]]],
    *,
    weights: Mapping[str, Array | onnx.TensorProto] | None = None,
    names: Mapping[str, Sequence[int | str]] | None = None,
    opset: int = OPSET,
    valid: Mapping[str, int] | None = None,
) -> Probe:
    """Build a model.

    Args:
        nodes: In order.
        inputs: What it runs on; shapes and types follow from the arrays.
        outputs: Element type and shape by name.
        weights: Initializers.
        names: Shapes of inputs that are to be symbolic.
        opset: Of ONNX's own domain.
        valid: See :class:`Probe`.
    """
    shapes = dict(names or {})
    graph = helper.make_graph(
        list(nodes),
        "probe",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), list(shapes.get(name, array.shape))
            )
            for name, array in inputs.items()
        ],
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, (kind, shape) in outputs.items()],
        initializer=[_tensor(name, value) for name, value in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return Probe(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), inputs, valid or {})


def in_order(positions: Mapping[str, int], names: Iterable[str]) -> list[str]:
    """Names of a node's inputs at their positions; those between are left out."""
    at = {positions[name]: name for name in names}
    return [at.get(index, "") for index in range(max(at) + 1)]


def random(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    """Normal deviates, the same every time."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def _tensor(name: str, value: Array | onnx.TensorProto) -> onnx.TensorProto:
    if isinstance(value, onnx.TensorProto):
        named = copy.deepcopy(value)
        named.name = name
        return named
    return numpy_helper.from_array(np.ascontiguousarray(value), name)
