"""Which operators ONNX Runtime's CUDA provider runs, asked of the provider itself: needs a GPU.

In: the installed runtime. Out: JSON: operator -> element types, by making a graph of each operator alone, for each
type that its first input may have, and asking whether the runtime places it on the GPU.

    python -m llmc.runtimes.lint.tables.kernel_table -o runtimes/lint/tables/cuda_kernels.json

``llmc optimize --target cuda`` reads the table on machines without a GPU (:func:`load_kernels`). An operator whose
graph is invalid with the smallest attributes that its definition asks for is listed under ``unknown``, so that it can
be looked at.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

log = logging.getLogger(__name__)
TABLE = Path(__file__).with_name("cuda_kernels.json")
DOMAINS = ("", "com.microsoft")
TYPES = ("float16", "bfloat16", "float", "int64", "int32", "bool", "uint8", "int8", "float8e4m3fn", "double")
NUMBERS = {name: TensorProto.DataType.Value(name.upper()) for name in TYPES}
NAMES = {"float": "float32", "double": "float64"}
"""Types whose name here is another than in ONNX's text form."""
FALLBACK = "fallback to CPU EP has been explicitly disabled"
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "Cast": {"to": TensorProto.FLOAT},
    "Concat": {"axis": 0},
    **{name: {"num_heads": 2, "kv_num_heads": 2} for name in ("GroupQueryAttention", "PagedAttention")},
    **{name: {"num_heads": 2} for name in ("MultiHeadAttention", "PackedMultiHeadAttention", "PackedAttention")},
    "MatMulNBits": {"K": 32, "N": 32, "bits": 4, "block_size": 32},
    "MatMulBnb4": {"K": 32, "N": 32, "quant_type": 1, "block_size": 32},
    "GatherBlockQuantized": {"block_size": 32, "bits": 4},
    **{name: {"k": 1, "activation_type": "silu"} for name in ("MoE", "QMoE")},
    "LinearAttention": {"q_num_heads": 2, "kv_num_heads": 2},
    "Split": {"num_outputs": 1},
    "Attention": {"num_heads": 2},
    "Einsum": {"equation": "i,i->i"},
}
"""What an operator needs beyond its defaults for its graph to be valid."""
KEY_INPUT = {"Where": 1}
"""Input whose type decides, where it is not the first."""


def load_kernels() -> tuple[Mapping[str, frozenset[str]], frozenset[str]]:
    """Operator -> element types of its first input that is data; and operators that could not be asked."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return {name: frozenset(types) for name, types in table["operators"].items()}, frozenset(table["unknown"])


def probe(domain: str, schema: Any, element_type: str) -> bool | None:
    """Whether the operator runs on the GPU with inputs of a type; None when its graph is invalid."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        model = one_node_graph(domain, schema, element_type).SerializeToString()
        onnxruntime.InferenceSession(model, options, providers=["CUDAExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - the answer is in the message
        return False if FALLBACK in str(error) else None
    return True


def one_node_graph(domain: str, schema: Any, element_type: str) -> onnx.ModelProto:
    """The operator alone; every input that is not optional is an input of the graph without a shape.

    Raises:
        ValueError: the operator takes no such type, or an input takes none of the types known here.
    """
    constraints = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    bound: dict[str, str] = {}
    inputs, names = [], list[str]()
    key = KEY_INPUT.get(schema.name, 0)
    for index, item in enumerate(schema.inputs):
        if index > key and "Single" not in str(item.option):
            # Left out; a name is needed where another input follows.
            names.append("")
            continue
        allowed = constraints.get(item.typeStr, [item.typeStr])
        wanted = [element_type] if index == key else [bound.get(item.typeStr, ""), element_type, *TYPES]
        chosen = next((name for name in wanted if f"tensor({name})" in allowed), None)
        if chosen is None:
            raise ValueError(f"{schema.name} takes no {element_type}")
        bound.setdefault(item.typeStr, chosen)
        names.append(f"x{index}")
        inputs.append(helper.make_tensor_value_info(names[-1], NUMBERS[chosen], None))
    while names and not names[-1]:
        names.pop()
    outputs = [helper.make_empty_tensor_value_info(f"y{i}") for i in range(max(1, schema.min_output))]
    attributes = ATTRIBUTES.get(schema.name, {})
    node = helper.make_node(schema.name, names, [o.name for o in outputs], domain=domain, **attributes)
    graph = helper.make_graph([node], "probe", inputs, outputs)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def record() -> dict[str, Any]:
    """The whole table, with the runtime's version."""
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    newest: dict[tuple[str, str], Any] = {}
    for schema in get_all_operator_schema():
        key = (schema.domain, schema.name)
        known = newest.get(key)
        if schema.domain in DOMAINS and (known is None or known.since_version < schema.since_version <= 23):
            newest[key] = schema
    operators: dict[str, list[str]] = {}
    unknown = []
    for (domain, name), schema in sorted(newest.items()):
        answers = {element: probe(domain, schema, element) for element in TYPES}
        label = f"{domain}::{name}" if domain else name
        found = sorted(NAMES.get(element, element) for element, answer in answers.items() if answer)
        if found:
            operators[label] = found
        elif all(answer is None for answer in answers.values()):
            unknown.append(label)
        log.info("%s: %s", label, found)
    return {"onnxruntime": onnxruntime.__version__, "operators": operators, "unknown": unknown}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="llmc.runtimes.lint.tables.kernel_table", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.output.write_text(json.dumps(record(), indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
