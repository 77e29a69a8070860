"""ONNX's own operator tests as questions: one node each, with arrays and what must come out.

In: the installed onnx package. Out: :class:`NodeCase`, and variants of it: for another version of the operator, with
another element type, with an input made a constant, without options. The tests are those of ``onnx.backend.test``,
without the ones that spell an operator out as its function body.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from llmc.runtimes.lint.tables.node_view import KEY_INPUT, NodeView, view_graph

ELEMENT_TYPES = (
    *("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "int4"),
    *("uint8", "uint4", "bool", "string", "float8e4m3fn"),
)
"""Element types that are asked about."""
IR_VERSION = 10
WEIGHTED = (
    *("BatchNormalization", "Conv", "ConvTranspose", "DequantizeLinear", "GRU", "InstanceNormalization", "LSTM"),
    *("QuantizeLinear", "RNN", "Resize", "Upsample"),
)
"""Operators whose other inputs are weights, scales and sizes: constants in models."""
EXPLAINED = (
    *("local_window", "bidirectional_window", "robustness", "fullymasked", "poison", "structural_empty", "neginf"),
)
"""Parts of the names of attention tests from which nothing is learnt: a trap says what fails there (windows), or it
is a matter of the numbers (rows that are masked entirely)."""
RANDOM = frozenset({"Bernoulli", "Dropout", "Multinomial"})
"""Operators whose numbers differ from run to run, besides those named Random..."""


@dataclass(frozen=True)
class NodeCase:
    """A node, its arrays, its results.

    Attributes:
        name: Of the test.
        model: Of one node.
        inputs: By name; empty for a variant that is opened and not run.
        expected: In the outputs' order.
    """

    name: str
    model: ModelProto
    inputs: Mapping[str, npt.NDArray[Any]]
    expected: Sequence[npt.NDArray[Any]]

    @property
    def view(self) -> NodeView:
        """The node as rules see it."""
        opsets = {item.domain: item.version for item in self.model.opset_import}
        return view_graph(self.model.graph, opsets).nodes[0]

    @property
    def random(self) -> bool:
        """Whether its numbers differ from run to run."""
        return self.op_type in RANDOM or self.op_type.startswith("Random")

    @property
    def op_type(self) -> str:
        """Its operator."""
        return str(self.model.graph.node[0].op_type)

    @property
    def teaches(self) -> bool:
        """Whether what happens to it can be told from its features."""
        return self.op_type != "Attention" or not any(part in self.name for part in EXPLAINED)


def read_cases() -> Iterator[NodeCase]:
    """Every test of one node of ONNX's own domain whose inputs and outputs are all tensors of plain types."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests = collect_testcases(None)
    for test in tests:
        graph = test.model.graph
        if len(graph.node) != 1 or test.name.endswith("_expanded") or graph.node[0].domain:
            continue
        given, expected = ([_plain_array(item) for item in items] for items in test.data_sets[0])
        inputs = {item.name: array for item, array in zip(graph.input, given, strict=True) if array is not None}
        outputs = [array for array in expected if array is not None]
        if len(inputs) == len(given) and len(outputs) == len(expected):
            yield NodeCase(test.name, test.model, inputs, outputs)


def _plain_array(item: object) -> npt.NDArray[Any] | None:
    """What a test gives as an array of a type that NumPy has itself; None for others, and for sequences."""
    array = numpy_helper.to_array(item) if isinstance(item, TensorProto) else item
    array = np.asarray(array) if isinstance(array, np.ndarray | np.generic) else None
    return None if array is None or array.dtype.isbuiltin != 1 else array


def fix_inputs(case: NodeCase, *, free: Sequence[int] = ()) -> NodeCase:
    """The same with shapes, axes and other whole numbers as constants: as models have them.

    Args:
        case: A test; there, everything is an input.
        free: Inputs that stay inputs.
    """
    node = case.model.graph.node[0]
    key = KEY_INPUT.get(node.op_type, 0)
    fixed = {
        name
        for index, name in enumerate(node.input)
        if index not in (key, *free) and name in case.inputs and _is_parameter(node.op_type, case.inputs[name])
    }
    return _with_constants(case, fixed)


def with_key_type(case: NodeCase, dtype: str) -> NodeCase | None:
    """The same with another element type where the deciding input's type is; opened only. None: not allowed."""
    node, schema = case.model.graph.node[0], case.view.schema
    if schema is None:
        return None
    parameter = _parameter_of(schema, KEY_INPUT.get(node.op_type, 0))
    constraints = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    onnx_name = {"float32": "float", "float64": "double"}.get(dtype, dtype)
    if f"tensor({onnx_name})" not in constraints.get(parameter, ()):
        return None
    number = TensorProto.DataType.Value(onnx_name.upper())
    model = copy.deepcopy(case.model)
    names = _names_to_retype(case, schema, f"tensor({onnx_name})")
    for item in model.graph.input:
        if item.name in names:
            item.type.tensor_type.elem_type = number
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.name in names:
            model.graph.initializer[index].CopyFrom(_cast(tensor, number))
    _infer_outputs(model, schema)
    return replace(case, model=model, inputs={}, expected=())


def without_options(case: NodeCase) -> NodeCase:
    """The same with the inputs and outputs that every use of the operator has; opened only."""
    schema = case.view.schema
    if schema is None:
        return case
    model = copy.deepcopy(case.model)
    node = model.graph.node[0]
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    for names, parameters in ((node.input, schema.inputs), (node.output, schema.outputs)):
        kept = [name for name, item in zip(names, parameters, strict=False) if item.option != optional]
        if len(names) <= len(parameters):
            _refill(names, kept)
    used = {*node.input, *node.output}
    for values in (model.graph.input, model.graph.output, model.graph.initializer):
        _refill(values, [item for item in values if item.name in used])
    return replace(case, model=model, inputs={}, expected=())


def _names_to_retype(case: NodeCase, schema: onnx.defs.OpSchema, type_text: str) -> set[str]:
    """The deciding input and those that have its type in the test and may have the other: models mix types rarely."""
    node, inputs = case.model.graph.node[0], case.view.inputs
    key = KEY_INPUT.get(node.op_type, 0)
    allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    deciding = case.view.input(key)
    before = None if deciding is None else deciding.dtype
    return {
        value.name
        for index, value in enumerate(inputs)
        if value is not None
        and (
            _parameter_of(schema, index) == _parameter_of(schema, key)
            or (value.dtype == before and type_text in allowed.get(_parameter_of(schema, index), ()))
        )
    }


def at_version(case: NodeCase, version: int) -> NodeCase | None:
    """The same at another version of the domain; None where that definition does not take it."""
    model = copy.deepcopy(case.model)
    _refill(model.opset_import, [helper.make_opsetid("", version)])
    model.ir_version = min(model.ir_version, IR_VERSION)
    try:
        onnx.checker.check_model(model)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return None
    return replace(case, model=model)


def versions_of(op_type: str, oldest: int) -> list[int]:
    """Definitions of an operator that models of opset ``oldest`` and newer use, oldest first."""
    every = onnx.defs.get_all_schemas_with_history()
    definitions = [item for item in every if item.name == op_type and not item.domain and not item.deprecated]
    all_versions = sorted({item.since_version for item in definitions})
    first = max((version for version in all_versions if version <= oldest), default=0)
    return [version for version in all_versions if version >= first]


def _is_parameter(op_type: str, array: npt.NDArray[Any]) -> bool:
    """Shapes, axes, limits, weights; not indices into data, which models compute."""
    if op_type in WEIGHTED:
        return True
    return op_type not in {"TensorScatter", "Attention", "Where"} and array.dtype in (np.int64, np.int32)


def _with_constants(case: NodeCase, names: set[str]) -> NodeCase:
    model = copy.deepcopy(case.model)
    _refill(model.graph.input, [item for item in model.graph.input if item.name not in names])
    model.graph.initializer.extend(numpy_helper.from_array(case.inputs[name], name) for name in sorted(names))
    inputs = {name: array for name, array in case.inputs.items() if name not in names}
    return replace(case, model=model, inputs=inputs)


def _refill(field: Any, items: Sequence[Any]) -> None:
    del field[:]
    field.extend(items)


def _parameter_of(schema: onnx.defs.OpSchema, index: int) -> str:
    """Name of the type parameter of an input; the last one is variadic where there are more."""
    return str(schema.inputs[min(index, len(schema.inputs) - 1)].type_str) if schema.inputs else ""


def _cast(tensor: TensorProto, number: int) -> TensorProto:
    if number == TensorProto.STRING:
        size = int(np.prod(tensor.dims, dtype=np.int64))
        return helper.make_tensor(tensor.name, number, tensor.dims, ["1"] * size)
    array = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(number)), tensor.name)


def _infer_outputs(model: ModelProto, schema: onnx.defs.OpSchema) -> None:
    """Outputs with the types that follow from the inputs', and no shapes."""
    _refill(model.graph.output, [helper.make_empty_tensor_value_info(item.name) for item in model.graph.output])
    inferred = {item.name: item for item in onnx.shape_inference.infer_shapes(model).graph.output}
    node = model.graph.node[0]
    by_parameter = {
        _parameter_of(schema, index): item.type.tensor_type.elem_type
        for index, name in enumerate(node.input)
        for item in model.graph.input
        if item.name == name
    }
    for item, parameter in zip(model.graph.output, schema.outputs, strict=False):
        known = inferred[item.name].type.tensor_type.elem_type
        item.type.tensor_type.elem_type = known or by_parameter.get(parameter.type_str, 0)
